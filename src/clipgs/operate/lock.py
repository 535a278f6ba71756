"""One run at a time over an output, from any folder or host. Imports nothing heavy."""

import fcntl
import getpass
import json
import os
import socket
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from clipgs.core.errors import ClipgsError


# Not filelock: its older versions empty the file, which names the holder, when they only ask for the lock. And `holder`
# asks with a shared lock, which filelock does not have.
class OutputLock(AbstractContextManager):
    """Holds an output for as long as the process lives: a lock of the operating system, which a kill releases.

    The file names the holder. Where a file system keeps locks on one host, the name shows a run on another host.

    Raises:
        ClipgsError: another run holds the output; the text names it.
    """

    def __init__(self, output: Path) -> None:
        path = lock_path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+")  # noqa: SIM115 (held until `release`)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = _read(path).get("host") in (None, socket.gethostname())
        except OSError:
            free = False
        if not free:
            self._file.close()
            raise ClipgsError(
                f"{output} is in use by another run ({describe(_read(path))}); wait for it or stop it. "
                f"If that host is gone for good, remove {path}"
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._write({"user": _user(), "host": socket.gethostname(), "process": os.getpid(), "since": since})

    def release(self) -> None:
        """Releases the output."""
        if not self._file.closed:
            self._write({})
            self._file.close()

    def _write(self, holder: dict[str, Any]) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(holder) + "\n" if holder else "")
        self._file.flush()

    def __exit__(self, *exception: Any) -> None:
        self.release()


def lock_path(output: Path) -> Path:
    """The file that names the run which works on an output."""
    return output / "run.lock"


def holder(output: Path) -> dict[str, Any] | None:
    """User, host, process and start of the run that holds the output; None where none does. Changes nothing."""
    path = lock_path(output)
    found = _read(path)
    if not found or found.get("host") != socket.gethostname():
        return found or None
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return found
    return None  # it was killed


def describe(found: dict[str, Any]) -> str:
    """`ada on login1, process 4711, since 2026-01-31 08:00`."""
    return "{user} on {host}, process {process}, since {since}".format_map(defaultdict(lambda: "?", found))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
