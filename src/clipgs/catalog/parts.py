"""Unfinished downloads in the cache: hidden and locked until they are whole.

A file is written to a hidden `.NAME.part` in its folder, and renamed once its bytes are right, so a file with a final
name is whole. If the caller knows no hash, a sidecar keeps size and hash for later.

The part is also the lock: its writer holds `flock` on it. The kernel releases the lock when the process dies, so locks
are never stale, and the next process resumes the download (`.NAME.part.json` names the version). Hosts that share a
file system exclude each other if it supports locks (NFS, Lustre with `flock`, GPFS, BeeGFS). Otherwise two hosts may
download a file twice, and the result is still right: a part is written at fixed offsets and never shortened, and every
file is checked when a process first uses it.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from clipgs.core.errors import DISK_FULL
from clipgs.core.files import hidden, older_sidecar, sidecar

log = logging.getLogger(__name__)

_LOCK_POLL_SECONDS = 0.1
_LOG_WAITING_SECONDS = 10.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


class Version(NamedTuple):
    """The version of a file that a part is the beginning of."""

    validator: str  # strong ETag or Last-Modified
    bytes: int | None  # of the whole file
    sha256: str | None  # as the server announced it


class Part:
    """The bytes of a file that are downloaded so far, in a hidden file that is locked while open."""

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
        """Waits for other downloads of `target`, and yields its part, which may have bytes of an earlier try."""
        part = cls(target, _locked(_part_path(target)))
        try:
            yield part
        except OSError as error:
            if error.errno in DISK_FULL:
                part.restart()  # frees the space
            raise
        finally:
            if not part._published and part.size == 0:
                part._path.unlink(missing_ok=True)
                part._note.unlink(missing_ok=True)
            os.close(part._descriptor)

    def restart(self) -> None:
        """Empties the part. It becomes a new file, so that another host that still writes the old one does no harm."""
        fresh = self._path.with_name(f"{self._path.name}.{os.urandom(4).hex()}")
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _try_lock(descriptor)
        os.replace(fresh, self._path)
        os.close(self._descriptor)
        self._descriptor, self.size = descriptor, 0
        self._note.unlink(missing_ok=True)

    def begin(self, url: str, version: Version) -> None:
        """Notes which version of the file follows, for a later try. A note that is cut is ignored."""
        self._note.write_text(json.dumps({"url": _key(url), **version._asdict()}))

    def version(self, url: str) -> Version | None:
        """The version that `begin` noted for this URL."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            note = json.loads(self._note.read_text())
            if note.pop("url") == _key(url):
                return Version(**note)
        return None

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            written = os.pwrite(self._descriptor, view, self.size)
            self.size += written
            view = view[written:]

    def digest(self) -> str:
        """SHA-256 of the bytes on the disk."""
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        with open(self._descriptor, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def publish(self, digest: str, *, with_sidecar: bool) -> None:
        """Gives the part its final name. The sidecar is written first, so that our files never lack one."""
        os.fsync(self._descriptor)
        if with_sidecar:
            where = sidecar(self._target)
            temporary = _part_path(where)
            temporary.write_text(json.dumps({"bytes": self.size, "sha256": digest}) + "\n")
            os.replace(temporary, where)
            older_sidecar(self._target).unlink(missing_ok=True)
        try:
            self._note.unlink(missing_ok=True)  # first, so that no note is left if the process is killed in between
            os.replace(self._path, self._target)
        except FileNotFoundError:  # without locks another host may have done it
            if not os.path.samestat(os.fstat(self._descriptor), os.stat(self._target)):
                raise
        self._published = True


def _part_path(target: Path) -> Path:
    return hidden(target, "part")


def _locked(path: Path) -> int:
    """A descriptor of the file, which is created if it is missing, with its lock."""
    start, logged = time.monotonic(), False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # it was published after opening and before locking
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not logged and time.monotonic() - start > _LOG_WAITING_SECONDS:
            logged = True
            log.info("waiting for another process that downloads %s", path.name.removeprefix(".").removesuffix(".part"))
        time.sleep(_LOCK_POLL_SECONDS)


def _try_lock(descriptor: int) -> bool:
    # Not filelock: the lock is on the part itself, whose bytes must stay, and its descriptor is also used for writing.
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
