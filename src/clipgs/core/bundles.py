"""Tables (parquet), tars and arrays (npz, safetensors): the same contents give the same bytes.

No file holds a time, an owner or a host.
"""

import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from clipgs.core.errors import ClipgsError
from clipgs.core.files import atomic, whole
from clipgs.core.seeds import canonical_json

_METADATA = "clipgs"  # the key under which a file of tensors keeps all of its metadata


def write_table(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    """Writes rows as parquet with fixed settings: equal rows give equal bytes.

    `schema` is a `pyarrow.Schema`; a missing key is null, an unknown one is an error.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if unknown := {key for row in rows for key in row} - set(schema.names):
        raise ValueError(f"columns {sorted(unknown)} are not in the schema of {path}")
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")


def read_table(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads a parquet table as a list of rows."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True).read(columns=columns).to_pylist()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


class TarWriter:
    """Writes a tar whose bytes depend on its members alone; it appears whole or not at all.

    Use as a context manager; members keep the order in which they are added.
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
        add_member(self._tar, name, data)

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)


class Members(NamedTuple):
    """The places of one object's files in a tar: a worker reads them without an index of its own."""

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

    def one(self, index: int) -> bytes:
        """The bytes of one file, by its place."""
        return next(iter(self._replace(entries=(self.entries[index],)).read().values()))

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
            # Keeps no list of the members that were read; the standard library's stubs leave this attribute out.
            tar.members = []  # type: ignore[attr-defined]
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


def write_tensors(
    path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, Any] | None = None, *, checksum: bool = True
) -> None:
    """Writes named arrays as safetensors, whole; equal contents give equal bytes.

    Args:
        arrays: of numpy, or tensors on the CPU that need no gradient.
        metadata: values of JSON. They are kept under one key: safetensors writes several keys in a random order.
        checksum: whether the file gets a sidecar, as all files of the output but training states do.
    """
    import numpy as np
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with (atomic if checksum else whole)(path) as temporary:
        save_file(contiguous, temporary, None if metadata is None else {_METADATA: canonical_json(metadata)})


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `write_tensors` wrote; empty where there is none.

    Older files have one key a value; all of these are text, and `uids` is JSON.

    Raises:
        ClipgsError: the file is no safetensors, or is cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            stored = file.metadata() or {}
        if _METADATA in stored:
            return json.loads(stored[_METADATA])
        return {key: json.loads(value) if key == "uids" else value for key, value in sorted(stored.items())}
    except (OSError, SafetensorError, ValueError) as error:
        raise ClipgsError(f"{path} cannot be read ({error}); remove it, and the next run makes it again") from None


class Mapped(NamedTuple):
    """A tensor in a mapped file: the operating system reads its pages when they are used."""

    array: Any
    map: Any  # `mmap.mmap`
    offset: int  # of the array in the map, in bytes


def map_tensor(path: Path, name: str) -> Mapped:
    """A float16 or float32 tensor of a file of safetensors, without reading it.

    Raises:
        ClipgsError: the file is no safetensors, or has no such tensor of these types.
    """
    import mmap

    import numpy as np

    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = 8 + int.from_bytes(mapped[:8], "little")
        about = json.loads(mapped[8:size])[name]
        kind, shape = {"F16": "<f2", "F32": "<f4"}[about["dtype"]], tuple(about["shape"])
        offset = size + about["data_offsets"][0]
        array = np.frombuffer(mapped, kind, int(np.prod(shape)), offset).reshape(shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClipgsError(f"{path} has no tensor {name} that can be read ({error})") from None
    return Mapped(array, mapped, offset)
