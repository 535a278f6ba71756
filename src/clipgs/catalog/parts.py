"""Files on their way into the cache: hidden and locked until they are whole.

A file arrives in a hidden `.NAME.part` beside its place and is renamed once its bytes are right, so what lies under a
final name is whole. Where the caller knows no hash, a `NAME.check` sidecar keeps size and hash for later use.

The part is also the lock: whoever writes it holds `flock` on it. The kernel lifts that when a process dies, however it
dies, so there is nothing stale to clear away, and what has arrived is resumed by the next comer (`.NAME.part.json`
remembers which version of the file it is). Hosts that share a file system exclude each other where it passes locks on
(NFS, Lustre with `flock`, GPFS, BeeGFS). Where it does not, two hosts may download a file twice, and the result is
still right: a part is written at fixed places and never shortened, and every file is checked when a process first uses
it.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from clipgs.core.errors import DISK_FULL
from clipgs.core.files import sidecar

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
_LOCK_POLL_SECONDS = 0.1
_SAY_WAITING_SECONDS = 10.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


class Version(NamedTuple):
    """Which version of a file a part holds the beginning of."""

    validator: str  # strong ETag or Last-Modified
    bytes: int | None  # of the whole file
    sha256: str | None  # as the server announced it


class Part:
    """The bytes of a file that have come so far, in a hidden file beside its place, locked while open."""

    def __init__(self, target: Path, descriptor: int) -> None:
        self._target = target
        self._path = _part_path(target)
        self._note = self._path.with_name(self._path.name + ".json")
        self._descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)
        self._published = False

    @classmethod
    @contextmanager
    def claimed(cls, target: Path) -> Iterator[Self]:
        """Waits until no one else fetches `target`, and yields its part, which may hold bytes of an earlier try."""
        part = cls(target, _locked(_part_path(target)))
        try:
            yield part
        except OSError as error:
            if error.errno in DISK_FULL:
                part.restart()  # gives the room back
            raise
        finally:
            if not part._published and part.size == 0:
                part._path.unlink(missing_ok=True)
                part._note.unlink(missing_ok=True)
            os.close(part._descriptor)

    def restart(self) -> None:
        """Empties the part. It becomes another file: whoever still writes the old one (see above) harms nothing."""
        fresh = self._path.with_name(f"{self._path.name}.{os.urandom(4).hex()}")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(descriptor)
        os.replace(fresh, self._path)
        os.close(self._descriptor)
        self._descriptor, self.size = descriptor, 0
        self._note.unlink(missing_ok=True)

    def begin(self, url: str, version: Version) -> None:
        """Notes which version of the file comes, for a later try."""
        self._note.write_text(json.dumps({"url": _key(url), **version._asdict()}))  # half a note is none

    def version(self, url: str) -> Version | None:
        """What `begin` noted, if it was of this URL."""
        try:
            note = json.loads(self._note.read_text())
            if note["url"] == _key(url):
                return Version(note["validator"], note["bytes"], note["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            written = os.pwrite(self._descriptor, view, self.size)
            self.size += written
            view = view[written:]

    def digest(self) -> str:
        """SHA-256 of what is on the disk."""
        digest, offset = hashlib.sha256(), 0
        while block := os.pread(self._descriptor, _BLOCK_BYTES, offset):
            digest.update(block)
            offset += len(block)
        return digest.hexdigest()

    def publish(self, digest: str, *, with_sidecar: bool) -> None:
        """Gives the part its final name; its sidecar comes first, so that a file without one is never ours."""
        os.fsync(self._descriptor)
        if with_sidecar:
            where = sidecar(self._target)
            temporary = _part_path(where)
            temporary.write_text(json.dumps({"bytes": self.size, "sha256": digest}) + "\n")
            os.replace(temporary, where)
        try:
            self._note.unlink(missing_ok=True)  # before, so that a kill between the two leaves nothing behind
            os.replace(self._path, self._target)
        except FileNotFoundError:  # where locks are not passed on, another host may have done it
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(self._target)):
                raise
        self._published = True


def _part_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _locked(path: Path) -> int:
    """A descriptor of the file, made if need be, with its lock."""
    start, said = time.monotonic(), False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # it was published between opening and locking
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not said and time.monotonic() - start > _SAY_WAITING_SECONDS:
            said = True
            log.info("waiting for another process that fetches %s", path.name.removeprefix(".").removesuffix(".part"))
        time.sleep(_LOCK_POLL_SECONDS)


def _try_lock(descriptor: int) -> bool:
    # Not filelock: the lock lies on the part itself, whose bytes are to stay and whose descriptor is written through.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()  # a URL may hold a signature
