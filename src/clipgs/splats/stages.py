"""The stages `fit` and `render`: from views and surface points to splats, and from splats to their pictures."""

import io
import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.catalog.records import stage_schema
from clipgs.config import Config
from clipgs.stage import Files, Row, Task, good, in_workers, over_objects, path, table
from clipgs.storage import (
    ClipgsError,
    Members,
    TarWriter,
    check,
    seed_of,
    tar_objects,
    write_table,
)

log = logging.getLogger(__name__)


def device(config: Config) -> str:
    """`cuda` or `cpu`: what the configuration says, or what is there.

    Raises:
        ClipgsError: the configuration asks for CUDA, and torch sees none.
    """
    import torch

    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ClipgsError(
            "config: device = cuda, but torch sees no GPU; `clipgs doctor` says why, `device: cpu` goes on"
        )
    return config.device


def fit(config: Config, shard: str, threads: int) -> None:
    """Fits one splat an object to its views, and measures it on the held-out ones.

    Writes `splats/S.tar` (uid.ply) and `splats/S.parquet` (uid, status, error, psnr, psnr_foreground, ssim, alpha_iou,
    gaussians).
    """
    import pyarrow as pa

    points = path(config, "points", shard, ".npz")
    pictures = path(config, "views", shard, ".tar")
    for file in (points, pictures):
        check(file)
    sampled, seen = good(table(config, "points", shard)), good(table(config, "views", shard))
    views = tar_objects(pictures)
    tasks = []
    with np.load(points, allow_pickle=False) as arrays:
        for uid in sorted(sampled.keys() & seen.keys()):
            cloud = b"".join(arrays[f"{uid}/{name}"].tobytes() for name in ("xyz", "rgb", "normals"))
            payload = (config, uid, points, views[uid], seed_of(config.seed, "fit", uid))
            tasks.append(Task(uid, f"{sha256(cloud).hexdigest()} {views[uid].digest()}", payload))
    if device(config) == "cuda":
        compute = _fit_batches
    else:
        compute = in_workers(
            _fit_one,
            threads=threads,
            timeout_seconds=config.workers.fit_timeout_seconds,
            memory_mb=config.workers.fit_memory_mb,
        )
    rows = []
    with TarWriter(path(config, "splats", shard, ".tar")) as tar:
        for row, files in over_objects(config, "fit", shard, tasks, compute):
            rows.append(row)
            for _, data in files if row["status"] == "ok" else ():
                tar.add(f"{row['uid']}.ply", data)
    numbers = {name: pa.float64() for name in ("psnr", "psnr_foreground", "ssim", "alpha_iou")}
    write_table(path(config, "splats", shard, ".parquet"), rows, stage_schema({**numbers, "gaussians": pa.int64()}))


def _inputs(payload: tuple[Config, str, Path, Members, int]) -> tuple[Any, Any]:
    """Points and views of one object, without a batch axis."""
    import torch
    from PIL import Image

    from clipgs.meshes.views import parse_cameras
    from clipgs.splats.gaussians import Points, Views

    _, uid, points, members, _ = payload
    with np.load(points, allow_pickle=False) as arrays:
        cloud = Points(*(torch.from_numpy(arrays[f"{uid}/{name}"]) for name in ("xyz", "rgb", "normals")))
    files = members.read()
    viewmats, Ks, _ = parse_cameras(files.pop("cameras.json"))
    rgba = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in sorted(files.items())])
    return cloud, Views(torch.from_numpy(rgba), torch.from_numpy(viewmats), torch.from_numpy(Ks))


def _judge(config: Config, gaussians: Any, held_out: Any) -> tuple[Row, Files]:
    """Row and PLY of one fitted object."""
    from clipgs.splats.ply import to_bytes
    from clipgs.splats.quality import quality

    gaussians = gaussians.prune(config.fit.prune_below)
    if len(gaussians) == 0:
        return {"status": "failed", "error": "the fit left no Gaussian that can be seen"}, []
    row: Row = quality(gaussians, held_out)
    if row["psnr"] < config.fit.min_psnr:
        row |= {
            "status": "failed",
            "error": f"held-out PSNR is {row['psnr']:.1f} dB, fit.min_psnr is {config.fit.min_psnr:g} dB",
        }
        return row, []
    return row, [("ply", to_bytes(gaussians.to("cpu")))]


