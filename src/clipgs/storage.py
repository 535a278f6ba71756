"""Files that are whole or not there, with the same bytes every time they are made.

Every file of the output is written under a temporary name in its own folder and renamed; its size and hash go into a
sidecar (`NAME.check`) that the next reader verifies. Tables are parquet, bundles are tar, arrays are npz, each written
without times, owners or hosts. A `Journal` keeps the finished objects of a shard while its stage still runs.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

_HASH_BLOCK_BYTES = 1 << 20
SIDECAR = ".check"
UID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ClipgsError(Exception):
    """The run cannot go on (configuration, disk, a damaged file). Its text is one line for the person who reads it."""


class UsageError(ClipgsError):
    """The command or the configuration is wrong: exit code 2."""


class ObjectError(Exception):
    """One object's own fault. Its text is one plain sentence, and becomes the error of the object's row."""


def describe_error(error: BaseException) -> str:
    """`Class: first sentence`, as it stands in a row of a table."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


# --- whole files -----------------------------------------------------------------------------------------------------


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR)


def _replace(path: Path, temporary: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that becomes `path` if the block ends well, and goes if it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")
    try:
        yield temporary
        _replace(path, temporary)
    finally:
        with suppress(OSError):  # the folder itself may be what cannot be written
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """As `whole`, with a sidecar that `check` reads.

    What a killed writer of the same file left behind is removed first; should that writer still live (an orphan on
    another host), its rename fails and the newer file stands.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob_escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)
    with whole(path) as temporary:
        yield temporary
        size, digest = temporary.stat().st_size, sha256_of(temporary)
        # Without its sidecar a file counts as unfinished, so a kill between the two renames is seen.
        _sidecar(path).unlink(missing_ok=True)
    with whole(_sidecar(path)) as temporary:
        temporary.write_text(json.dumps({"bytes": size, "sha256": digest}) + "\n")


def glob_escape(name: str) -> str:
    """`name` as a glob pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", name)


def check(path: Path) -> None:
    """Verifies a file of the output against its sidecar.

    A damaged one is set aside as `NAME.damaged`, so that the next run makes it again.

    Raises:
        ClipgsError: the file is missing, unfinished or damaged; the text names the command that makes it again.
    """
    path = Path(path)
    again = f"make it again with: snakemake --rerun-incomplete {path}"
    reason = damage(path)
    if reason is None:
        return
    if not path.exists():
        raise ClipgsError(f"{path} {reason}; {again}")
    damaged = path.with_name(path.name + ".damaged")
    os.replace(path, damaged)
    _sidecar(path).unlink(missing_ok=True)
    raise ClipgsError(f"{path} {reason}; it was set aside as {damaged.name}; {again}")


def damage(path: Path) -> str | None:
    """What is wrong with a file of the output, held against its sidecar; None where it is whole. Changes nothing."""
    if not path.exists():
        return "is missing"
    try:
        expected = json.loads(_sidecar(path).read_text())
        size, digest = expected["bytes"], expected["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "has no readable .check file beside it, so it may be unfinished"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    if sha256_of(path) != digest:
        return "does not have the bytes that were written"
    return None


def write_bytes(path: Path, data: bytes) -> None:
    """Writes one file whole, with its sidecar."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


# --- tables, bundles, arrays -----------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    """Writes rows as parquet with fixed settings: equal rows give equal bytes.

    `schema` is a `pyarrow.Schema`; a missing key is null, an unknown one is an error.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise ValueError(f"columns {sorted(unknown)} are not in the schema of {path}")
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads a parquet table as a list of rows."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True).read(columns=columns).to_pylist()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class TarWriter:
    """Writes a tar whose bytes depend on its members alone; it appears whole or not at all.

    Use as a context manager; members stand in the order in which they are added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(atomic(self._path))
        self._tar = self._stack.enter_context(tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT))
        return self

    def add(self, name: str, data: bytes) -> None:
        """Adds one member."""
        _add(self._tar, name, data)

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


class Members(NamedTuple):
    """Where one object's files lie in a tar: enough for a worker to read them without an index of its own."""

    path: str
    entries: tuple[tuple[str, int, int], ...]  # name, offset, bytes

    def read(self) -> dict[str, bytes]:
        """Name to bytes, in the order of the tar."""
        with open(self.path, "rb") as file:
            found = {}
            for name, offset, size in self.entries:
                file.seek(offset)
                found[name] = file.read(size)
            return found

    def digest(self) -> str:
        """Hash of names and bytes."""
        digest = hashlib.sha256()
        for name, data in self.read().items():
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()


def tar_objects(path: Path) -> dict[str, Members]:
    """Uid to its members, of a tar whose names are `UID/NAME` or `UID.EXTENSION`; the uid is cut from the names."""
    entries: dict[str, list[tuple[str, int, int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            uid, name = re.split(r"[/.]", info.name, maxsplit=1)
            entries.setdefault(uid, []).append((name, info.offset_data, info.size))
            tar.members = []  # keeps no list of what is behind
    return {uid: Members(str(path), tuple(found)) for uid, found in entries.items()}


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (name, bytes) of each member in the order of the file."""
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            yield info.name, tar.extractfile(info).read()  # type: ignore[union-attr]


def write_arrays(path: Path, arrays: Iterable[tuple[str, Any]]) -> None:
    """Writes (name, array) pairs as an uncompressed npz, one at a time, with equal bytes for equal arrays."""
    import numpy as np

    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as bundle:
        for name, array in arrays:
            with bundle.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def write_safetensors(path: Path, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    """Writes named numpy arrays as safetensors. The package's own writer orders the metadata by chance; here equal
    contents give equal bytes.

    Args:
        arrays: float16, float32, int64 or uint8, contiguous or not; names in the order of the file.
    """
    import numpy as np

    types = {"float16": "F16", "float32": "F32", "int64": "I64", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": types[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


# --- seeds and settings ----------------------------------------------------------------------------------------------


def seed_of(seed: int, *parts: str) -> int:
    """A 64-bit seed that depends on the configured seed and on `parts` (stage, uid) alone."""
    digest = hashlib.sha256("\0".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


# --- journals --------------------------------------------------------------------------------------------------------


class Journal:
    """Finished objects of one shard and stage, kept until the shard's file is assembled.

    An entry is keyed by uid, inputs and settings, so that after a kill what is done is taken and nothing stale is.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder = Path(folder)
        self._settings = settings

    def key(self, inputs: str) -> str:
        """Names what an object was made of: the same inputs and settings give the same 20 hex digits."""
        return hashlib.sha256(f"{self._settings}\0{inputs}".encode()).hexdigest()[:20]

    def _path(self, uid: str, inputs: str) -> Path:
        return self.folder / f"{uid}.{self.key(inputs)}.tar"

    def put(self, uid: str, inputs: str, row: dict[str, Any], members: Iterable[tuple[str, bytes]]) -> None:
        """Keeps one finished object: its row and its files."""
        with whole(self._path(uid, inputs)) as temporary, tarfile.open(temporary, "w") as tar:
            for name, data in [("row.json", json.dumps(row).encode()), *members]:
                _add(tar, name, data)

    def get(self, uid: str, inputs: str) -> tuple[dict[str, Any], list[tuple[str, bytes]]] | None:
        """The object's row and files, or None where it is not finished."""
        path = self._path(uid, inputs)
        try:
            (_, row), *members = read_tar(path)
            return json.loads(row), members
        except FileNotFoundError:
            return None
        except (tarfile.TarError, ValueError):
            path.unlink()  # a power cut may leave an empty file under a final name
            return None

    def __contains__(self, key: tuple[str, str]) -> bool:
        return self._path(*key).exists()

    def clear(self) -> None:
        """Removes the journal, once the shard's own files hold what it held."""
        shutil.rmtree(self.folder, ignore_errors=True)
