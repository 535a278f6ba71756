"""A folder (or glob) of mesh files, with an optional manifest of labels."""

import csv
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clipgs.catalog.records import UID_PATTERN, UpAxis
from clipgs.config import Config
from clipgs.core.errors import ObjectError, UsageError
from clipgs.core.seeds import canonical_json

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
COLUMNS = ("file", "uid", "category", "text", "license", "credit", "page", "group", "split")
# Other spellings, tried in this order where neither our name nor `columns:` names one.
_ALIASES = {
    "text": ("caption", "description", "name"),
    "license": ("licence",),
    "credit": ("author", "attribution"),
    "page": ("url",),
}
_NEVER_LOST = re.compile(r"licen[cs]e|credit|author|attribution|copyright", re.IGNORECASE)
_NAMED_FILE_LIMIT_BYTES = 64 << 20  # a .gltf or .obj is text; a larger one is hashed without the files it names


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
        """The folder that locators are relative to: of a glob, the part before the first wildcard."""
        path = Path(str(self._settings.path)).expanduser()
        if path.is_dir() or not glob.has_magic(str(path)):
            return path
        fixed = [part for part in path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]]
        return Path(*fixed) if fixed else Path(".")

    @cached_property
    def _files(self) -> list[str]:
        pattern = Path(str(self._settings.path)).expanduser()
        if pattern.is_dir():
            found = _walk(pattern)
        elif glob.has_magic(str(pattern)):
            found = (Path(name) for name in glob.glob(str(pattern), recursive=True))
        else:
            raise UsageError(f"catalog.{self.name}.path: {pattern} is not a folder")
        return sorted(
            _text(path.relative_to(self.root))
            for path in found
            if path.suffix.lower() in self.suffixes and not path.is_dir()
        )

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
        notes = []
        if self._manifest is not None:
            unlisted = len(set(self._files) - set(self._manifest))
            if unlisted:
                notes.append(f"{unlisted} files in the folder are not in the manifest and are left out")
            if self._unused:
                notes.append(f"columns of the manifest that are not used: {', '.join(self._unused)}")
        return notes

    # --- manifest ---

    @cached_property
    def _columns(self) -> tuple[dict[str, str], list[str], list[str]]:
        """Our name: the manifest's; columns kept with the credit; columns not used."""
        header = self._header
        mapped = {}
        for ours, theirs in self._settings.columns.items():
            if ours not in COLUMNS:
                raise UsageError(f"config: catalog.{self.name}.columns.{ours} is not one of {', '.join(COLUMNS)}")
            if theirs not in header:
                raise UsageError(
                    f"config: catalog.{self.name}.columns.{ours} = {theirs}: {self._settings.manifest} has no such"
                    f" column (it has {', '.join(header)})"
                )
            mapped[ours] = theirs
        for ours in COLUMNS:
            for theirs in (ours, *_ALIASES.get(ours, ())):
                if ours not in mapped and theirs in header and theirs not in mapped.values():
                    mapped[ours] = theirs
        if "file" not in mapped:
            raise UsageError(f"{self._settings.manifest} has no column `file`: name it in catalog.{self.name}.columns")
        rest = [column for column in header if column not in mapped.values()]
        kept = [column for column in rest if _NEVER_LOST.search(column)]
        return mapped, kept, [column for column in rest if column not in kept]

    @cached_property
    def _table(self) -> tuple[list[str], list[dict[str, str]]]:
        path = Path(str(self._settings.manifest)).expanduser()
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, restkey="")
                rows = list(reader)
                return [column for column in reader.fieldnames or [] if column], rows
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"catalog.{self.name}.manifest: {path}: {error}") from None

    @property
    def _header(self) -> list[str]:
        return self._table[0]

    @property
    def _unused(self) -> list[str]:
        return self._columns[2]

    @cached_property
    def _manifest(self) -> dict[str, dict[str, str | None]] | None:
        """Locator to our columns; None where there is no manifest."""
        if self._settings.manifest is None:
            return None
        mapped, kept, _ = self._columns
        entries: dict[str, dict[str, str | None]] = {}
        for line, row in enumerate(self._table[1], start=2):
            entry = {ours: (row.get(theirs) or "").strip() or None for ours, theirs in mapped.items()}
            extra = [f"{column}: {row[column].strip()}" for column in kept if (row.get(column) or "").strip()]
            if extra:
                credit = entry.get("credit")
                entry["credit"] = "; ".join([credit, *extra] if credit else extra)
            if entry["file"] is None:
                raise UsageError(f"{self._settings.manifest}, line {line}: no file is named")
            if entry.get("split") not in (None, "train", "validation", "test"):
                raise UsageError(
                    f"{self._settings.manifest}, line {line}: split is {entry['split']!r}; "
                    "allowed: train, validation, test"
                )
            locator = os.path.normpath(entry["file"]).replace(os.sep, "/")
            if locator in entries:
                raise UsageError(f"{self._settings.manifest}, line {line}: {locator} is listed twice")
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
        names = ("category", "text", "license", "credit", "page")
        if self._manifest is None:
            return [dict.fromkeys(names) | _labels_of_names(locator) for locator in locators]
        return [{name: self._manifest.get(locator, {}).get(name) for name in names} for locator in locators]

    def label_digest(self, locators: list[str]) -> str:
        if self._manifest is None:
            return ""
        return hashlib.sha256(canonical_json(self.labels(locators)).encode()).hexdigest()[:16]

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self._locate(row["locator"])
        if _hash_with_named_files(path) != row["sha256"]:
            raise ObjectError(
                f"{row['locator']} has other bytes than when it was frozen; give the new file a name of its own"
            )
        return path

    def path(self, row: dict[str, Any]) -> Path:
        return self.root / row["locator"]

    def up_axis(self, row: dict[str, Any]) -> UpAxis:
        return "y" if row["locator"].lower().endswith((".glb", ".gltf")) else self._settings.up_axis

    def _locate(self, locator: str) -> Path:
        path = self.root / locator
        if locator.startswith(("../", "/")) or "\0" in locator:  # locators are normalised
            raise ObjectError(f"{locator} leads out of the folder")
        return path