def _fit_one(payload: tuple[Config, str, Path, Members, int]) -> tuple[Row, Files]:
    import torch

    from clipgs.splats.fit import fit as fit_batch

    torch.set_num_threads(1)  # one process a core is faster than threads, and gives the same bits everywhere
    config, *_, seed = payload
    cloud, views = _inputs(payload)
    count = config.views.count
    gaussians = fit_batch(cloud[None], views[None, :count], config.fit, seeds=[seed])
    return _judge(config, gaussians[0], views[count:])


def _fit_batches(tasks: list[Task]) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
    """Many objects in one call on the GPU; when memory runs out the batch is halved."""
    import torch

    from clipgs.splats.fit import fit as fit_batch
    from clipgs.splats.gaussians import Points, Views

    def stacked(kind: type, parts: list[Any]) -> Any:
        names = kind.__dataclass_fields__
        return kind(**{name: torch.stack([getattr(part, name) for part in parts]) for name in names})

    start, size = 0, min(_BATCH_OBJECTS, len(tasks))
    while start < len(tasks):
        batch = tasks[start : start + size]
        config: Config = batch[0].payload[0]
        inputs = [_inputs(task.payload) for task in batch]
        clouds, views = (
            stacked(Points, [cloud for cloud, _ in inputs]),
            stacked(Views, [view for _, view in inputs]),
        )
        count = config.views.count
        try:
            gaussians = fit_batch(
                clouds.to("cuda"),
                views[:, :count].to("cuda"),
                config.fit,
                seeds=[task.payload[-1] for task in batch],
            )
        except torch.OutOfMemoryError:
            if size == 1:
                raise ClipgsError(
                    "one object does not fit into the GPU's memory; lower views.pixels or fit.gaussians"
                ) from None
            size //= 2
            torch.cuda.empty_cache()
            log.warning("the GPU's memory does not hold the batch; going on with %d objects a batch", size)
            continue
        for index, task in enumerate(batch):
            yield task, _judge(config, gaussians[index], views[index, count:].to("cuda"))
        start += len(batch)


_BATCH_OBJECTS = 32  # beyond it a step grows as the batch does (docs/decisions.md)


def render(config: Config, shard: str, threads: int) -> None:
    """Renders every splat from the canonical cameras over white.

    Writes `renders/S.tar` (uid/00.webp …) and `renders/S.parquet` (uid, status, error).
    """
    splats = path(config, "splats", shard, ".tar")
    check(splats)
    fitted, plys = good(table(config, "splats", shard)), tar_objects(splats)
    tasks = [Task(uid, plys[uid].digest(), (config, plys[uid])) for uid in fitted]
    if device(config) == "cuda":
        compute = _render_here
    else:
        compute = in_workers(
            _render_one,
            threads=threads,
            timeout_seconds=config.workers.fit_timeout_seconds,
            memory_mb=config.workers.fit_memory_mb,
        )
    rows = []
    with TarWriter(path(config, "renders", shard, ".tar")) as tar:
        for row, files in over_objects(config, "render", shard, tasks, compute):
            rows.append(row)
            for name, data in files:
                tar.add(f"{row['uid']}/{name}", data)
    write_table(path(config, "renders", shard, ".parquet"), rows, stage_schema())


def _render_one(payload: tuple[Config, Members], where: str = "cpu") -> tuple[Row, Files]:
    import torch

    from clipgs.splats import ply
    from clipgs.splats.render import render as render_views
    from clipgs.splats.render import to_webp

    config, members = payload
    (data,) = members.read().values()
    viewmats, Ks = canonical_cameras(config)
    pictures = render_views(
        ply.from_bytes(data).to(where),
        torch.from_numpy(viewmats).to(where),
        torch.from_numpy(Ks).to(where),
        config.render.pixels,
    )
    webps = [to_webp(picture, config.render.webp_quality) for picture in pictures.cpu().numpy()]
    return {}, [(f"{index:02d}.webp", webp) for index, webp in enumerate(webps)]


def _render_here(tasks: list[Task]) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
    for task in tasks:
        yield task, _render_one(task.payload, "cuda")


def canonical_cameras(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Viewmats [V, 4, 4] and Ks [V, 3, 3] of the canonical views at the pixels of the renders."""
    from clipgs.meshes import cameras

    return cameras.canonical(
        config.views.count,
        fov_degrees=config.views.fov_degrees,
        distance=config.views.distance,
        pixels=config.render.pixels,
    )


__all__ = ["canonical_cameras", "device", "fit", "render"]
