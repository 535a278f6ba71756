"""The stages `fit` and `render`: from views and surface points to splats, and from splats to their pictures."""

import io
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.catalog.shards import shard_path
from clipgs.catalog.sources import READY_SPLATS
from clipgs.config import Config
from clipgs.core.bundles import Members, TarWriter, read_table, tar_objects, write_table
from clipgs.core.devices import take_gpus, visible_gpus
from clipgs.core.errors import ClipgsError, ObjectError, describe_error
from clipgs.core.files import check
from clipgs.core.runner import Files, Row, Task, good, in_workers, over_objects, stage_schema
from clipgs.core.seeds import seed_of
from clipgs.stages import job, path, table

log = logging.getLogger(__name__)


# Of the pictures that one call draws, as floats with what the rasteriser keeps beside them.
_RENDER_BYTES, _RENDER_BYTES_A_PIXEL = 4e9, 40


def device(config: Config, gpus: int = 1, *, alone: bool = True) -> str:
    """`cuda` or `cpu`: what the configuration says, or what is there. Of several GPUs this process takes `gpus` (0:
    all): free ones if `alone`, for a fit keeps one busy; drawing leaves it idle most of the time.

    Raises:
        ClipgsError: the configuration asks for CUDA, and torch sees none.
    """
    if config.device == "cpu" or (config.device == "auto" and not visible_gpus()):
        return "cpu"
    take_gpus(gpus, alone=alone)
    import torch  # once the GPU is chosen, and not at all where there is none

    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not torch.cuda.is_available():
        raise ClipgsError(
            "config: device = cuda, but torch sees no GPU; `clipgs doctor` says why, `device: cpu` goes on"
        )
    return config.device


def fit(config: Config, shard: str, threads: int) -> None:
    """Fits one splat an object to its views, and measures it on the held-out ones; a ready splat is only placed.

    Writes `splats/S.tar` (uid.ply) and `splats/S.parquet` (uid, status, error, psnr, psnr_foreground, ssim, alpha_iou,
    gaussians; of a ready splat the centre and scale that placed it, and a note on what it lost).
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
    on_gpu = partial(_fit_batches, threads=threads)
    compute = on_gpu if device(config) == "cuda" else in_workers(_fit_one, threads, config.workers.fit_limits)
    if any(row["source"] in READY_SPLATS for row in read_table(shard_path(config, shard), ["source"])):
        from clipgs.splats import ready

        tasks += ready.tasks(config, shard)
        compute = ready.beside(compute, config, threads)
    rows = []
    with TarWriter(path(config, "splats", shard, ".tar")) as tar:
        for row, files in over_objects(job(config, "fit", shard), tasks, compute):
            rows.append(row)
            for _, data in files if row["status"] == "ok" else ():
                tar.add(f"{row['uid']}.ply", data)
    numbers = {name: pa.float64() for name in ("psnr", "psnr_foreground", "ssim", "alpha_iou")}
    placing = {"centre": pa.list_(pa.float64()), "scale": pa.float64(), "note": pa.string()}
    extra = {**numbers, "gaussians": pa.int64(), **placing}
    write_table(path(config, "splats", shard, ".parquet"), rows, stage_schema(extra))


def _cloud(payload: tuple[Config, str, Path, Members, int], arrays: Any) -> Any:
    """Points of one object, without a batch axis; `arrays` is the shard's opened file of points."""
    import torch

    from clipgs.splats.gaussians import Points

    return Points(*(torch.from_numpy(arrays[f"{payload[1]}/{name}"]) for name in ("xyz", "rgb", "normals")))


def _views(payload: tuple[Config, str, Path, Members, int]) -> Any:
    """Views of one object, without a batch axis."""
    import torch
    from PIL import Image

    from clipgs.meshes.cameras import parse_cameras
    from clipgs.splats.gaussians import Views

    files = payload[3].read()
    viewmats, Ks, _ = parse_cameras(files.pop("cameras.json"))
    rgba = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in sorted(files.items())])
    return Views(torch.from_numpy(rgba), torch.from_numpy(viewmats), torch.from_numpy(Ks))


