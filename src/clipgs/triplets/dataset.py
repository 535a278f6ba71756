"""Packed triplets as a torch dataset."""

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from clipgs import splats
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.meshes.cameras import showing
from clipgs.splats.pictures import from_image
from clipgs.triplets.pack import TAR_BLOCK, digest

Item = dict[str, Any]
_COLUMNS = ["uid", "shard", "split", "offset", "bytes", "sha256"]


class TripletDataset:
    """The triplets of a folder with `index.parquet` and the shards' tars, as a map-style dataset of torch.

    An item is a dict of

    - `uid`: str
    - `gaussians`: Gaussians [N, ...], rows in farthest-point order
    - `images`: [V, H, W, 3] uint8, the renders of the splat from its V cameras
    - `text`: str, the caption
    - `meta`: dict, the content of `uid.json`: category, licence, credit, quality, cameras and more

    Objects have different numbers of Gaussians: give a `DataLoader` the `collate` of this module.

    Args:
        path: the folder, `triplets/` of the output.
        split: train, validation or test; None for all.
        shards: only these, read from their own tables; the index is not needed then.

    Raises:
        ClipgsError: the index or a table is missing or damaged or has no such split, or a tar is missing or cut short.
            Reading an item raises it if the bytes are not those that were packed.
    """

    def __init__(self, path: Path | str, split: str | None = None, shards: str | Sequence[str] | None = None) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self.path = Path(path)
        if shards is None:
            rows = _table(self.path / "index.parquet", _COLUMNS)
        else:
            names = [shards] if isinstance(shards, str) else shards
            tables = [_table(self.path / f"{name}.parquet", [*_COLUMNS, "status"]) for name in names]
            rows = pa.concat_tables(table.filter(pc.equal(table["status"], "ok")) for table in tables)
        if split is not None:
            splits = sorted(value for value in rows["split"].unique().to_pylist() if value is not None)
            if split not in splits:
                raise ClipgsError(f"{self.path} has no split {split} (it has: {', '.join(splits) or 'none'})")
            rows = rows.filter(pc.equal(rows["split"], split))
        # Arrays instead of dicts: a worker process of a DataLoader then shares their memory with its parent.
        self.uids = np.array(rows["uid"].to_pylist(), dtype=np.str_)
        self._shards = np.array(rows["shard"].to_pylist(), dtype=np.str_)
        self._digests = np.array(rows["sha256"].to_pylist(), dtype=np.str_)
        self._offsets, self._bytes = rows["offset"].to_numpy(), rows["bytes"].to_numpy()
        for shard in np.unique(self._shards):
            mine = self._shards == shard
            self._check_size(self._tar(shard), (self._offsets[mine] + self._bytes[mine]).max())

    def _tar(self, shard: str) -> Path:
        return self.path / f"{shard}.tar"

    def _check_size(self, tar: Path, least: int) -> None:
        try:
            size = tar.stat().st_size
        except OSError:
            raise ClipgsError(f"{tar} is missing; make it with: {snakemake(tar)}") from None
        if size < least:
            raise ClipgsError(
                f"{tar} is cut short: it has {size} bytes, but its objects end at {least}; "
                f"make it again with: {snakemake('--force', tar)}"
            )

    def shard(self, i: SupportsIndex) -> str:
        """Name of the shard of object i."""
        return str(self._shards[_place(i)])

    def __len__(self) -> int:
        return len(self.uids)

    def members(self, i: SupportsIndex) -> dict[str, bytes]:
        """The files of one object in the tar, by name."""
        i = _place(i)
        uid, tar = str(self.uids[i]), self._tar(self._shards[i])
        try:
            with open(tar, "rb") as file:
                file.seek(self._offsets[i])
                members = _members(file.read(self._bytes[i]))
            intact = digest(members) == self._digests[i]
        except (OSError, ValueError):
            intact = False
        if not intact:
            index = self.path / "index.parquet"
            raise ClipgsError(
                f"{tar}: the files of {uid} do not match the index; the tar or the index is damaged or from another "
                f"run; make both again with: {snakemake('--force', tar, index)}"
            )
        return dict(members)

    def gaussians(self, i: SupportsIndex) -> "splats.Gaussians":
        """The splat of one object, without its renders."""
        i = _place(i)
        name = f"{self.uids[i]}.ply"
        return splats.Gaussians.from_ply(self.members(i)[name], name)

    def __getitem__(self, i: SupportsIndex) -> Item:
        import torch

        i = _place(i)
        uid = str(self.uids[i])
        members = self.members(i)
        meta = json.loads(members[f"{uid}.json"])
        views = range(len(meta["cameras"]["viewmats"]))
        images = [from_image(members[f"{uid}.{view:02d}.webp"]) for view in views]
        return {
            "uid": uid,
            "gaussians": splats.Gaussians.from_ply(members[f"{uid}.ply"], f"{uid}.ply"),
            "images": torch.from_numpy(np.stack(images)),
            "text": members[f"{uid}.txt"].decode(),
            "meta": meta,
        }


def _table(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError:
        raise ClipgsError(f"{path} is missing; make it with: {snakemake('triplets')}") from None
    except (OSError, pa.ArrowException) as error:
        again = snakemake("--force", path)
        raise ClipgsError(f"{path} cannot be read ({error}); make it again with: {again}") from None


def _place(i: SupportsIndex) -> int:
    """An index as an int: of Python, numpy or torch.

    Raises:
        TypeError: it is a list, a slice, a uid or something else.
    """
    try:
        return operator.index(i)
    except TypeError:
        raise TypeError(
            f"the index of a triplet is one whole number, not {type(i).__name__}; "
            "for several use torch.utils.data.Subset(dataset, indices)"
        ) from None


def _members(block: bytes) -> list[tuple[str, bytes]]:
    """Names and bytes of the files in one object's part of a tar."""
    found = places(lambda at, count: block[at : at + count], len(block))
    return [(name, block[at : at + size]) for name, at, size in found]


def places(read: Callable[[int, int], bytes], total: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each file in one object's part of a tar that `TarWriter` wrote; only headers are read.

    tarfile needs four times as long for these headers, and no other thread runs meanwhile.

    Args:
        read: gives `count` bytes of the part from an offset on.
        total: the size of the part in bytes.

    Raises:
        ValueError: a header is damaged.
    """
    at = 0
    while at < total:
        header, at = read(at, TAR_BLOCK), at + TAR_BLOCK
        size, checksum = int(header[124:135], 8), int(header[148:154], 8)
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
            raise ValueError(f"the header at {at - TAR_BLOCK} is damaged")
        name = b"/".join(part for part in (header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")) if part)
        yield name.decode(), at, size
        at += -(-size // TAR_BLOCK) * TAR_BLOCK


def best_render(uid: str, members: Mapping[str, bytes]) -> bytes:
    """The render that shows an object best as one picture, a WebP among its `members`."""
    viewmats = np.array(json.loads(members[f"{uid}.json"])["cameras"]["viewmats"])
    return members[f"{uid}.{showing(viewmats):02d}.webp"]


def collate(items: Sequence[Item]) -> Item:
    """A batch: gaussians [B, N, ...] (padded, with `count`), images [B, V, H, W, 3], the rest as lists."""
    import torch

    return {
        "uid": [item["uid"] for item in items],
        "gaussians": splats.Gaussians.stack([item["gaussians"] for item in items]),
        "images": torch.stack([item["images"] for item in items]),
        "text": [item["text"] for item in items],
        "meta": [item["meta"] for item in items],
    }
