"""A folder (or glob) of mesh files, with an optional manifest of labels."""

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

from clipgs.catalog.records import LABEL_COLUMNS, SAYS_ITS_AXIS, SUFFIXES, UID_PATTERN, UpAxis
from clipgs.catalog.sources.digests import Digests, unchanged, with_named_files
from clipgs.config import Config
from clipgs.core.errors import ObjectError, SourceMissing, UsageError
from clipgs.core.lists import Names, counted, read_rows
from clipgs.core.seeds import json_digest

COLUMNS = ("file", "uid", "category", "text", "license", "credit", "page", "group", "split")
# Other names of columns, tried in this order if the manifest has not ours and `columns:` names none.
_ALIASES = {
    "text": ("caption", "description", "name"),
    "license": ("licence",),
    "credit": ("author", "attribution"),
    "page": ("url",),
}
# A hash or a random name: hexadecimal with a letter behind a digit (not bed001), or two letters behind digits.
_HASH = re.compile(r"(?=.*\d[a-f])[0-9a-f]{6,}|.*\d[a-z].*\d[a-z].*", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(?:[_-]?[0-9a-f]{4}){3}[_-]?[0-9a-f]{12}", re.IGNORECASE)
_UID_AND_TEXT = ["uid", "text"]  # the columns of Cap3D's files, which have no header
_GENERIC = frozenset({"scene", "model", "mesh", "object", "untitled", "textured", "normalized"})  # names of any object
_CREDITS = re.compile(r"licen[cs]e|credit|author|attribution|copyright", re.IGNORECASE)


class FolderSource:
    """See `Source`. A locator is the file's path relative to the folder, with forward slashes."""

    name = "folder"
    remote = False
    what = "mesh file"
    suffixes: tuple[str, ...] = SUFFIXES

    def __init__(self, config: Config) -> None:
        self._cache = config.cache_path
        self._unmatched = 0  # rows of a manifest without a file
        self._settings = getattr(config.catalog, self.name)
        if self._settings.path is None:
            raise UsageError(f"config: catalog.{self.name}.path is not set: name a folder or a glob of {self.what}s")

    # --- listing ---

    @cached_property
    def root(self) -> Path:
        """The folder that locators are relative to; of a glob, the part before the first wildcard."""
        path = Path(self._settings.path).expanduser()
        folder = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        return path if path.is_dir() else folder.parent if folder.is_file() else folder

    @cached_property
    def _files(self) -> list[str]:
        pattern = Path(self._settings.path).expanduser()
        if pattern.is_dir():
            found = _walk(pattern)
        elif glob.has_magic(str(pattern)):
            found = (Path(name) for name in glob.glob(str(pattern), recursive=True))
        elif pattern.is_file():
            found = iter([pattern])
        else:
            raise SourceMissing(f"catalog.{self.name}.path: {pattern} is not a folder or a file")
        files = (path for path in found if path.suffix.lower() in self.suffixes and not path.is_dir())
        return sorted(locator for path in files for locator in self._inside(path))

    def _inside(self, path: Path) -> list[str]:
        """The objects in a file: most hold one, themselves."""
        return [_text(path.relative_to(self.root))]

    def locators(self) -> list[str]:
        if self._manifest is not None:
            return sorted(self._manifest)
        if not self._files:
            raise SourceMissing(f"{self._settings.path} holds no {self.what} ({' '.join(self.suffixes)})")
        return self._files

    def gone(self, known: list[str]) -> list[str]:
        here = set(self._files if self.root.is_dir() else ())  # a glob or a manifest may leave out a file that is there
        return [locator for locator in known if locator not in here and not (self.root / locator).is_file()]

    def digests(self, locators: list[str]) -> dict[str, str]:
        inside = [locator for locator in locators if not _leads_out(locator)]
        digests = self._digests.of_all([self.root / locator for locator in inside])
        return {locator: digest for locator, digest in zip(inside, digests, strict=True) if digest is not None}

    @cached_property
    def _digests(self) -> Digests:
        folder = hashlib.sha256(str(self.root.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return Digests(self._cache / "digests" / f"{folder}.json", self.root)

    def notes(self, known: Collection[str] = ()) -> list[str]:
        if self._manifest is None:
            return []
        notes = []
        unlisted, lost = set(self._files) - set(self._manifest), sorted(set(self._manifest) - set(self._files))
        if lost and not known and len(lost) == len(self._manifest):
            text = f"none of the files of {self._settings.manifest} is in {self.root}: {Names(self._files).shown(lost)}"
            raise UsageError(f"config: catalog.{self.name}.manifest: {text}")
        if lost:
            shown = Names(self._files).shown(lost)
            missing = counted(len(lost), "file of the manifest is", "files of the manifest are")
            notes.append(f"{missing} not in the folder: {shown}")
        if kept := len(unlisted.intersection(known)):
            what = counted(kept, "object of this output is", "objects of this output are")
            keep = "it keeps the labels of its name" if kept == 1 else "they keep the labels of their names"
            notes.append(f"{what} not in the manifest; {keep}")
        if left_out := len(unlisted.difference(known)):
            what = counted(left_out, "file in the folder is", "files in the folder are")
            notes.append(f"{what} not in the manifest, and left out")
        if self._unmatched:
            rows = counted(self._unmatched, "row of the manifest has", "rows of the manifest have")
            notes.append(f"{rows} the uid of no file in the folder")
        if unused := self._columns[2]:
            notes.append(f"columns of the manifest that are not used: {', '.join(unused)}")
        return notes

    # --- manifest ---

    @cached_property
    def _columns(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Our name to the manifest's; columns that are added to the credit; columns not used."""
        header, mapped = self._table[0], {}
        known = Names(header)
        for ours, theirs in self._settings.columns.items():
            key, manifest = f"config: catalog.{self.name}.columns.{ours}", self._settings.manifest
            if ours not in COLUMNS:
                raise UsageError(f"{key} is not one of {', '.join(COLUMNS)}")
            found = known.find(theirs)
            if found is None:
                raise UsageError(f"{key} = {theirs}: {manifest} has no such column (it has {', '.join(header)})")
            mapped[ours] = found
        for ours in COLUMNS:
            for theirs in (ours, *_ALIASES.get(ours, ())):
                found = known.find(theirs)
                if ours not in mapped and found is not None and found not in mapped.values():
                    mapped[ours] = found
        if "file" not in mapped and "uid" not in mapped:
            name = f"name one in catalog.{self.name}.columns"
            here = f"(it has {', '.join(header)})"
            raise UsageError(f"{self._settings.manifest} has neither a column `file` nor `uid` {here}: {name}")
        rest = [column for column in header if column not in mapped.values()]
        credits = [column for column in rest if _CREDITS.search(column)]
        return mapped, credits, [column for column in rest if column not in credits]

    @cached_property
    def _table(self) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
        """Header of the manifest, and line number and cells of its rows."""
        path, key = Path(self._settings.manifest).expanduser(), f"catalog.{self.name}.manifest"
        if not path.exists():
            raise SourceMissing(f"{key}: {path} does not exist")
        rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else read_rows(path, f"config: {key}")
        first = next(rows, (1, []))
        header = [cell.strip() for cell in first[1]]
        if len(header) == len(_UID_AND_TEXT) and _UUID.fullmatch(header[0]):
            header, rows = _UID_AND_TEXT, chain([first], rows)
        table = [(line, dict(zip(header, cells, strict=False))) for line, cells in rows]
        return [column for column in header if column], table

    @cached_property
    def _manifest(self) -> dict[str, dict[str, str | None]] | None:
        """Locator to our columns; None where there is no manifest."""
        if self._settings.manifest is None:
            return None
        mapped, credits, _ = self._columns
        entries: dict[str, dict[str, str | None]] = {}
        of_uid = None if "file" in mapped else self._by_name
        for line, row in self._table[1]:
            entry = {ours: (row.get(theirs) or "").strip() or None for ours, theirs in mapped.items()}
            extra = [f"{column}: {row[column].strip()}" for column in credits if (row.get(column) or "").strip()]
            if extra:
                entry["credit"] = "; ".join(filter(None, [entry.get("credit"), *extra]))
            place = f"{self._settings.manifest}, line {line}"
            entry["split"] = "validation" if entry.get("split") == "val" else entry.get("split")
            if of_uid is not None:
                entry["file"] = of_uid.get(entry["uid"] or "")
                if entry["file"] is None or entry["file"] in entries:
                    self._unmatched += entry["file"] is None
                    continue
            if entry["file"] is None:
                raise UsageError(f"{place}: no file is named")
            if entry.get("split") not in (None, "train", "validation", "test"):
                raise UsageError(f"{place}: split is {entry['split']!r}; allowed: train, validation, test")
            locator = os.path.normpath(entry["file"])
            if locator in entries:
                raise UsageError(f"{place}: {locator} is listed twice")
            entries[locator] = entry
        if not entries:
            here = "lists no file" if of_uid is None else f"has the uid of no file in {self.root}"
            raise UsageError(f"{self._settings.manifest} {here}")
        return entries

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Locators by the names that may be uids: that of the file and, where no file has that, that of its folder."""
        paths = [(Path(self._named(locator)), locator) for locator in self._files]
        found: dict[str, str] = {}
        for path, locator in paths:
            found.setdefault(path.stem, locator)
        for path, locator in paths:
            found.setdefault(path.parent.name, locator)
        return found

    # --- objects ---

    def identify(self, locator: str) -> dict[str, Any]:
        entry = (self._manifest or {}).get(locator, {})
        note = digest = None
        try:
            digest = self._digest(locator)
        except ObjectError as error:
            note = f"unreadable: {error}"
        uid = entry.get("uid")
        if uid is not None and not UID_PATTERN.fullmatch(uid):
            note, uid = f"the manifest's uid {uid!r} is not made of 1 to 64 letters, digits, _ and -", None
        uid = uid or (digest[:16] if digest else None) or path_uid(locator)
        return {"uid": uid, "sha256": digest, "group": entry.get("group"), "split": entry.get("split"), "note": note}

    def _digest(self, locator: str) -> str:
        """The hash of an object. Raises ObjectError if it cannot be read."""
        return self._digests.of(self._locate(locator))

    def _named(self, locator: str) -> str:
        """The locator, as a path whose names say what the object is."""
        return locator

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        manifest, named, text_from_name = self._manifest or {}, self._named, self._text_from_name
        found = (
            manifest[locator] if locator in manifest else _labels_of_name(named(locator), text_from_name=text_from_name)
            for locator in locators
        )
        return [{name: labels.get(name) for name in LABEL_COLUMNS[1:]} for labels in found]

    def label_digest(self, locators: list[str]) -> str:
        if self._manifest is None:
            return "texts from names" if self._text_from_name else ""  # "": as versions before 0.2.0 labelled
        return json_digest(self.labels(locators))[:16]

    @property
    def _text_from_name(self) -> bool:
        return getattr(self._settings, "text_from_name", False)

    def fetch(self, row: dict[str, Any]) -> Path:
        with unchanged(self, row, row["sha256"]) as path:
            return path

    def path(self, row: dict[str, Any]) -> Path:
        return self._locate(row["locator"])

    def all_files(self, row: dict[str, Any]) -> list[Path]:
        return with_named_files(self.path(row), self.root)

    def elsewhere(self, row: dict[str, Any]) -> list[Path]:
        moved = self._digests.holder(row["sha256"])
        return [] if moved is None else with_named_files(moved, self.root)

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y" if row["locator"].lower().endswith(SAYS_ITS_AXIS) else self._settings.up_axis

    def _locate(self, locator: str) -> Path:
        if _leads_out(locator):
            raise ObjectError(f"{locator} leads out of the folder")
        return self.root / locator


def _parquet_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a parquet table as `read_rows` gives those of a CSV, its header first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as parquet ({error})") from None
    yield 1, table.column_names
    for number, row in enumerate(table.to_pylist(), start=2):
        yield number, ["" if cell is None else str(cell) for cell in row.values()]


def _leads_out(locator: str) -> bool:
    return locator.startswith(("../", "/")) or "\0" in locator  # locators are normalised


def path_uid(locator: str) -> str:
    """A unique uid, marked as made from the locator, for a file whose bytes give none."""
    return "path-" + hashlib.sha256(locator.encode()).hexdigest()[:16]


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()  # a link to a parent folder would cause an endless loop
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        yield from (Path(parent, name) for name in names if name[0] != ".")


def _labels_of_name(locator: str, *, text_from_name: bool) -> dict[str, str | None]:
    """Labels without a manifest: the folder's name is the category, the file's name the text.

    Without `text_from_name` a file in a folder whose name has a letter gets no text.
    """
    path = Path(locator)
    category, text = (" ".join(_words(name)) for name in (path.parent.name, path.stem))
    if not any(character.isalpha() for character in category):
        category = ""
    if text_from_name:
        text = _text_of(path.stem, category)
    elif category or not any(character.isalpha() for character in text):
        text = ""
    return {"category": category or None, "text": text or None}


def _text_of(stem: str, category: str) -> str:
    """A file's name in words, without numbers at its end; empty where it says no more than the category.

    Beside a category, a word of two letters or more must be neither one of the category nor generic. Where there is no
    category, one letter is enough. A hash is no name.
    """
    words = _words(stem)
    if _UUID.fullmatch(stem):
        return ""
    while words and (words[-1].isdigit() or _HASH.fullmatch(words[-1])):
        del words[-1]
    if words:
        words[-1] = re.sub(r"(?<=[^\W\d_]{2})\d{2,}$", "", words[-1])  # chair01
    known = _GENERIC.union(category.casefold().split())
    named = any(word.isalpha() and len(word) > 1 and word.casefold() not in known for word in words)
    if named or (not category and any(character.isalpha() for word in words for character in word)):
        return " ".join(words)
    return ""


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_.-]+", name) if word]


def _text(path: Path) -> str:
    # A table cannot hold a name that is not UTF-8. Its escaped form is not found on disk, so it becomes a failed row.
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