def _judge(config: Config, gaussians: Any, held_out: Any) -> tuple[Row, Files]:
    """Row and PLY of one fitted object."""
    from clipgs.splats.ply import to_bytes
    from clipgs.splats.quality import quality

    if not all(getattr(gaussians, name).isfinite().all() for name in ("means", "quats_wxyz", "log_scales")):
        raise ObjectError("The fit did not stay finite.")
    gaussians = gaussians.prune(config.fit.prune_below)
    if len(gaussians) == 0:
        return {"status": "failed", "error": "the fit left no Gaussian that can be seen"}, []
    row: Row = quality(gaussians, held_out.to(gaussians.means.device))
    if row["psnr"] < config.fit.min_psnr:
        row |= {
            "status": "failed",
            "error": f"held-out PSNR is {row['psnr']:.1f} dB, fit.min_psnr is {config.fit.min_psnr:g} dB",
        }
        return row, []
    return row, [("ply", to_bytes(gaussians.to("cpu")))]


def _fit_one(payload: tuple[Config, str, Path, Members, int]) -> tuple[Row, Files]:
    import torch

    from clipgs.splats.fitting import fit as fit_batch

    torch.set_num_threads(1)  # one process a core is faster than threads, and gives the same bits everywhere
    config, _, points, _, seed = payload
    with np.load(points, allow_pickle=False) as arrays:
        cloud = _cloud(payload, arrays)
    views, count = _views(payload), config.views.count
    gaussians = fit_batch(cloud[None], views[None, :count], config.fit, seeds=[seed])
    return _judge(config, gaussians[0], views[count:])