def path_uid(locator: str) -> str:
    """The uid of a file that cannot be told by its bytes: marked, and never that of another file."""
    return "path-" + hashlib.sha256(locator.encode()).hexdigest()[:16]


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()  # a link to a folder above would be walked for ever
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        yield from (Path(parent, name) for name in names if name[0] != ".")


def _labels_of_names(locator: str) -> dict[str, str | None]:
    """What the names say where nothing else does: the folder's is the category, else the file's is the text."""
    path = Path(locator)
    category, text = (" ".join(re.split(r"[\s_.-]+", name)).strip() for name in (path.parent.name, path.stem))
    if any(character.isalpha() for character in category):
        return {"category": category}
    return {"text": text if any(character.isalpha() for character in text) else None}


def _text(path: Path) -> str:
    # A name that is not UTF-8 cannot stand in a table; its escaped form is not found on disk and becomes a failed row.
    return path.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _hash_with_named_files(path: Path) -> str:
    """Hash of the file or, where a .gltf or .obj names files beside it, of all their hashes."""
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
            digests[current] = b"missing"  # the loader says what that means for the object
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
        names = [
            match.split()[-1] if suffix == ".mtl" else match
            for match in re.findall(rf"^\s*(?:{keyword})[ \t]+(.*\S)", text, re.MULTILINE | re.IGNORECASE)
        ]
    folder = path.parent.resolve()
    found = []
    for name in names:
        if name.startswith("data:") or "://" in name or "\0" in name:
            continue
        candidate = (folder / name).resolve()
        if candidate.is_relative_to(folder):
            found.append(candidate)
    return found
