"""The stages `fit` and `render`: from views and surface points to splats, and from splats to renders."""

import io
import threading
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipgs.catalog.records import shard_path
from clipgs.catalog.sources import READY_SPLATS
from clipgs.config import Config
from clipgs.core.batching import in_batches
from clipgs.core.bundles import Members, read_table, tar_objects
from clipgs.core.devices import choose_device
from clipgs.core.files import check
from clipgs.core.runner import Compute, Files, Results, Row, Task, good, in_workers, write_objects
from clipgs.core.seeds import seed_of
from clipgs.meshes.cameras import canonical_cameras, parse_cameras
from clipgs.stages import job, path, table

if TYPE_CHECKING:
    from clipgs.splats.gaussians import Gaussians, Points, Views

_RENDER_BYTES, _RENDER_BYTES_A_PIXEL = 4e9, 40  # of GPU memory for one call, with the rasteriser's own buffers


class ToFit(NamedTuple):
    """The payload of one object's task."""

    config: Config
    uid: str
    points: Path  # the shard's file
    views: Members
    seed: int


def fit(config: Config, shard: str, threads: int) -> None:
    """Fits one splat an object to its views and measures it on the held-out ones; a ready splat is only placed.

    Writes `splats/S.tar` (uid.ply) and `splats/S.parquet` (uid, status, error, psnr, psnr_foreground, ssim, alpha_iou,
    gaussians; for a ready splat the centre and scale of its placing, and a note on what was dropped).
    """
    import pyarrow as pa

    points, views_tar = path(config, "points", shard, ".npz"), path(config, "views", shard, ".tar")
    check(points)
    check(views_tar)
    sampled, viewed = good(table(config, "points", shard)), good(table(config, "views", shard))
    views = tar_objects(views_tar)
    tasks = []
    with np.load(points, allow_pickle=False) as arrays:
        for uid in sorted(sampled.keys() & viewed.keys()):
            cloud = b"".join(arrays[f"{uid}/{name}"].tobytes() for name in ("xyz", "rgb", "normals"))
            payload = ToFit(config, uid, points, views[uid], seed_of(config.seed, "fit", uid))
            tasks.append(Task(uid, f"{sha256(cloud).hexdigest()} {views[uid].digest()}", payload))
    compute: Compute = partial(_fit_batches, threads=threads)
    if choose_device(config.device) == "cpu":
        compute = in_workers(_fit_one, threads, config.workers.fit_limits)
    if any(row["source"] in READY_SPLATS for row in read_table(shard_path(config, shard), ["source"])):
        from clipgs.splats import ready

        tasks += ready.tasks(config, shard)
        compute = ready.beside(compute, config, threads)
    numbers = {name: pa.float64() for name in ("psnr", "psnr_foreground", "ssim", "alpha_iou")}
    placing = {"centre": pa.list_(pa.float64()), "scale": pa.float64(), "note": pa.string()}
    columns = {**numbers, "gaussians": pa.int64(), **placing}
    write_objects(job(config, "fit", shard), tasks, compute, columns, member="{uid}.{name}")


def _cloud(to_fit: ToFit, arrays: Any) -> "Points":
    """Points of one object, without a batch axis, from the shard's opened file."""
    import torch

    from clipgs.splats.gaussians import Points

    return Points(*(torch.from_numpy(arrays[f"{to_fit.uid}/{name}"]) for name in ("xyz", "rgb", "normals")))


def _views(to_fit: ToFit) -> "Views":
    """Views of one object, without a batch axis."""
    import torch
    from PIL import Image

    from clipgs.splats.gaussians import Views

    files = to_fit.views.read()
    viewmats, Ks, _ = parse_cameras(files.pop("cameras.json"))
    rgba = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in sorted(files.items())])
    return Views(torch.from_numpy(rgba), torch.from_numpy(viewmats), torch.from_numpy(Ks))


def _judge(config: Config, gaussians: "Gaussians", held_out: "Views") -> tuple[Row, Files]:
    """Row and PLY of one fitted object."""
    from clipgs.splats.quality import finished, quality

    gaussians = finished(gaussians, config.fit)
    if len(gaussians) == 0:
        return {"status": "failed", "error": "the fit left no Gaussian that can be seen"}, []
    row: Row = quality(gaussians, held_out.to(gaussians.means.device))
    if row["psnr"] < config.fit.min_psnr:
        error = f"held-out PSNR is {row['psnr']:.1f} dB, fit.min_psnr is {config.fit.min_psnr:g} dB"
        return row | {"status": "failed", "error": error}, []
    return row, [("ply", gaussians.to("cpu").to_ply())]


