"""Ablations: a table of runs that differ in one thing, over several seeds.

Each row and seed is trained and evaluated by its own jobs; `clipgs.evaluation.rows` has their configurations.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.catalog.records import shard_path
from clipgs.config import Config
from clipgs.config.ablations import ROWS
from clipgs.core.bundles import TarWriter, write_table
from clipgs.core.files import check, remove_sidecar, write_bytes
from clipgs.evaluation.differences import paired_difference
from clipgs.evaluation.embeddings import read_embeddings, run_folder
from clipgs.evaluation.gallery import Gallery, gallery
from clipgs.evaluation.inputs import index_rows, lvis_shapes, read_features
from clipgs.evaluation.retrieval import ranks
from clipgs.evaluation.rows import chosen, has_uni3d, of_row, points_output
from clipgs.evaluation.tables import write_json
from clipgs.stages import path, table

METRICS = ("text to 3D R@1, %", "3D to text R@1, %", "image to 3D R@1, %", "zero-shot top-1, %")
PAIRED = "3D to text R@1"
_POINT_LOGIT, _POINT_LOG_SCALE = 4.0, -4.0  # of a surface point as a Gaussian; the point encoder reads neither


def write_points(config: Config, shard: str, threads: int) -> None:
    """Writes a shard of the point encoder's training data: the surface points of each packed object's mesh as a splat.

    The features are those of the triplets, through a symbolic link. Points that were temporary are sampled again. An
    object whose mesh cannot be read any more is a failed row.

    Raises:
        ClipgsError: the points of the shard are missing; the text names the command that makes them again.
    """
    from clipgs.meshes.stages import sample
    from clipgs.triplets.pack import schema

    own = config.model_copy(update={"output": str(points_output(config))})
    write_bytes(shard_path(own, shard), shard_path(config, shard).read_bytes())
    points = path(config, "points", shard, ".npz")
    if "points" in config.temporary:
        meshes = path(config, "meshes", shard, ".parquet")
        check(meshes)
        write_bytes(path(own, "meshes", shard, ".parquet"), meshes.read_bytes())
        sample(own, shard, threads)
        points = path(own, "points", shard, ".npz")
    check(points)
    rows = table(config, "triplets", shard)
    with np.load(points) as clouds, TarWriter(path(own, "triplets", shard, ".tar")) as tar:
        offset = 0
        for row in (row for row in rows if row["status"] == "ok"):
            if f"{row['uid']}/xyz" not in clouds:
                row |= {"status": "failed", "stage": "sample", "error": "its mesh cannot be read any more"}
                continue
            cloud = _write_cloud(tar, row["uid"], clouds, config.encoder.gaussians, config.ablations.point_colors)
            row |= cloud | {"offset": offset}
            offset += row["bytes"]
    write_table(path(own, "triplets", shard, ".parquet"), rows, schema())
    if "points" in config.temporary:
        points.unlink()
        remove_sidecar(points)
    with suppress(FileExistsError):  # made by another shard's job
        (own.output_path / "features").symlink_to(os.path.relpath(config.output_path / "features", own.output))


def _write_cloud(tar: TarWriter, uid: str, clouds: Any, count: int, colors: str) -> dict[str, Any]:
    """Adds one object's points as a splat of small, nearly opaque balls; returns columns of its row."""
    import torch

    from clipgs.meshes.views import lit
    from clipgs.splats.gaussians import Gaussians
    from clipgs.triplets.pack import TAR_BLOCK, digest

    xyz, rgb, normals = (clouds[f"{uid}/{name}"][: 2 * count] for name in ("xyz", "rgb", "normals"))
    if colors == "lit":
        rgb = lit(rgb, normals)
    n = len(xyz)
    cloud = Gaussians(
        means=torch.from_numpy(xyz),
        quats_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        log_scales=torch.full((n, 3), _POINT_LOG_SCALE),
        opacity_logits=torch.full((n,), _POINT_LOGIT),
        colors=torch.from_numpy(rgb),
    )
    name, data = f"{uid}.ply", cloud.to_ply()
    tar.add(name, data)
    size = TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK
    return {"bytes": size, "sha256": digest([(name, data)]), "gaussians": n}


def write_ablations(config: Config) -> None:
    """Writes `evaluation/ablations.json` from the finished evaluations of the configured rows and seeds."""
    names, seeds = chosen(config), config.ablations.seeds
    rows = index_rows(config)
    first = read_embeddings(run_folder(of_row(config, names[0], seeds[0])) / "embeddings.safetensors")
    texts, pictures = read_features(config, rows, first.metadata)
    made = gallery(rows, config.evaluation, pictures.views)
    place = {row["uid"]: i for i, row in enumerate(rows)}
    texts = texts[[place[uid] for uid in made.uids]]
    hits = {name: np.stack([_hits(of_row(config, name, seed), made, texts) for seed in seeds]) for name in names}
    found = {
        "protocol": "Every row and seed trained and evaluated alike. Differences are paired: the same queries, the "
        f"same seeds, in {PAIRED}; intervals 95 %, for other seeds and other groups of one shape.",
        "gallery": made.about(),
        **lvis_shapes(config),
        "seed": config.evaluation.seed,
        "seeds": list(seeds),
        "start": _start_note(config),
        "metrics": list(METRICS),
        "rows": [_table_row(config, name, hits, made) for name in names],
    }
    write_json(config.output_path / "evaluation" / "ablations.json", found)


def _hits(row: Config, made: Gallery, texts: np.ndarray) -> np.ndarray:
    """[n] whether each object's 3D-to-text query has a right answer in the first place; a fraction where rows tie."""
    shapes = read_embeddings(run_folder(row) / "embeddings.safetensors").of(made.uids)
    return ranks(shapes, texts[made.captions], [[caption] for caption in made.caption_of]).hits(1)


def _table_row(config: Config, name: str, hits: Mapping[str, np.ndarray], made: Gallery) -> dict[str, Any]:
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for seed in config.ablations.seeds:
        folder = run_folder(of_row(config, name, seed))
        tables = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in ("retrieval", "zeroshot")}
        for row in tables["retrieval"]["rows"]:
            metric = f"{row['task']} R@1, %"
            if metric in found and not row["from"].startswith("mean"):
                found[metric].append(row["R@1"])
        found[METRICS[-1]] += [row["top1"] for row in tables["zeroshot"]["rows"][:1]]
    found_row: dict[str, Any] = {
        "name": ROWS[name].title,
        "key": name,
        "seeds": list(config.ablations.seeds),
        "settings": {key: dict(value) for key, value in ROWS[name].settings.items()},
        "metrics": {
            metric: {"mean": float(np.mean(values)), "std": _deviation(values), "values": values}
            for metric, values in found.items()
            if values
        },
    }
    if name == "uni3d" and not has_uni3d(config):
        found_row["note"] = _start_note(config)
    if (against := ROWS[name].against) is not None:
        change = paired_difference(hits[name] - hits[against], made.groups)
        found_row["difference"] = {"metric": PAIRED, "against": ROWS[against].title, **change}
    return found_row


def _deviation(values: list[float]) -> float:
    """The deviation over seeds, of a sample (n - 1): three seeds stand for all others."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _start_note(config: Config) -> str:
    if has_uni3d(config):
        return f"Uni3D's checkpoint {Path(str(config.encoder.weights)).name}"
    return (
        "no checkpoint of Uni3D: in its place the same point encoder, trained by our own code against the same teacher "
        "on the surface points of the meshes of the training split"
    )
