"""Captions: where the text of a triplet comes from."""

import csv
import difflib
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipgs.config import Caption
from clipgs.storage import UsageError, sha256_of

Row = dict[str, Any]
Captioner = Callable[[Sequence[Row], Sequence[Row], Caption], list[Row]]

# Of the format characters (byte order marks, bidirectional marks, soft hyphens, zero-width spaces) only the
# joiners stay: Persian, Indic scripts and emoji are written with them.
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


def with_article(noun: str) -> str:
    """Puts "a" or "an" before a noun by its sound, as far as the spelling tells: an hourglass, a unicycle."""
    word = re.split(r"[^\w]", noun.strip(), maxsplit=1)[0]
    lower = word.lower()
    if len(word) <= 4 and word.isupper():  # letters said one by one
        vowel = word[0] in "AEFHILMNORSX"
    elif lower.startswith(("hour", "honest", "honour", "honor", "heir")):
        vowel = True
    elif re.match(r"uni[cfoqtv]|us[aeiu]|ut[eio]|ur[aeiou]|uk|eu|ew|ubi|one($|[^a-z])|once|ouija", lower):
        vowel = False
    else:
        vowel = lower[:1] in tuple("aeiou8") or lower in ("11", "18")
    return f"{'an' if vowel else 'a'} {noun}"


def catalog(rows: Sequence[Row], labels: Sequence[Row], settings: Caption) -> list[Row]:
    """The catalog's own text, else "a CATEGORY"; an object that has neither is a failed row."""
    label_of = {label["uid"]: label for label in labels}
    captions = []
    for row in rows:
        label = label_of.get(row["uid"], {})
        text = clean(label.get("text"), settings.max_characters)
        category = clean((label.get("category") or "").replace("_", " "), settings.max_characters)
        if text:
            captions.append(_caption(row["uid"], text, "catalog text"))
        elif category:
            captions.append(_caption(row["uid"], with_article(category), "catalog category"))
        else:
            captions.append(_caption(row["uid"], error="no text: the catalog has neither text nor category"))
    return captions


def cap3d(rows: Sequence[Row], labels: Sequence[Row], settings: Caption) -> list[Row]:
    """Captions from a CSV of uid (or SHA-256 of the file) and caption, as Cap3D publishes (Luo et al., NeurIPS 2023).

    An object that the CSV does not list gets the catalog's text, or is a failed row where `fallback` is `fail`.

    Raises:
        UsageError: the CSV cannot be read, or `cap3d` names none.
    """
    path = _cap3d_path(settings)
    wanted = {row[name] for row in rows for name in ("uid", "sha256") if row.get(name)}
    listed = {}
    for key, text in _listed_captions(path):
        if key in wanted:
            listed.setdefault(key, clean(text, settings.max_characters))
    own = {row["uid"]: row for row in catalog(rows, labels, settings)} if settings.fallback == "catalog" else {}
    captions = []
    for row in rows:
        text = listed.get(row["uid"]) or listed.get(row.get("sha256"))
        if text:
            captions.append(_caption(row["uid"], text, "Cap3D"))
        else:
            missing = _caption(row["uid"], error=f"{path.name} has no caption of it, and caption.fallback is fail")
            captions.append(own.get(row["uid"], missing))
    return captions


def _cap3d_path(settings: Caption) -> Path:
    if settings.cap3d is None:
        raise UsageError("config: caption.captioner = cap3d: name the CSV of captions in caption.cap3d")
    return Path(settings.cap3d).expanduser()


def _listed_captions(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for cells in csv.reader(file):
                if len(cells) > 2 or (len(cells) == 1 and cells[0].strip()):
                    raise UsageError(
                        f"config: caption.cap3d: {path} has {len(cells)} columns at {cells[0][:70]!r}; "
                        "it must have two, uid and caption (quoted, where it holds a comma)"
                    )
                if len(cells) == 2:
                    yield cells[0].strip(), cells[1]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"config: caption.cap3d: {path}: {error}") from None


def listed_digest(settings: Caption) -> str:
    """Hash of the file that captions are taken from; empty where there is none. A mended file captions again.

    Raises:
        UsageError: there is no such file.
    """
    if settings.captioner != "cap3d":
        return ""
    try:
        return sha256_of(_cap3d_path(settings))[:16]
    except OSError as error:
        raise UsageError(f"config: caption.cap3d: {settings.cap3d}: {error.strerror or error}") from None


CAPTIONERS: Mapping[str, Captioner] = MappingProxyType({"catalog": catalog, "cap3d": cap3d})


def captioner(name: str) -> Captioner:
    """The captioner of that name: for object rows, label rows and settings it gives one row an object.

    Its rows hold uid, status (`ok` or `failed`), error, caption, source (what the caption was made from), and
    the candidates that it was chosen from with their scores.

    Raises:
        UsageError: there is no such captioner.
    """
    if name not in CAPTIONERS:
        near = difflib.get_close_matches(name, CAPTIONERS, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"caption.captioner = {name}: there is no such captioner; did you mean {near}?"
            f" (there are: {', '.join(sorted(CAPTIONERS))})"
        )
    return CAPTIONERS[name]


def _caption(uid: str, caption: str | None = None, source: str | None = None, error: str | None = None) -> Row:
    return {
        "uid": uid,
        "status": "failed" if error else "ok",
        "error": error,
        "caption": caption,
        "source": source,
        "candidates": [],
        "scores": [],
    }


def schema() -> Any:
    """Rows of `captions/S.parquet`."""
    import pyarrow as pa

    strings = [(name, pa.string()) for name in ("uid", "status", "error", "caption", "source")]
    return pa.schema([*strings, ("candidates", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))])
