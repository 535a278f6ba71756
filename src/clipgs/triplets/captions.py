"""Captions: where the text of a triplet comes from."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from clipgs.config import Caption, Config
from clipgs.core.errors import UsageError
from clipgs.core.files import sha256_of
from clipgs.core.lists import counted, did_you_mean, read_rows
from clipgs.core.runner import stage_schema

log = logging.getLogger(__name__)

Row = dict[str, Any]
CaptionWriter = Callable[[Sequence[str]], list[Row]]  # uids to caption rows, written by a model from pictures

_WORDS = 49408  # of open_clip's own tokenizer

# The only format characters that stay: Persian, Indic scripts and emoji need them. Byte order marks, bidirectional
# marks, soft hyphens and zero-width spaces go.
JOINERS = "\u200c\u200d"


def clean(text: str | None, max_characters: int) -> str:
    """One line of NFC text of at most `max_characters`, cut at a word; empty without letters or digits.

    Control characters and runs of white space become one space, and four dots or more an ellipsis. Words are
    never changed or added.
    """
    text = unicodedata.normalize("NFC", text or "")
    kept = []
    for character in text:
        category = unicodedata.category(character)
        if category in ("Cc", "Zs", "Zl", "Zp"):
            kept.append(" ")
        elif category[0] != "C" or character in JOINERS:
            kept.append(character)
    text = re.sub(r"\.{4,}", "...", " ".join("".join(kept).split()))
    if not any(character.isalnum() for character in text):
        return ""
    return _cut(text, max_characters)


def same_text(caption: str) -> str:
    """The form in which captions are compared: without differences of case, white space and a final full stop."""
    return " ".join(caption.casefold().split()).rstrip(".")


def _cut(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    end = max_characters
    while end > 0 and (unicodedata.combining(text[end]) or text[end] in JOINERS or text[end - 1] in JOINERS):
        end -= 1  # an accent stays with its letter
    head = text[:end]
    if not text[end].isspace() and " " in head:
        head = head[: head.rindex(" ")]
    return head.rstrip(" ,;:-")


def spoken(name: str) -> str:
    """A class name in words: LVIS writes `teddy_bear` and `ice_(frozen_water)`."""
    return " ".join(name.replace("_", " ").split())


def with_article(noun: str) -> str:
    """Puts "a" or "an" before a noun, by its sound as far as the spelling shows it: an hourglass, a unicycle."""
    word = re.split(r"[^\w]", noun.strip(), maxsplit=1)[0]
    lower = word.lower()
    if len(word) <= 4 and word.isupper():  # spoken letter by letter
        vowel = word[0] in "AEFHILMNORSX"
    elif lower.startswith(("hour", "honest", "honour", "honor", "heir")):
        vowel = True
    elif re.match(r"uni[cfoqtv]|us[aeiu]|ut[eio]|ur[aeiou]|uk|eu|ew|ubi|one($|[^a-z])|once|ouija", lower):
        vowel = False
    else:
        vowel = lower[:1] in tuple("aeiou8") or lower in ("11", "18")
    return f"{'an' if vowel else 'a'} {noun}"


def no_writer(uids: Sequence[str]) -> list[Row]:
    """The `CaptionWriter` of a captioner that needs no pictures."""
    need = counted(len(uids), "object needs", "objects need")
    raise UsageError(f"caption: {need} a captioner that looks at pictures: run the stage `caption`")


class Captioner(Protocol):
    """Makes caption rows from object rows and label rows. `writer` writes captions from pictures."""

    def __call__(
        self,
        rows: Sequence[Row],
        labels: Sequence[Row],
        settings: Caption,
        writer: CaptionWriter = no_writer,
    ) -> list[Row]: ...


def cannot_write(architecture: Mapping[str, Any]) -> str | None:
    """Why a model of this architecture, as open_clip's JSON describes it, cannot write captions; None if it can."""
    text = architecture.get("text_cfg", {})
    words = text.get("vocab_size", _WORDS)
    if "multimodal_cfg" not in architecture:
        reason = "it has no decoder"
    # Such a tower sees the words to come, and the decoder's words are not those of its tokenizer.
    elif tower := text.get("hf_model_name") or text.get("hf_tokenizer_name"):
        reason = f"its texts are read by {tower}, and not by open_clip's own tokenizer"
    elif words != _WORDS:
        reason = f"its vocabulary has {words:,} words, and open_clip's own tokenizer {_WORDS:,}"
    else:
        return None
    return f"this model cannot write captions, because {reason}; choose a CoCa, for example coca_ViT-L-14"


def catalog(
    rows: Sequence[Row],
    labels: Sequence[Row],
    settings: Caption,
    writer: CaptionWriter = no_writer,
) -> list[Row]:
    """The catalog's own text, or else "a CATEGORY". An object with neither is a failed row."""
    label_of = {label["uid"]: label for label in labels}
    captions = []
    for row in rows:
        label = label_of.get(row["uid"], {})
        text = clean(label.get("text"), settings.max_characters)
        category = clean(spoken(label.get("category") or ""), settings.max_characters)
        if text:
            captions.append(caption_row(row["uid"], text, "catalog text"))
        elif category:
            captions.append(caption_row(row["uid"], with_article(category), "catalog category"))
        else:
            captions.append(caption_row(row["uid"], error="no text: the catalog has neither text nor category"))
    return captions


