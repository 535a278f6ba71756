"""Hashes of objects' files: kept in the cache, and held against the frozen ones where a stage reads a file."""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import cached_property
from html import unescape
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from clipgs.catalog.named_files import (
    META,
    NamedFiles,
    decoded,
    file_of_uri,
    picture_files,
    picture_names,
    several,
    spellings,
)
from clipgs.core.errors import ObjectError, snakemake
from clipgs.core.files import sha256_of, whole
from clipgs.core.processes import usable_cores
from clipgs.core.runner import Progress
from clipgs.core.seeds import canonical_json

log = logging.getLogger(__name__)

_NAMED_FILE_LIMIT_BYTES = 64 << 20  # a larger .gltf or .obj is hashed without the files that it names
_MANY_FILES, _MANY_BYTES = 1000, 1 << 30  # hashing more of them takes so long that it is logged
_PLY_HEADER_BYTES = 1 << 16  # at least those of its comments
_WITH_PICTURES = (".mtl", ".ply", ".dae", ".usd", ".usda")
_SEARCH = 2  # how named files are looked for; hashes that were kept before it are of fewer files
_RECENT_NS = 2_000_000_000  # a file may be written twice in one step of a file system's clock

State = list[list[int] | None]


def state_of(files: Iterable[Path | str]) -> State:
    """Size of each file, and when its bytes and its entry changed, in ns; None for one that is not there.

    Archives give files of one size one time, which they keep where one replaces another: only the entry tells then.
    """
    found: State = []
    for file in files:
        try:
            stat = os.stat(file)
            found.append([stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
        except (OSError, ValueError):
            found.append(None)
    return found


def with_named_files(path: Path, root: Path | None = None) -> list[Path]:
    """The file and, if it is of a kind that names files, those that it names, directly or through others.

    They are those that it names in its own folder, whether they are there or not, and those that
    `NamedFiles` finds elsewhere, below `root` if one is given.
    """
    found: dict[Path, Path] = {}  # by the resolved path, since named files are resolved
    pending = [path]
    while pending:
        current = pending.pop(0)
        if current.resolve() not in found:
            found[current.resolve()] = current
            names, statements = _names(current)
            folder = current.parent.resolve()
            local = (name for name in names if not name.startswith("data:") and "://" not in name and "\0" not in name)
            inside = [file for file in ((folder / name).resolve() for name in local) if file.is_relative_to(folder)]
            pending += inside + _elsewhere(current, statements, path, root)
    return list(found.values())


def _names(path: Path) -> tuple[list[str], list[str]]:
    """The names of files in a .gltf, .obj, .mtl, .ply, .dae or .usda; and, of files with colours, with the options."""
    suffix = path.suffix.lower()
    try:
        if not path.is_file():
            return [], []
        if suffix == ".ply":
            with path.open("rb") as file:
                head = decoded(file.read(_PLY_HEADER_BYTES).partition(b"end_header")[0]).replace("\r", "\n")
            names = re.findall(r"^comment\s+texturefile\s+(.*\S)", head, re.MULTILINE | re.IGNORECASE)
            return names, names
        if path.stat().st_size > _NAMED_FILE_LIMIT_BYTES:
            return [], []
        if suffix == ".gltf":
            document = json.loads(path.read_bytes())
            parts = [*document.get("buffers", []), *document.get("images", [])]
            names = [unquote(part["uri"]) for part in parts if isinstance(part.get("uri"), str)]
            return names, names
        if path.name == META:
            return picture_files(json.loads(path.read_bytes())), []
        if suffix in (".obj", ".mtl"):
            keyword = r"mtllib" if suffix == ".obj" else r"map_\w+|bump|disp"
            text = decoded(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")
            text = text.replace("\\\n", " ") if suffix == ".obj" else text
            pairs = re.findall(rf"^\s*({keyword})[ \t]+(.*\S)", text, re.MULTILINE | re.IGNORECASE)
            statements = [name for key, name in pairs if key.lower() in ("mtllib", "map_kd", "map_d", "map_ke")]
            # The options of a texture come before its name.
            return [name.split()[-1] if suffix == ".mtl" else name for _, name in pairs], statements
        if suffix == ".dae":
            uris = re.findall(r"<(?:\w+:)?init_from\b[^>]*>(?:\s*<(?:\w+:)?ref>)?([^<]+)<", decoded(path.read_bytes()))
            names = [unquote(file_of_uri(unescape(uri).strip())) for uri in uris]
            return names, names
        if suffix in (".usd", ".usda"):  # the names in binary ones are packed
            data = path.read_bytes()
            names = re.findall(r"@([^@\n]+)@", decoded(data)) if data.startswith(b"#usda") else []
            return names, names
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        pass
    return [], []


def _elsewhere(current: Path, statements: list[str], path: Path, root: Path | None) -> list[Path]:
    """The files that `current`, a file of the object `path`, names, but that lie where no name says."""
    found: list[Path] = []
    beside = current.parent.resolve()
    suffix = current.suffix.lower()
    for statement in dict.fromkeys(statements):
        plain = suffix != ".mtl" or " " not in statement.strip()  # the last word alone is among the names
        if statement.startswith("data:") or (plain and _is_beside(beside, statement)):
            continue
        folder = NamedFiles(path, root)
        spelt = [picture_names(statement) if suffix == ".mtl" else spellings(statement)]
        if suffix == ".obj" and folder.find(*spelt[0], beside=beside) is None:
            spelt = [spellings(word) for word in several(statement)]
        files = (folder.find(*names, beside=beside, picture=suffix in _WITH_PICTURES) for names in spelt if names)
        found += filter(None, files)
    return found


def _is_beside(folder: Path, name: str) -> bool:
    with suppress(OSError, ValueError, RuntimeError):
        return (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder)
    return False


def digest_of(files: list[Path]) -> str:
    """SHA-256 of the first file or, if it names others, of the hashes of all; 64 hex digits.

    Raises:
        ObjectError: the first file cannot be read. The loader decides whether the object needs the others.
    """
    digests = []
    for file in files:
        try:
            digests.append(bytes.fromhex(sha256_of(file)))
        except (OSError, ValueError) as error:
            if not digests:
                raise ObjectError(f"{getattr(error, 'strerror', None) or error}") from None
            digests.append(b"missing")
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


class _HasFiles(Protocol):
    """The part of a source that is needed here."""

    def all_files(self, row: dict[str, Any]) -> list[Path]: ...

    def elsewhere(self, row: dict[str, Any]) -> list[Path]: ...


def _found(files: list[Path]) -> tuple[State, str | None]:
    """The state of the files, and their hash; None if the first is not there."""
    state = state_of(files)
    return state, None if state[0] is None else digest_of(files)


@contextmanager
def unchanged(
    objects: _HasFiles,
    row: dict[str, Any],  # frozen
    sha256: str,  # of `meshes/S.parquet`: the frozen hash or, where none is frozen, that of the fetched file
) -> Iterator[Path]:
    """Yields an object's file for the block to load. It is the frozen one before and after the block.

    Raises:
        ObjectError: the file, or one that it names, has gone or changed.
    """
    name, files = row["locator"], objects.all_files(row)
    before, digest = _found(files)
    if digest != sha256 and (moved := objects.elsewhere(row)):
        files = moved
        before, digest = _found(files)
    since, hint = "since it was frozen", ""
    if row["sha256"] is None:
        since, hint = "since it was fetched", f"; fetch it again with: {snakemake('triplets', '--forcerun', 'fetch')}"
    if digest is None:
        raise ObjectError(f"{name} has gone {since}: there is no file {files[0]}{hint}")
    if digest != sha256:
        raise ObjectError(f"{name} has changed {since}: {files[0]} holds another object now{hint}")
    failure = None
    try:
        yield files[0]
    except Exception as error:
        failure = error
    if state_of(files) != before:
        raise ObjectError(f"{name} has changed {since}: it was replaced while it was read{hint}") from failure
    if failure is not None:
        raise failure


class Digests:
    """Hashes of files, kept in a JSON file with the sizes and times that the files had.

    A file is hashed again only if its size or times differ, or those of a file that it names. A kept file that cannot
    be read or written costs time only.
    """

    def __init__(self, kept: Path, root: Path | None = None) -> None:
        self._kept, self._root = kept, root
        self._changed = False

    @cached_property
    def _entries(self) -> dict[str, Any]:
        """Path to SHA-256, and to path and state of each file that it is of."""
        with suppress(OSError, ValueError):
            found = json.loads(self._kept.read_text())
            if isinstance(found, dict):
                return found
        return {}

    def _known(self, path: str) -> str | None:
        with suppress(KeyError, ValueError, TypeError):
            digest, files, *searched = self._entries[path]
            if path.lower().endswith((".obj", ".gltf", ".ply", ".dae", ".usd", ".usda")) and searched != [_SEARCH]:
                return None
            if state_of(name for name, _ in files) == [state for _, state in files]:
                return str(digest)
        return None

    def of(self, path: Path) -> str:
        """The hash of a file with the files that it names, as `digest_of`.

        Raises:
            ObjectError: the file cannot be read.
        """
        path = path.absolute()
        digest = self._known(str(path))
        if digest is not None:
            return digest
        now, files = time.time_ns(), with_named_files(path, self._root)
        before = state_of(files)
        digest = digest_of(files)
        latest = max((state[1] for state in before if state is not None), default=now)
        if state_of(files) == before and latest < now - _RECENT_NS:
            states = [[str(file), state] for file, state in zip(files, before, strict=True)]
            self._entries[str(path)] = [digest, states, _SEARCH]
            self._changed = True
        return digest

    def of_all(self, paths: list[Path]) -> list[str | None]:
        """As `of`, of several files at once; None for one that cannot be read. Keeps what was hashed."""
        found = {path: self._known(str(path.absolute())) for path in paths}
        unknown = [path for path, digest in found.items() if digest is None]
        size = sum(state[0] for state in state_of(unknown) if state is not None)
        progress = None
        if len(unknown) > _MANY_FILES or size > _MANY_BYTES:
            log.info("hashing %d files (%.1f GB), to see which have changed", len(unknown), size / 1e9)
            progress = Progress("hashing", len(unknown), "file")

        def hashed(path: Path) -> str | None:
            try:
                return self.of(path)
            except ObjectError:
                return None

        with ThreadPoolExecutor(usable_cores()) as pool, closing(progress) if progress else nullcontext():
            for path, digest in zip(unknown, pool.map(hashed, unknown), strict=True):
                found[path] = digest
                if progress:
                    progress.step()
        self._save()
        return [found[path] for path in paths]

    def holder(self, sha256: str) -> Path | None:
        """Another file with these bytes, if one was hashed and is unchanged."""
        for path, entry in list(self._entries.items()):
            if isinstance(entry, list) and entry[:1] == [sha256] and self._known(path) == sha256:
                return Path(path)
        return None

    def _save(self) -> None:
        if self._changed:
            with suppress(OSError), whole(self._kept) as temporary:
                temporary.write_text(canonical_json(self._entries))
            self._changed = False
