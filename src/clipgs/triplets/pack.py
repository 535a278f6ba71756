"""Packing: a shard's splats, pictures and captions as one WebDataset tar, and the index of all shards.

The members of an object stand together in the tar: `uid.ply`, `uid.00.webp` and so on, `uid.txt`, `uid.json`.
Beside it, `S.parquet` has a row for every object of the shard: where its members are, or at which stage it
failed and why.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.core.bundles import TarWriter, tar_objects, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import atomic

Row = dict[str, Any]

TAR_BLOCK = 512
QUALITY = ("psnr", "psnr_foreground", "ssim", "alpha_iou", "gaussians")
LABELS = ("category", "license", "credit", "page")


@dataclass(frozen=True)
class Cameras:
    """The canonical cameras that every splat is pictured with."""

    viewmats: np.ndarray  # [V, 4, 4], world to camera, OpenCV axes
    Ks: np.ndarray  # [V, 3, 3], pixels
    pixels: int


@dataclass(frozen=True)
class MeshToSplat:
    """How a mesh was normalised: splat = (mesh, turned so that Y is up, - centre) * scale."""

    centre: Sequence[float]  # [3], the mesh's units
    scale: float
    up_axis: str = "y"  # of the mesh


def digest(members: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of an object's members, names and bytes, in their order."""
    result = hashlib.sha256()
    for name, data in members:
        result.update(f"{name}\0{len(data)}\0".encode())
        result.update(data)
    return result.hexdigest()


def pack_shard(
    tar: Path,
    table: Path,
    *,
    shard: str,
    objects: Sequence[Row],
    labels: Sequence[Row],
    stages: Mapping[str, Sequence[Row]],
    splats: Path,
    renders: Path,
    mesh_to_splat: Mapping[str, MeshToSplat],
    cameras: Cameras,
) -> list[Row]:
    """Write `triplets/S.tar` and `triplets/S.parquet`.

    Args:
        objects: the shard's frozen rows; one with a `note` can never be used.
        labels: what may be mended: category, text, license, credit, page.
        stages: rows of every stage's table in the order of the workflow, each with uid, status and error. An
            object's first failure is its row's. `fit` (with quality) and `caption` must be among them.
        splats, renders: `splats/S.tar` (uid.ply) and `renders/S.tar` (uid/00.webp ...).

    Returns:
        the rows of the table, one an object, in the order of their uids.

    Raises:
        ClipgsError: an object that no stage has failed is missing from a table or a tar.
    """
    label_of = {row["uid"]: row for row in labels}
    stage_of = {stage: {row["uid"]: row for row in rows} for stage, rows in stages.items()}
    splat_of, pictures_of = tar_objects(splats), tar_objects(renders)
    rows = []
    offset = 0
    with TarWriter(tar) as writer:
        for thing in sorted(objects, key=lambda row: row["uid"]):
            uid = thing["uid"]
            label = label_of.get(uid, {})
            row = {"uid": uid, "shard": shard, "status": "ok", **{key: label.get(key) for key in LABELS}}
            row |= {key: thing.get(key) for key in ("source", "group", "split")}
            rows.append(row)
            failure = _failure(thing, stage_of)
            if failure:
                row |= failure
                continue
            needed = {"a splat": splat_of, "pictures": pictures_of, "its normalisation": mesh_to_splat}
            needed |= {f"a row of {stage}": stage_of[stage] for stage in ("fit", "caption")}
            for what, found in needed.items():
                if uid not in found:
                    raise ClipgsError(f"shard {shard}: no stage failed on {uid}, yet it has not {what}")
            fit, caption = stage_of["fit"][uid], stage_of["caption"][uid]
            row |= {key: fit[key] for key in QUALITY}
            row |= {"caption": caption["caption"], "caption_source": caption["source"]}
            row |= {"caption_score": caption.get("score"), "caption_note": caption.get("note")}
            meta = _meta(row, thing["sha256"], mesh_to_splat[uid], cameras)
            files = {**splat_of[uid].read(), **pictures_of[uid].read()}
            files |= {"txt": caption["caption"].encode(), "json": meta}
            members = sorted((f"{uid}.{name}", data) for name, data in files.items())
            for name, data in members:
                writer.add(name, data)
            # A member is a header block and its data, filled up to whole blocks.
            size = sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for _, data in members)
            row |= {"offset": offset, "bytes": size, "sha256": digest(members)}
            offset += size
    write_table(table, rows, schema())
    return rows


def _failure(thing: Row, stage_of: Mapping[str, Mapping[str, Row]]) -> Row | None:
    if thing.get("note"):
        return {"status": "failed", "stage": "catalog", "error": thing["note"]}
    for stage, rows in stage_of.items():
        row = rows.get(thing["uid"])
        if row is not None and row["status"] != "ok":
            return {"status": "failed", "stage": stage, "error": row["error"]}
    return None


def _meta(row: Row, mesh_sha256: str | None, mesh_to_splat: MeshToSplat, cameras: Cameras) -> bytes:
    """What `uid.json` holds."""
    names = ("uid", "shard", "split", "group", "caption", "caption_source", "caption_score", *LABELS)
    meta = {
        **{name: row[name] for name in names},
        "quality": {name: row[name] for name in QUALITY},
        "mesh": {"source": row["source"], "sha256": mesh_sha256, "up_axis": mesh_to_splat.up_axis},
        "mesh_to_splat": {"centre": list(mesh_to_splat.centre), "scale": mesh_to_splat.scale},
        "cameras": {
            "convention": "opencv world-to-camera",
            "pixels": cameras.pixels,
            "viewmats": _shortest(cameras.viewmats),
            "Ks": _shortest(cameras.Ks),
        },
    }
    return json.dumps(meta, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _shortest(array: np.ndarray) -> list[Any]:
    """Nested lists of numbers with no more digits than tell one float32 from the next."""
    return json.loads(json.dumps(array.tolist()), parse_float=lambda text: float(str(np.float32(text))))


def merge_index(tables: Sequence[Path], path: Path) -> None:
    """Write `triplets/index.parquet`: the packed objects of all shards, in the order of shards and uids."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    merged = all_rows(tables)
    merged = merged.filter(pc.equal(merged["status"], "ok")).drop_columns(["status", "stage", "error"])
    with atomic(path) as temporary:
        pq.write_table(merged.sort_by([("shard", "ascending"), ("uid", "ascending")]), temporary, compression="zstd")


def all_rows(tables: Sequence[Path]) -> Any:
    """The tables of all shards, failures too, as one `pyarrow.Table`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables([schema().empty_table(), *(pq.ParquetFile(table).read() for table in tables)])


def schema() -> Any:
    """Rows of `triplets/S.parquet`; `index.parquet` leaves out status, stage and error.

    An object's members lie in `S.tar` from `offset` on, for `bytes` bytes; `sha256` is their `digest`.
    """
    import pyarrow as pa

    strings: tuple[str, ...] = ("uid", "shard", "status", "stage", "error", "source", "split", "group")
    strings += ("category", "caption", "caption_source", "caption_note", "license", "credit", "page")
    return pa.schema(
        [(name, pa.string()) for name in strings]
        + [(name, pa.float64()) for name in ("caption_score", *QUALITY[:-1])]
        + [("gaussians", pa.int64()), ("offset", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
    )