def cap3d(
    rows: Sequence[Row],
    labels: Sequence[Row],
    settings: Caption,
    writer: CaptionWriter = no_writer,
) -> list[Row]:
    """Captions from a CSV of uid (or SHA-256 of the file) and caption, as Cap3D publishes (Luo et al., NeurIPS 2023).

    The captioner `fallback` serves objects that the CSV does not list. With `fail` they are failed rows.

    Raises:
        UsageError: the CSV cannot be read, or `cap3d` is not set.
    """
    path = _cap3d_path(settings)
    wanted = {row[name] for row in rows for name in ("uid", "sha256") if row.get(name)}
    listed: dict[str, str] = {}
    for key, text in listed_captions(path):
        if key in wanted:
            listed.setdefault(key, clean(text, settings.max_characters))
    found = {row["uid"]: listed.get(row["uid"]) or listed.get(row.get("sha256") or "") for row in rows}
    others = [row for row in rows if not found[row["uid"]]]
    if others:
        counts = f"{len(others):,} of {len(rows):,} objects (the first: {others[0]['uid']})"
        log.info("caption: %s has no caption of %s", path, counts)
    if settings.fallback == "fail":
        reason = f"{path.name} has no caption of it, and caption.fallback is fail"
        own = {row["uid"]: caption_row(row["uid"], error=reason) for row in others}
    else:
        own = {row["uid"]: row for row in captioner(settings.fallback)(others, labels, settings, writer)}
    return [own.get(row["uid"]) or caption_row(row["uid"], found[row["uid"]], "Cap3D") for row in rows]


def written(
    rows: Sequence[Row],
    labels: Sequence[Row],
    settings: Caption,
    writer: CaptionWriter = no_writer,
) -> list[Row]:
    """Captions that a model writes from pictures: `coca`, `consensus` and `http` differ in who writes and chooses."""
    return writer([row["uid"] for row in rows]) if rows else []


def _cap3d_path(settings: Caption) -> Path:
    if settings.cap3d is None:
        raise UsageError("config: caption.captioner = cap3d: name the CSV of captions in caption.cap3d")
    return Path(settings.cap3d).expanduser()


def listed_captions(path: Path) -> Iterator[tuple[str, str]]:
    """Uid (or SHA-256) and caption of each row of the CSV.

    Raises:
        UsageError: it cannot be read, or a row has not two columns.
    """
    for line, cells in read_rows(path, "config: caption.cap3d"):
        if len(cells) != 2:
            raise UsageError(
                f"config: caption.cap3d: {path}, line {line}: {len(cells)} columns at {cells[0][:70]!r}; "
                "it must have two, uid and caption (quoted, if it has a comma)"
            )
        yield cells[0].strip().removesuffix(".glb"), cells[1]


def located(config: Config) -> Caption:
    """The settings with the CSV as a local file. A CSV with a URL is downloaded into the cache once.

    Raises:
        ClipgsError: the download failed.
    """
    settings = config.caption
    if settings.captioner != "cap3d" or "://" not in (settings.cap3d or ""):
        return settings
    from clipgs.catalog.sources.annotations import AnnotationFiles

    return settings.model_copy(update={"cap3d": str(AnnotationFiles(config).linked(settings.cap3d or ""))})


def listed_digest(settings: Caption) -> str:
    """Hash of the CSV of captions; empty without one. A changed CSV makes the captions again.

    Raises:
        UsageError: the file does not exist.
    """
    if settings.captioner != "cap3d":
        return ""
    try:
        return sha256_of(_cap3d_path(settings))[:16]
    except OSError as error:
        raise UsageError(f"config: caption.cap3d: {settings.cap3d}: {error.strerror or error}") from None


CAPTIONERS: Mapping[str, Captioner] = MappingProxyType(
    {"catalog": catalog, "cap3d": cap3d, "coca": written, "consensus": written, "http": written}
)


def captioner(name: str) -> Captioner:
    """The captioner of that name, which returns one row per object.

    Its rows have uid, status (`ok` or `failed`), error, caption, source (the origin of the caption), candidates and
    their scores. A caption that was judged has a score, and may have a note.

    Raises:
        UsageError: there is no such captioner.
    """
    if name not in CAPTIONERS:
        near = did_you_mean(name, CAPTIONERS, cutoff=0.0)
        raise UsageError(
            f"caption.captioner = {name}: there is no such captioner{near} (there are: {', '.join(sorted(CAPTIONERS))})"
        )
    return CAPTIONERS[name]


def caption_row(uid: str, caption: str | None = None, source: str | None = None, error: str | None = None) -> Row:
    """A row of `captions/S.parquet` for a caption without candidates."""
    return {
        "uid": uid,
        "status": "failed" if error else "ok",
        "error": error,
        "caption": caption,
        "source": source,
        "candidates": [],
        "scores": [],
        "score": None,
        "note": None,
    }


def schema(writer: str | None = None) -> Any:
    """Rows of `captions/S.parquet`; with what was asked of which model, where `http` writes."""
    import pyarrow as pa

    strings = dict.fromkeys(("caption", "source", "note"), pa.string())
    candidates = {"candidates": pa.list_(pa.string()), "scores": pa.list_(pa.float32())}
    asked = dict.fromkeys(("model", "prompt"), pa.string()) if writer == "http" else {}
    return stage_schema({**strings, **candidates, "score": pa.float32(), **asked})
