"""Objects inside zip and tar files: their names, their hashes, and a copy of each in the cache.

An object is one member or, where that is a meta.json with pictures beside it, a zip file of these. Members are never
unpacked to the paths that they name: a copy has the name of its hash.
"""

import hashlib
import io
import json
import logging
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clipgs.catalog.named_files import META
from clipgs.catalog.sources.digests import state_of
from clipgs.core.errors import DISK_FULL, ObjectError
from clipgs.core.files import whole
from clipgs.core.seeds import canonical_json

log = logging.getLogger(__name__)

SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
_COMPRESSED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_BESIDE = (".webp", ".png", ".npz")  # what belongs to a meta.json
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)
_BLOCK_BYTES = 1 << 20

Entry = dict[str, Any]  # state of an archive; names of its objects; their hashes, once they are known


class Archives:
    """What was listed and hashed of archives is kept until they change, in a JSON file for each.

    Args:
        cache: the folder of these files and of the copies.
        suffixes: of members that are objects.
        max_bytes: of an object that is copied.
    """

    def __init__(self, cache: Path, suffixes: Collection[str], max_bytes: int) -> None:
        self._kept, self._copies = cache / "digests" / "archives", cache / "splats"
        self._suffixes, self._max_bytes = tuple(suffixes), max_bytes
        self._current: dict[Path, Entry] = {}  # those whose state was compared

    def names(self, archive: Path) -> list[str]:
        """Names of the objects, sorted; of an archive that is cut short, those that are found in it."""
        return self._entry(archive)["names"]

    def is_whole(self, archive: Path) -> bool:
        """Whether it could be listed to its end."""
        return self._entry(archive)["whole"]

    def digests(self, archive: Path) -> dict[str, str]:
        """SHA-256 of each object; without those that cannot be read."""
        entry = self._entry(archive)
        if "digests" not in entry:
            log.info("hashing the objects in %s", archive)
            entry["digests"] = found = {}
            with _as_far_as_it_goes(entry):
                for name, data in self._objects(archive, entry["names"]):
                    with _as_far_as_it_goes(entry):  # the others may be whole
                        found[name] = hashlib.file_digest(data, "sha256").hexdigest()  # type: ignore[arg-type]
            self._keep(archive, entry)
        return entry["digests"]

    def copy(self, archive: Path, name: str, sha256: str) -> Path:
        """The object's copy in the cache, which is made if it is not there.

        Raises:
            ObjectError: the archive has no such object, it is larger than the limit, or it has another hash.
        """
        path = self.place(name, sha256)
        if path.is_file():
            return path
        reason = "it is not there, or another object is"
        try:
            # A compressed tar is read from its beginning for each object, so all of them are copied at once.
            names = self.names(archive) if archive.name.lower().endswith(_COMPRESSED_TARS) else [name]
            hashes = self.digests(archive) if len(names) > 1 else {name: sha256}
            for found, data in self._objects(archive, names):
                if found in hashes:
                    try:
                        self._save(data, self.place(found, hashes[found]), hashes[found])
                    except ObjectError:  # another one's is told when that is asked for
                        if found == name:
                            raise
                if len(names) == 1:
                    break
        except _DAMAGED as error:
            if getattr(error, "errno", None) in DISK_FULL:
                raise
            reason = str(error)
        if not path.is_file():
            raise ObjectError(f"{name} cannot be read in {archive.name} any more: {reason}")
        return path

    def place(self, name: str, sha256: str) -> Path:
        """Where the copy of an object is."""
        suffix = ".zip" if _is_meta(name) else posixpath.splitext(name)[1].lower()
        return self._copies / sha256[:2] / f"{sha256}{suffix}"

    def _save(self, data: IO[bytes], path: Path, sha256: str) -> None:
        """Writes a copy, unless it turns out to have another hash."""
        digest, size = hashlib.sha256(), 0
        with suppress(_OtherBytesError), whole(path) as temporary, open(temporary, "wb") as file:
            while block := data.read(_BLOCK_BYTES):
                size += len(block)
                if size > self._max_bytes:
                    limit = f"meshes.max_file_mb is {self._max_bytes // 1_000_000}"
                    raise ObjectError(f"the file has more than {self._max_bytes // 1_000_000} MB, {limit}")
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != sha256:
                raise _OtherBytesError

    # --- listing ---

    def _entry(self, archive: Path) -> Entry:
        """What is known of an archive as it is now."""
        if archive not in self._current:
            about = {"state": state_of([archive]), "suffixes": [*self._suffixes]}
            entry: Entry = {}
            with suppress(OSError, ValueError):
                entry = json.loads(self._place_of_entry(archive).read_text())
            if not isinstance(entry, dict) or {key: entry.get(key) for key in about} != about:
                entry = {**about, "names": [], "whole": False}
                with _as_far_as_it_goes(entry):
                    for name, _, _ in _members(archive):
                        if self._is_object(name):
                            # A name that is not UTF-8 fits into no table. Escaped it is not found: a failed object.
                            escaped = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                            entry["names"].append(escaped)
                    entry["whole"] = True
                entry["names"] = sorted(set(entry["names"]))
                self._keep(archive, entry)
            self._current[archive] = entry
        return self._current[archive]

    def _place_of_entry(self, archive: Path) -> Path:
        name = hashlib.sha256(str(archive.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self._kept / f"{name}.json"

    def _keep(self, archive: Path, entry: Entry) -> None:
        if "unsure" not in entry:
            with suppress(OSError), whole(self._place_of_entry(archive)) as temporary:
                temporary.write_text(canonical_json(entry))

    def _is_object(self, name: str) -> bool:
        plain = posixpath.normpath(name) == name and not name.startswith(("/", "../"))
        shown = not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
        return plain and shown and (_is_meta(name) or name.lower().endswith(self._suffixes))

    # --- reading ---

    def _objects(self, archive: Path, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """Name and bytes of these objects, in the order of the archive."""
        pictures: dict[str, dict[str, bytes]] = {posixpath.dirname(name): {} for name in names if _is_meta(name)}
        wanted = {name for name in names if not _is_meta(name)}
        for name, size, opened in _members(archive):
            folder = posixpath.dirname(name)
            beside = folder in pictures and (_is_meta(name) or name.lower().endswith(_BESIDE))
            if name not in wanted and not (beside and size <= self._max_bytes):
                continue
            data = None
            with suppress(*_DAMAGED):
                data = opened()
            if data is not None and name in wanted:
                yield name, data
            elif data is not None:
                with suppress(*_DAMAGED):
                    pictures[folder][posixpath.basename(name)] = data.read()
        for folder, files in pictures.items():
            if META in files:
                yield posixpath.join(folder, META), io.BytesIO(_bundle(files))


@contextmanager
def _as_far_as_it_goes(entry: Entry) -> Iterator[None]:
    """Ends the block where an archive is damaged. What a disk or a network failed to give is not kept."""
    try:
        yield
    except _DAMAGED as error:
        if getattr(error, "errno", None) is not None:
            entry["unsure"] = True


class _OtherBytesError(Exception):
    """An object has another hash than the one that was asked for."""


def _is_meta(name: str) -> bool:
    return posixpath.basename(name) == META


def _bundle(files: dict[str, bytes]) -> bytes:
    """A zip file of pictures; equal files give equal bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in sorted(files.items()):
            bundle.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _members(archive: Path) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
    """Name, size and opener of each file in a zip or a tar. A tar's must be opened before the next one is asked for.

    Raises:
        _DAMAGED: it cannot be read.
    """
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: bundle.open(info)  # type: ignore[misc]
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isreg() and not member.issparse():  # a sparse one may claim any number of zeros
                name = member.name.removeprefix("./")
                yield name, member.size, lambda member=member: tar.extractfile(member)  # type: ignore[misc]