def _fit_one(to_fit: ToFit) -> tuple[Row, Files]:
    import torch

    from clipgs.splats.fitting import fit as fit_objects

    torch.set_num_threads(1)  # one process a core is faster than threads, and gives the same bits on every machine
    config, count = to_fit.config, to_fit.config.views.count
    with np.load(to_fit.points, allow_pickle=False) as arrays:
        cloud = _cloud(to_fit, arrays)
    views = _views(to_fit)
    gaussians = fit_objects(cloud[None], views[None, :count], config.fit, seeds=[to_fit.seed])
    return _judge(config, gaussians[0], views[count:])


def _fit_batches(tasks: list[Task], threads: int) -> Results:
    from clipgs.splats.fitting.batches import fit_batches

    if not tasks:
        return
    config, points = tasks[0].payload.config, tasks[0].payload.points
    reading = threading.Lock()  # one thread at a time may read a zip file

    def read(to_fit: ToFit) -> "tuple[Points, Views, int]":
        with reading:
            cloud = _cloud(to_fit, arrays)
        return cloud, _views(to_fit), to_fit.seed

    def finish(_: ToFit, gaussians: "Gaussians", views: "Views") -> tuple[Row, Files]:
        return _judge(config, gaussians, views[config.views.count :])

    with np.load(points, allow_pickle=False) as arrays:
        yield from fit_batches(config, tasks, threads, read, finish)


def render(config: Config, shard: str, threads: int) -> None:
    """Renders every splat from the canonical cameras over white.

    Writes `renders/S.tar` (uid/00.webp …) and `renders/S.parquet` (uid, status, error).
    """
    splats = path(config, "splats", shard, ".tar")
    check(splats)
    fitted, plys = good(table(config, "splats", shard)), tar_objects(splats)
    tasks = [Task(uid, plys[uid].digest(), (config, plys[uid])) for uid in fitted]
    compute: Compute = partial(_render_batches, threads=threads)
    if choose_device(config.device, alone=False) == "cpu":
        compute = in_workers(_render_one, threads, config.workers.fit_limits)
    write_objects(job(config, "render", shard), tasks, compute, {})


def _render_one(payload: tuple[Config, Members]) -> tuple[Row, Files]:
    config, _ = payload
    return _encode(config, _drawing(config, "cpu")([_splat(payload)])[0])


def _render_batches(tasks: list[Task], threads: int) -> Results:
    if not tasks:
        return
    config = tasks[0].payload[0]
    object_bytes = config.views.count * config.render.pixels**2 * _RENDER_BYTES_A_PIXEL
    size = max(1, int(_RENDER_BYTES / object_bytes))

    def finish(images: np.ndarray, _: "Gaussians") -> tuple[Row, Files]:
        return _encode(config, images)

    yield from in_batches(tasks, threads, size, _splat, _drawing(config, "cuda"), finish, "render.pixels")


def _splat(payload: tuple[Config, Members]) -> "Gaussians":
    from clipgs.splats.gaussians import Gaussians

    (data,) = payload[1].read().values()
    return Gaussians.from_ply(data)


def _drawing(config: Config, device: str) -> "Callable[[list[Gaussians]], np.ndarray]":
    """A function from B splats to their renders from the canonical cameras, [B, V, H, W, 3] uint8."""
    import torch

    from clipgs.splats.gaussians import Gaussians
    from clipgs.splats.render import render as render_views

    pixels = config.render.pixels
    cameras = [torch.from_numpy(array).to(device) for array in canonical_cameras(config.views, pixels)]

    def draw(splats: list[Gaussians]) -> np.ndarray:
        viewmats, Ks = (tensor.expand(len(splats), *tensor.shape) for tensor in cameras)
        return render_views(Gaussians.stack(splats).to(device), viewmats, Ks, pixels).cpu().numpy()

    return draw


def _encode(
    config: Config,
    images: np.ndarray,  # [V, H, W, 3] uint8
) -> tuple[Row, Files]:
    from clipgs.splats.pictures import to_webp

    quality = config.render.webp_quality
    return {}, [(f"{index:02d}.webp", to_webp(image, quality)) for index, image in enumerate(images)]
