"""A folder (or glob) of mesh files, with an optional manifest of labels."""

import csv
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clipgs.catalog.records import LABEL_COLUMNS, UID_PATTERN, UpAxis
from clipgs.config import Config
from clipgs.core.errors import ObjectError, UsageError
from clipgs.core.seeds import json_digest

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
COLUMNS = ("file", "uid", "category", "text", "license", "credit", "page", "group", "split")
# Other names of columns, tried in this order if the manifest has not ours and `columns:` names none.
_ALIASES = {
    "text": ("caption", "description", "name"),
    "license": ("licence",),
    "credit": ("author", "attribution"),
    "page": ("url",),
}
_CREDITS = re.compile(r"licen[cs]e|credit|author|attribution|copyright", re.IGNORECASE)
_NAMED_FILE_LIMIT_BYTES = 64 << 20  # a larger .gltf or .obj is hashed without the files that it names


class FolderSource:
    """See `Source`. A locator is the file's path relative to the folder, with forward slashes."""

    name = "folder"
    remote = False
    what = "mesh file"
    suffixes: tuple[str, ...] = SUFFIXES

    def __init__(self, config: Config) -> None:
        self._settings = getattr(config.catalog, self.name)
        if self._settings.path is None:
            raise UsageError(f"config: catalog.{self.name}.path is not set: name a folder or a glob of {self.what}s")

    # --- listing ---

    @cached_property
    def root(self) -> Path:
        """The folder that locators are relative to; for a glob, the part before the first wildcard."""
        path = Path(self._settings.path).expanduser()
        return path if path.is_dir() else Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))

    @cached_property
    def _files(self) -> list[str]:
        pattern = Path(self._settings.path).expanduser()
        if pattern.is_dir():
            found = _walk(pattern)
        elif glob.has_magic(str(pattern)):
            found = (Path(name) for name in glob.glob(str(pattern), recursive=True))
        else:
            raise UsageError(f"catalog.{self.name}.path: {pattern} is not a folder")
        files = (path for path in found if path.suffix.lower() in self.suffixes and not path.is_dir())
        return sorted(_text(path.relative_to(self.root)) for path in files)

    def locators(self) -> list[str]:
        if self._manifest is not None:
            return sorted(self._manifest)
        if not self._files:
            raise UsageError(f"{self._settings.path} holds no {self.what} ({' '.join(self.suffixes)})")
        return self._files

    def gone(self, known: list[str]) -> list[str]:
        here = set(self._files if self.root.is_dir() else ())
        return [locator for locator in known if locator not in here]

    def notes(self) -> list[str]:
        if self._manifest is None:
            return []
        notes = []
        if unlisted := len(set(self._files) - set(self._manifest)):
            notes.append(f"{unlisted} files in the folder are not in the manifest and are left out")
        if unused := self._columns[2]:
            notes.append(f"columns of the manifest that are not used: {', '.join(unused)}")
        return notes

    # --- manifest ---

    @cached_property
    def _columns(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Our name to the manifest's; columns that are added to the credit; columns not used."""
        header, mapped = self._table[0], {}
        for ours, theirs in self._settings.columns.items():
            key, manifest = f"config: catalog.{self.name}.columns.{ours}", self._settings.manifest
            if ours not in COLUMNS:
                raise UsageError(f"{key} is not one of {', '.join(COLUMNS)}")
            if theirs not in header:
                raise UsageError(f"{key} = {theirs}: {manifest} has no such column (it has {', '.join(header)})")
            mapped[ours] = theirs
        for ours in COLUMNS:
            for theirs in (ours, *_ALIASES.get(ours, ())):
                if ours not in mapped and theirs in header and theirs not in mapped.values():
                    mapped[ours] = theirs
        if "file" not in mapped:
            raise UsageError(f"{self._settings.manifest} has no column `file`: name it in catalog.{self.name}.columns")
        rest = [column for column in header if column not in mapped.values()]
        credits = [column for column in rest if _CREDITS.search(column)]
        return mapped, credits, [column for column in rest if column not in credits]

    @cached_property
    def _table(self) -> tuple[list[str], list[dict[str, str]]]:
        """Header and rows of the manifest."""
        path = Path(self._settings.manifest).expanduser()
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, restkey="")
                rows = list(reader)
                return [column for column in reader.fieldnames or [] if column], rows
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"catalog.{self.name}.manifest: {path}: {error}") from None

    @cached_property
    def _manifest(self) -> dict[str, dict[str, str | None]] | None:
        """Locator to our columns; None where there is no manifest."""
        if self._settings.manifest is None:
            return None
        mapped, credits, _ = self._columns
        entries: dict[str, dict[str, str | None]] = {}
        for line, row in enumerate(self._table[1], start=2):
            entry = {ours: (row.get(theirs) or "").strip() or None for ours, theirs in mapped.items()}
            extra = [f"{column}: {row[column].strip()}" for column in credits if (row.get(column) or "").strip()]
            if extra:
                entry["credit"] = "; ".join(filter(None, [entry.get("credit"), *extra]))
            place = f"{self._settings.manifest}, line {line}"
            if entry["file"] is None:
                raise UsageError(f"{place}: no file is named")
            if entry.get("split") not in (None, "train", "validation", "test"):
                raise UsageError(f"{place}: split is {entry['split']!r}; allowed: train, validation, test")
            locator = os.path.normpath(entry["file"])
            if locator in entries:
                raise UsageError(f"{place}: {locator} is listed twice")
            entries[locator] = entry
        if not entries:
            raise UsageError(f"{self._settings.manifest} lists no file")
        return entries

    # --- objects ---

    def identify(self, locator: str) -> dict[str, Any]:
        entry = (self._manifest or {}).get(locator, {})
        note = digest = None
        try:
            digest = _hash_with_named_files(self._locate(locator))
        except ObjectError as error:
            note = f"unreadable: {error}"
        uid = entry.get("uid")
        if uid is not None and not UID_PATTERN.fullmatch(uid):
            note, uid = f"the manifest's uid {uid!r} is not made of 1 to 64 letters, digits, _ and -", None
        uid = uid or (digest[:16] if digest else None) or path_uid(locator)
        return {"uid": uid, "sha256": digest, "group": entry.get("group"), "split": entry.get("split"), "note": note}

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        names = LABEL_COLUMNS[1:]
        if self._manifest is None:
            return [dict.fromkeys(names) | _labels_of_names(locator) for locator in locators]
        return [{name: self._manifest.get(locator, {}).get(name) for name in names} for locator in locators]

    def label_digest(self, locators: list[str]) -> str:
        if self._manifest is None:
            return ""
        return json_digest(self.labels(locators))[:16]

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self._locate(row["locator"])
        if _hash_with_named_files(path) != row["sha256"]:
            raise ObjectError(
                f"{row['locator']} has other bytes than when it was frozen; give the new file another name"
            )
        return path

    def path(self, row: dict[str, Any]) -> Path:
        return self.root / row["locator"]

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y" if row["locator"].lower().endswith((".glb", ".gltf")) else self._settings.up_axis

    def _locate(self, locator: str) -> Path:
        if locator.startswith(("../", "/")) or "\0" in locator:  # locators are normalised
            raise ObjectError(f"{locator} leads out of the folder")
        return self.root / locator


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