def _in_batches(
    tasks: list[Task],
    threads: int,
    size: int,
    read: Callable[[Any], Any],
    compute: Callable[[list[Any]], Any],
    finish: Callable[[Any, Any], tuple[Row, Files]],
    lower: str,
) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
    """Many objects in one call on the GPU, while threads read the next batch and finish the last.

    Args:
        size: objects a batch; halved when the GPU's memory runs out.
        read: from a task's payload to what `compute` takes; what it raises is the object's own error.
        compute: from a list of these to as many results.
        finish: from a result, and what it was made from, to the object's row and files.
        lower: the keys to lower where not even one object fits.
    """
    import torch

    first = 0
    reading: dict[int, Future] = {}
    finishing: dict[int, Future] = {}
    with ThreadPoolExecutor(threads) as pool:
        while first < len(tasks):
            for index in range(first, min(first + 2 * size, len(tasks))):
                if index not in reading:
                    reading[index] = pool.submit(read, tasks[index].payload)
            batch = range(first, min(first + size, len(tasks)))
            results = {index: _result(reading[index]) for index in batch}
            # should they be needed again: generators in what was read will have moved on
            for index in batch:
                del reading[index]
            inputs = {index: result for index, result in results.items() if not isinstance(result, str)}
            try:
                computed = compute(list(inputs.values())) if inputs else []
            except torch.OutOfMemoryError:
                if size == 1:
                    raise ClipgsError(f"one object does not fit into the GPU's memory; lower {lower}") from None
                size = max(1, len(inputs) // 2)
                torch.cuda.empty_cache()
                log.warning("the GPU's memory does not hold the batch; going on with %d objects a batch", size)
                continue
            for index in batch:
                if isinstance(results[index], str):
                    yield tasks[index], results[index]
            for index, future in finishing.items():
                yield tasks[index], _result(future)
            finishing = {
                index: pool.submit(finish, result, inputs[index])
                for index, result in zip(inputs, computed, strict=True)
            }
            first = batch.stop
        for index, future in finishing.items():
            yield tasks[index], _result(future)


def _fit_batches(tasks: list[Task], threads: int) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
    from clipgs.splats.fitting import as_gaussians
    from clipgs.splats.fitting.cuda import fit_tables, objects_a_batch

    if not tasks:
        return
    config, _, points, *_ = tasks[0].payload
    count, where = config.views.count, device(config)

    def compute(inputs: list[Any]) -> Any:
        tables, views, plans = zip(*inputs, strict=True)
        seen = _stacked([one[:count].to(where) for one in views])
        return fit_tables(np.stack(tables), seen, config.fit, plans)

    def finish(table: Any, read: Any) -> tuple[Row, Files]:
        return _judge(config, as_gaussians(table[None])[0], read[1][count:])

    with np.load(points, allow_pickle=False) as arrays:
        size = objects_a_batch(config.fit, count, config.views.pixels)
        read = partial(_prepared, arrays=arrays, reading=threading.Lock())
        yield from _in_batches(tasks, threads, size, read, compute, finish, "views.pixels or fit.gaussians")


def _prepared(
    payload: tuple[Config, str, Path, Members, int], arrays: Any, reading: threading.Lock
) -> tuple[Any, Any, Any]:
    """The start, the views and the plan of one object's fit; a zip file is not one for several threads at once."""
    from clipgs.splats.fitting import schedule, start

    config, *_, seed = payload
    with reading:
        cloud = _cloud(payload, arrays)
    views = _views(payload)
    table = start(cloud.xyz.numpy(), cloud.rgb.numpy(), cloud.normals.numpy(), config.fit, seed)
    return table, views, schedule(config.fit, config.views.count, seed)


def _stacked(views: list[Any]) -> Any:
    """Views of single objects as a batch."""
    import torch

    from clipgs.splats.gaussians import Views

    return Views(*(torch.stack([getattr(one, name) for one in views]) for name in ("rgba", "viewmats", "Ks")))


def _result(future: Future) -> Any:
    """What a thread gave, or its error as text."""
    import torch

    try:
        return future.result()
    except (ClipgsError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the object's own: it becomes its row
        return describe_error(error)


def render(config: Config, shard: str, threads: int) -> None:
    """Renders every splat from the canonical cameras over white.

    Writes `renders/S.tar` (uid/00.webp …) and `renders/S.parquet` (uid, status, error).
    """
    splats = path(config, "splats", shard, ".tar")
    check(splats)
    fitted, plys = good(table(config, "splats", shard)), tar_objects(splats)
    tasks = [Task(uid, plys[uid].digest(), (config, plys[uid])) for uid in fitted]
    on_gpu = partial(_render_batches, threads=threads)
    compute = (
        on_gpu if device(config, alone=False) == "cuda" else in_workers(_render_one, threads, config.workers.fit_limits)
    )
    rows = []
    with TarWriter(path(config, "renders", shard, ".tar")) as tar:
        for row, files in over_objects(job(config, "render", shard), tasks, compute):
            rows.append(row)
            for name, data in files:
                tar.add(f"{row['uid']}/{name}", data)
    write_table(path(config, "renders", shard, ".parquet"), rows, stage_schema())


def _render_one(payload: tuple[Config, Members]) -> tuple[Row, Files]:
    config, _ = payload
    draw = _drawing(config, "cpu")
    return _encode(config, draw([_splat(payload)])[0])


def _render_batches(tasks: list[Task], threads: int) -> Iterator[tuple[Task, tuple[Row, Files] | str]]:
    if not tasks:
        return
    config = tasks[0].payload[0]
    picture_bytes = config.views.count * config.render.pixels**2 * _RENDER_BYTES_A_PIXEL
    yield from _in_batches(
        tasks,
        threads,
        max(1, int(_RENDER_BYTES / picture_bytes)),
        _splat,
        _drawing(config, "cuda"),
        lambda pictures, _: _encode(config, pictures),
        "render.pixels",
    )


def _splat(payload: tuple[Config, Members]) -> Any:
    from clipgs.splats import ply

    (data,) = payload[1].read().values()
    return ply.from_bytes(data)


def _drawing(config: Config, where: str) -> Callable[[list[Any]], np.ndarray]:
    """A function from B splats to their pictures from the canonical cameras, [B, V, H, W, 3] uint8."""
    import torch

    from clipgs.splats.gaussians import Gaussians
    from clipgs.splats.render import render as render_views

    viewmats, Ks = (torch.from_numpy(array).to(where) for array in canonical_cameras(config))

    def draw(splats: list[Any]) -> np.ndarray:
        cameras = (tensor.expand(len(splats), *tensor.shape) for tensor in (viewmats, Ks))
        return render_views(Gaussians.stack(splats).to(where), *cameras, config.render.pixels).cpu().numpy()

    return draw


def _encode(
    config: Config,
    pictures: np.ndarray,  # [V, H, W, 3] uint8
) -> tuple[Row, Files]:
    from clipgs.splats.render import to_webp

    webps = (to_webp(picture, config.render.webp_quality) for picture in pictures)
    return {}, [(f"{index:02d}.webp", webp) for index, webp in enumerate(webps)]


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
