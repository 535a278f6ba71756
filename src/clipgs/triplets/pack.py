"""Packing: a shard's splats, renders and captions as one WebDataset tar, and the index of all shards.

The members of an object follow each other in the tar: `uid.ply`, `uid.00.webp` and so on, `uid.txt`, `uid.json`.
`S.parquet` has a row for every object of the shard: where its members are in the tar, or which stage failed and why.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs.core.bundles import TarWriter, tar_objects, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import atomic
from clipgs.core.runner import Row

TAR_BLOCK = 512
QUALITY = ("psnr", "psnr_foreground", "ssim", "alpha_iou", "gaussians")
LABELS = ("category", "license", "credit", "page")


class Cameras(NamedTuple):
    """The canonical cameras, from which every splat is rendered."""

    viewmats: np.ndarray  # [V, 4, 4], world to camera, OpenCV axes
    Ks: np.ndarray  # [V, 3, 3], pixels
    pixels: int


class MeshToSplat(NamedTuple):
    """How a mesh was normalised: turned so that Y is up, then (mesh - centre) * scale."""

    centre: Sequence[float]  # [3], the mesh's units
    scale: float
    up_axis: str = "y"  # of the mesh


def digest(members: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of the names and bytes of an object's members, in their order."""
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
    """Writes `triplets/S.tar` and `triplets/S.parquet`.

    Args:
        objects: the shard's frozen rows. A `note` says why an object cannot be used. The locator becomes `file`.
        labels: what can be corrected later: category, text, license, credit, page.
        stages: rows of every stage's table in the order of the workflow, each with uid, status and error; `fit` (with
            quality) and `caption` are among them. An object's row gets its first failure.
        splats, renders: `splats/S.tar` (uid.ply) and `renders/S.tar` (uid/00.webp ...).

    Returns:
        the rows of the table, one per object, ordered by uid.

    Raises:
        ClipgsError: an object that failed at no stage is missing from a table or a tar.
    """
    label_of = {row["uid"]: row for row in labels}
    stage_of = {stage: {row["uid"]: row for row in rows} for stage, rows in stages.items()}
    splat_of, renders_of = tar_objects(splats), tar_objects(renders)
    needed: dict[str, Mapping[str, Any]] = {
        f"row of the stage {stage}": stage_of[stage] for stage in ("fit", "caption")
    }
    needed |= {"splat": splat_of, "renders": renders_of, "normalisation": mesh_to_splat}
    rows, offset = [], 0
    with TarWriter(tar) as writer:
        for frozen in sorted(objects, key=lambda row: row["uid"]):
            uid = frozen["uid"]
            label = label_of.get(uid, {})
            row = {"uid": uid, "shard": shard, "status": "ok", **{key: label.get(key) for key in LABELS}}
            row |= {key: frozen.get(key) for key in ("source", "group", "split")} | {"file": frozen.get("locator")}
            rows.append(row)
            failures = [("catalog", frozen["note"])] if frozen.get("note") else []
            rows_of = {stage: found[uid] for stage, found in stage_of.items() if uid in found}
            failures += [(stage, found["error"]) for stage, found in rows_of.items() if found["status"] != "ok"]
            if failures:
                stage, error = failures[0]
                row |= {"status": "failed", "stage": stage, "error": error}
                continue
            for what, found in needed.items():
                if uid not in found:
                    raise ClipgsError(f"shard {shard}: {uid} has no {what}, though no stage failed on it")
            fit, caption = rows_of["fit"], rows_of["caption"]
            row |= {key: fit[key] for key in QUALITY}
            row |= {"caption": caption["caption"], "caption_source": caption["source"]}
            row |= {"caption_score": caption.get("score"), "caption_note": caption.get("note")}
            row |= {"view_note": rows_of.get("view", {}).get("note"), "splat_note": fit.get("note")}
            meta = _meta(row, frozen["sha256"], mesh_to_splat[uid], cameras)
            files = {**splat_of[uid].read(), **renders_of[uid].read()}
            files |= {"txt": caption["caption"].encode(), "json": meta}
            members = sorted((f"{uid}.{name}", data) for name, data in files.items())
            for name, data in members:
                writer.add(name, data)
            # A member is a header of one block, and its data padded to whole blocks.
            size = sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for _, data in members)
            row |= {"offset": offset, "bytes": size, "sha256": digest(members)}
            offset += size
    write_table(table, rows, schema())
    return rows


def _meta(row: Row, mesh_sha256: str | None, mesh_to_splat: MeshToSplat, cameras: Cameras) -> bytes:
    """The content of `uid.json`."""
    names = ("uid", "file", "shard", "split", "group", "caption", "caption_source", "caption_score", *LABELS)
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
    """Nested lists of numbers, each with the fewest digits that give the same float32."""
    return json.loads(json.dumps(array.tolist()), parse_float=lambda text: float(str(np.float32(text))))


def merge_index(tables: Sequence[Path], path: Path) -> None:
    """Writes `triplets/index.parquet`: the packed objects of all shards, ordered by shard and uid."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    merged = all_rows(tables)
    merged = merged.filter(pc.equal(merged["status"], "ok")).drop_columns(["status", "stage", "error"])
    with atomic(path) as temporary:
        pq.write_table(merged.sort_by([("shard", "ascending"), ("uid", "ascending")]), temporary, compression="zstd")


def all_rows(tables: Sequence[Path]) -> Any:
    """The tables of all shards as one `pyarrow.Table`, with the failed objects."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [schema().empty_table(), *(pq.ParquetFile(table).read() for table in tables)]
    return pa.concat_tables(found, promote_options="default")  # an earlier version packed without `file`


def read_rows(tables: Sequence[Path]) -> list[Row]:
    """The rows of all shards, with the failed objects, ordered by shard and uid: what the card and the report show."""
    ordered = all_rows(tables).sort_by([("shard", "ascending"), ("uid", "ascending")])
    return ordered.drop_columns(["group", "offset", "sha256"]).to_pylist()


def schema() -> Any:
    """Rows of `triplets/S.parquet`; `index.parquet` leaves out status, stage and error.

    An object's members are the `bytes` bytes of `S.tar` from `offset` on; `sha256` is their `digest`.
    """
    import pyarrow as pa

    strings: tuple[str, ...] = ("uid", "shard", "status", "stage", "error", "source", "file", "split", "group")
    strings += (
        "category",
        "caption",
        "caption_source",
        "caption_note",
        "view_note",
        "splat_note",
        "license",
        "credit",
        "page",
    )
    return pa.schema(
        [(name, pa.string()) for name in strings]
        + [(name, pa.float64()) for name in ("caption_score", *QUALITY[:-1])]
        + [("gaussians", pa.int64()), ("offset", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
    )
