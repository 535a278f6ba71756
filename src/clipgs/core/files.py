"""Files that are whole or not there.

Every file of the output is written under a temporary name in its own folder and renamed. Its size and hash go into a
sidecar, which the next reader verifies. It is hidden (`.NAME.check`), because libraries that load a folder take
`NAME.check` for data. Version 0.1.0 wrote `NAME.check`; it is still read, until the file is written again.
"""

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from clipgs.core.errors import ClipgsError, snakemake

_SIDECAR = ".check"


class Given(NamedTuple):
    """An argument as it was typed and, if it names a file, that file: a command may work in another folder."""

    text: str
    file: Path | None

    @classmethod
    def of(cls, text: str) -> "Given":
        path = Path(text)
        return cls(text, path.absolute() if path.is_file() else None)


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(path: Path) -> Path:
    """Where the sidecar of a file is written."""
    return path.with_name(f".{path.name}{_SIDECAR}")


def older_sidecar(path: Path) -> Path:
    """Where version 0.1.0 wrote the sidecar of a file."""
    return path.with_name(path.name + _SIDECAR)


def read_sidecar(path: Path) -> str | None:
    """The text of a file's sidecar, of either name; None without one."""
    for name in (sidecar(path), older_sidecar(path)):
        with suppress(FileNotFoundError):
            return name.read_text()
    return None


def remove_sidecar(path: Path) -> None:
    """Removes the sidecar of a file, of either name, if it has one."""
    for name in (sidecar(path), older_sidecar(path)):
        name.unlink(missing_ok=True)


def owner(path: Path) -> Path | None:
    """The file that `path` is the sidecar of; None if it is no sidecar."""
    if path.suffix != _SIDECAR:
        return None
    return path.with_name(path.name.removeprefix(".").removesuffix(_SIDECAR))


def hidden(path: Path, end: str) -> Path:
    """A hidden name beside a file, for what is not whole yet."""
    return path.with_name(f".{path.name.removeprefix('.')}.{end}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields an empty temporary file beside `path`. It is renamed to `path` if the block ends well, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden(path, f"{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        with open(temporary, "rb+") as file:
            if os.fstat(file.fileno()).st_mode != mode:  # safetensors puts a file there that only its owner may read
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # the folder itself may be what cannot be written
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """As `whole`, with a sidecar that `check` reads.

    Temporary files that a killed writer of the same file left are removed first. If that writer still lives (on another
    host), its rename fails and the newer file is kept.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)
    with whole(path) as temporary:
        yield temporary
        size, digest = temporary.stat().st_size, sha256_of(temporary)
        # Without its sidecar a file counts as unfinished, so a kill between the two renames is seen.
        remove_sidecar(path)
    with whole(sidecar(path)) as temporary:
        temporary.write_text(json.dumps({"bytes": size, "sha256": digest}) + "\n")


def check(path: Path) -> None:
    """Verifies a file of the output against its sidecar.

    A damaged one is set aside as `NAME.damaged`. Its sidecar stays: the next run sees that it is missing.

    Raises:
        ClipgsError: the file is missing, unfinished or damaged; the text names the command that makes it again.
    """
    reason = damage(path)
    if reason is None:
        return
    again = f"make it again with: {snakemake('--rerun-incomplete', path)}"
    if not path.exists():
        raise ClipgsError(f"{path} {reason}; {again}")
    damaged = path.with_name(path.name + ".damaged")
    os.replace(path, damaged)
    sidecar(path).touch()
    raise ClipgsError(f"{path} {reason}; it was set aside as {damaged.name}; {again}")


def damage(path: Path) -> str | None:
    """What is wrong with a file of the output, compared with its sidecar; None where it is whole. Changes nothing."""
    if not path.exists():
        return "is missing"
    try:
        expected = json.loads(read_sidecar(path) or "")
        size, digest = expected["bytes"], expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"has no readable {sidecar(path).name} beside it, so it may be unfinished"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    if sha256_of(path) != digest:
        return "does not have the bytes that were written"
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Writes one file whole, with its sidecar."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)