def _labels_of_names(locator: str) -> dict[str, str | None]:
    """Labels without a manifest: the folder's name is the category, else the file's name is the text."""
    path = Path(locator)
    category, text = (" ".join(re.split(r"[\s_.-]+", name)).strip() for name in (path.parent.name, path.stem))
    if any(character.isalpha() for character in category):
        return {"category": category}
    return {"text": text if any(character.isalpha() for character in text) else None}


def _text(path: Path) -> str:
    # A table cannot hold a name that is not UTF-8. Its escaped form is not found on disk, so it becomes a failed row.
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _hash_with_named_files(path: Path) -> str:
    """Hash of the file or, if it is a .gltf or .obj that names other files, of all their hashes."""
    digests: dict[Path, bytes] = {}
    pending = [path]
    while pending:
        current = pending.pop(0)
        if current in digests:
            continue
        try:
            with open(current, "rb") as file:
                digests[current] = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            if current == path:
                raise ObjectError(f"{error.strerror or error}") from None
            digests[current] = b"missing"  # the loader decides whether the object needs it
            continue
        pending += _named_files(current)
    if len(digests) == 1:
        return digests[path].hex()
    return hashlib.sha256(b"".join(digests.values())).hexdigest()


def _named_files(path: Path) -> list[Path]:
    if not path.is_file() or path.stat().st_size > _NAMED_FILE_LIMIT_BYTES:
        return []
    suffix = path.suffix.lower()
    names: list[str] = []
    if suffix == ".gltf":
        try:
            document = json.loads(path.read_bytes())
            parts = [*document.get("buffers", []), *document.get("images", [])]
            names = [unquote(part["uri"]) for part in parts if isinstance(part.get("uri"), str)]
        except (ValueError, AttributeError, TypeError, RecursionError):
            return []
    elif suffix in (".obj", ".mtl"):
        keyword = r"mtllib" if suffix == ".obj" else r"map_\w+|bump|disp"
        text = path.read_text(encoding="utf-8", errors="replace")
        names = re.findall(rf"^\s*(?:{keyword})[ \t]+(.*\S)", text, re.MULTILINE | re.IGNORECASE)
        if suffix == ".mtl":
            names = [name.split()[-1] for name in names]  # the options of a texture come before its name
    folder = path.parent.resolve()
    local = (name for name in names if not name.startswith("data:") and "://" not in name and "\0" not in name)
    return [file for file in ((folder / name).resolve() for name in local) if file.is_relative_to(folder)]
