"""Tokenizers: open_clip's own with fewer words for small models, and those of Hugging Face as their files say.

From version 5 on, transformers builds tokenizers of some classes (T5's, Gemma's and XLM-RoBERTa's among them) anew from
the vocabulary, with the normaliser that is written in the class. Of the normaliser in `tokenizer.json` only a character
map of SentencePiece survives. Lowering of letters, NFKC and replacements are lost without a word, and the model gets
other tokens than it was trained on.
"""

import gzip
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from clipgs.core.errors import ClipgsError
from clipgs.core.files import sha256_of
from clipgs.core.seeds import json_digest
from clipgs.teacher.hub import VOCABULARIES, matches
from clipgs.teacher.names import ARCHITECTURE, VOCABULARY

FILE = "tokenizer.json"
_VOCABULARY = (*VOCABULARIES, "merges.txt")
_NO_MERGES = 2 * 256 + 2  # tokens: the bytes, the bytes at the end of a word, start and end of a text
# What normalisers and splitters differ in: case, accents, width, white space, line ends, punctuation, digits, scripts.
PROBES = (
    "a red mug",
    "A Red MUG",
    "  two  blanks,\ttab\nand line end ",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul",
    "\uff21\uff22\uff23 \ufb01ne \u00bd \u2122 \u2460",
    "don't -- \u201cstop\u201d\u2026 (it's 3.5 % of 1,234)!?",
    "\u00a0no-break\u00a0space\u200b and\u3000wide",
    "\u692d\u5b50 \u0441\u0442\u0443\u043b \u043a\u0440\u0435\u0441\u043b\u043e",
    "\u0643\u0631\u0633\u064a \u0e40\u0e01\u0e49\u0e32\u0e2d\u0e35\u0e49",
    "\U0001f600 \u2581under\u2581lines <unk> </s>",
)


def small_vocabulary(size: int) -> bytes:
    """The file of a vocabulary of so many tokens: the most common ones of open_clip's own.

    A table of 49,408 tokens would be most of a small model. Rarer words are spelled in pieces.
    """
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")  # a title, then one merge a line
    return gzip.compress("\n".join(lines[: 1 + size - _NO_MERGES]).encode(), mtime=0)


def small_tokenizer() -> SimpleTokenizer:
    """The tokenizer of the small teacher."""
    text = json.loads(ARCHITECTURE.read_text())["text_cfg"]
    file: Any = io.BytesIO(small_vocabulary(text["vocab_size"]))
    return SimpleTokenizer(file, context_length=text["context_length"])


def own_tokenizer(folder: Path | None, length: int, options: Mapping[str, Any]) -> tuple[SimpleTokenizer, Any]:
    """open_clip's own tokenizer, with the vocabulary of the folder where that has one, and the options for `identity`.

    Raises:
        ClipgsError: the vocabulary cannot be read.
    """
    file = folder / VOCABULARY if folder else None
    if file is None or not file.exists():
        return SimpleTokenizer(context_length=length, **options), options
    try:
        made = SimpleTokenizer(str(file), context_length=length, **options)
        return made, {**options, "vocabulary": sha256_of(file)}
    except (OSError, EOFError, ValueError) as error:
        raise ClipgsError(f"{file} cannot be read ({error}); copy it again") from None


def same_as_files(
    tokenizer: Any,  # of transformers, or open_clip's wrapper of one
    folder: Path,
) -> None:
    """Compares the tokens of a loaded tokenizer with those of the `tokenizer.json` that it was loaded from.

    Only the words are compared. Tokens at the start and the end also depend on `tokenizer_config.json`.
    A folder without the file passes: then there is nothing else than the loaded tokenizer to go by.

    Raises:
        ClipgsError: it reads a text otherwise, or the file cannot be read.
    """
    if not (folder / FILE).is_file():
        return
    said, loaded = _from_file(folder), _loaded(tokenizer)
    for text in PROBES:
        expected = said.encode(text, add_special_tokens=False)
        found = list(loaded(text, add_special_tokens=False).input_ids)
        if found != expected.ids:
            seen = " ".join(loaded.convert_ids_to_tokens(found)[:6])
            raise ClipgsError(
                f"{folder / FILE}: transformers {_version()} reads {text!r} as {seen!r}, and the file says "
                f"{' '.join(expected.tokens[:6])!r}; install transformers<5"
            )


def restore(
    tokenizer: Any,  # of transformers, or open_clip's wrapper of one; changed in place
    folder: Path,
) -> None:
    """Lets a loaded tokenizer split texts into words as its `tokenizer.json` says, whatever its class has made of it.

    Tokens at the start and the end stay as loaded.

    Raises:
        ClipgsError: it still reads a text otherwise, or the file cannot be read.
    """
    backend = getattr(_loaded(tokenizer), "backend_tokenizer", None)
    if backend is not None and (folder / FILE).is_file():
        said = _from_file(folder)
        for part in ("model", "normalizer", "pre_tokenizer"):
            setattr(backend, part, getattr(said, part))
    same_as_files(tokenizer, folder)


def identity(
    tokenizer: Any,  # of open_clip
    folder: Path | None,  # of the files of one of Hugging Face
    options: Mapping[str, Any],
) -> str:
    """What tells a tokenizer from others: where it comes from, or a hash, and the tokens that it reads.

    Of the files only the vocabulary is hashed. The others hold names and versions too, and what of them counts (the
    tokens at the start and the end) shows in the tokens of a text.
    """
    length = f"{tokenizer.context_length} tokens"
    if folder is None:
        return ", ".join(["open_clip", length, *(f"{name} {value}" for name, value in sorted(options.items()))])
    whole = (folder / FILE).is_file()  # then the other files say the same (`same_as_files`)
    names = [FILE] if whole else sorted(file.name for file in folder.iterdir() if matches(file.name, _VOCABULARY))
    files = {name: sha256_of(folder / name) for name in names}
    read = tokenizer([*PROBES[:2]]).tolist()
    return f"{json_digest({'files': files, 'options': dict(options), 'tokens': read})}, {length}"


def _loaded(tokenizer: Any) -> Any:
    return getattr(tokenizer, "tokenizer", tokenizer)


def _from_file(folder: Path) -> Any:
    from tokenizers import Tokenizer  # comes with transformers, which open_clip's own tokenizer does without

    try:
        said = Tokenizer.from_file(str(folder / FILE))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:120]
        raise ClipgsError(f"{folder / FILE} cannot be read ({reason}); copy or download it again") from None
    said.no_truncation()
    said.no_padding()
    return said


def _version() -> str:
    from importlib.metadata import version

    return version("transformers")
