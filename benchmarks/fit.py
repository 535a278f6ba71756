"""How many objects an hour one GPU fits, at what quality, against the stock way of fitting one at a time.

    python benchmarks/fit.py                                        # the table of all bars; about ten minutes
    python benchmarks/fit.py --row 256:10000:700:5 --stock 0        # pixels : Gaussians : steps : lr_factor

Stock is a loop as gsplat's own trainer runs it: one object, a round and nearly transparent start, a fused Adam for each
parameter, one view a step, constant rates; with the same loss, its similarity by grouped convolution. It runs on every
sixth object by uid: the first few one after the other, whose seconds count, the others side by side for their quality
alone. Objects are repeated to fill a batch; quality is that of each object's first copy. Writes
benchmarks/results/fit.json.
"""

import argparse
import csv
import logging
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import SHARED, commit, gpus, record
from torch import Tensor
from torch.nn.functional import conv2d

from clipgs.config import Config, Fit
from clipgs.core.processes import usable_cores
from clipgs.splats.fitting import as_gaussians, fit, prepare
from clipgs.splats.fitting.cuda import CudaFit
from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.losses import C1, C2, WINDOW
from clipgs.splats.quality import quality
from clipgs.splats.rasterizer import kernels

ROWS = ("256:10000:5000:2", "256:10000:1500:4", "256:10000:2000:4", "512:16000:5000:2")
BARS = {(256, 5000): 15_000, (256, 1500): 40_000, (256, 2000): 40_000, (512, 5000): 5_000}  # objects an hour
# Learning rates of 3D Gaussian Splatting: positions, quaternions, scales, opacities, colours.
STOCK_RATES = {"lr_means": 1.6e-4, "lr_quats": 1e-3, "lr_scales": 5e-3, "lr_opacities": 5e-2, "lr_colors": 1e-2}
STOCK_EVERY = 6
SIDE_BY_SIDE = 4  # objects of the stock loop, which waits for launches most of its time
PROFILED_STEPS = 40
_log = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "core", help="folder with manifest.csv")
    parser.add_argument("--objects", type=int, help="the first so many by uid (default: all)")
    parser.add_argument("--row", action="append", help="pixels:Gaussians:steps:lr_factor; may be given again")
    parser.add_argument("--batch", type=int, default=128, help="objects a batch at 256 px; 9/16 of it at 512 px")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many is told")
    parser.add_argument("--stock", type=int, default=12, help="most objects that the stock loop fits at 256 px")
    parser.add_argument("--stock-large", type=int, default=6, help="the same at 512 px")
    parser.add_argument("--stock-timed", type=int, default=3, help="objects of these that it has the GPU alone for")
    parser.add_argument("--output", type=Path, help="of the JSON (default: benchmarks/results/fit.json)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    with open(arguments.data / "manifest.csv", newline="") as file:
        objects = sorted(csv.DictReader(file), key=lambda row: row["uid"])[: arguments.objects]
    files = [arguments.data / row["file"] for row in objects]
    rows: list[dict[str, Any]] = []
    data: dict[int, tuple[Points, Views]] = {}
    stocks: dict[int, dict[str, Any]] = {}

    def write() -> None:  # after each row, and each object of stock's: a run that is cut short leaves what it made
        for row in rows:
            if stock := stocks.get(row["px"]):
                mine = [row["psnr_by_object"][i] for i in stock["objects"]]
                row["psnr_over_stock"] = statistics.fmean(mine) - stock["psnr"]
                row["times_stock"] = row["objects_per_hour"] / stock["objects_per_hour"]
        results = {"rows": [*stocks.values(), *rows], "driver": gpus("name,driver_version")}
        record(
            "fit",
            {"fit": Fit(gaussians=10_000).model_dump(mode="json"), "objects": len(files)},
            results,
            arguments.output,
        )

    specs = [[float(part) for part in spec.split(":")] for spec in arguments.row or ROWS]
    for pixels, gaussians, steps, factor in specs:
        settings = Fit(gaussians=int(gaussians), steps=int(steps), lr_factor=factor)
        if int(pixels) not in data:
            data[int(pixels)] = load_objects(files, int(pixels))
        batch = arguments.batch if pixels <= 256 else arguments.batch * 9 // 16
        row = our_row(*data[int(pixels)], settings, batch, arguments.runs)
        row["bar"] = BARS.get((int(pixels), settings.steps))
        rows.append(row)
        write()
    for pixels, gaussians in dict.fromkeys((int(spec[0]), int(spec[1])) for spec in specs):
        most = arguments.stock if pixels <= 256 else arguments.stock_large
        for row in stock_rows(*data[pixels], Fit(gaussians=gaussians), most, arguments.stock_timed):
            stocks[pixels] = row
            write()
    for row in (*stocks.values(), *rows):
        _tell(row)
    return 0 if all(row["bar"] is None or row["objects_per_hour"] >= row["bar"] for row in rows) else 1


def load_objects(files: list[Path], pixels: int) -> tuple[Points, Views]:
    """Points, and the pictures to fit and those held out, of all objects, on the CPU."""
    begin = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(usable_cores(), len(files)), mp_context=spawn) as pool:
        parts = list(pool.map(_one, files, [pixels] * len(files)))
    _log.info("%d objects loaded and drawn at %d px in %.1f s", len(files), pixels, time.perf_counter() - begin)
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*parts, strict=True)]
    return Points(*columns[:3]), Views(*columns[3:])


def _one(file: Path, pixels: int) -> tuple[np.ndarray, ...]:
    from clipgs.meshes import cameras, points, views
    from clipgs.meshes.load import load

    torch.set_num_threads(1)
    config = Config()
    limits = config.meshes
    mesh = load(file, max_faces=limits.max_faces, max_texture_pixels=limits.max_texture_pixels)
    fitted = cameras.canonical(config.views.count, pixels=pixels)
    held_out = cameras.held_out(config.views.held_out, pixels=pixels, among=config.views.count)
    viewmats, Ks = (np.concatenate(pair) for pair in zip(fitted, held_out, strict=True))
    rgba = views.render(mesh, viewmats, Ks, pixels, supersample=config.views.supersample)
    return (*points.sample(mesh, config.points.count, seed=0), rgba, viewmats, Ks)


def our_row(points: Points, views: Views, settings: Fit, batch: int, runs: int) -> dict[str, Any]:
    count, objects = Config().views.count, len(points.xyz)
    rounds = -(-objects // batch)
    seconds, psnrs = [], []
    torch.cuda.reset_peak_memory_stats()
    for run in range(runs):
        # the first run takes all objects, for their quality; the others one batch
        for first in range(0, objects if run == 0 else 1, batch):
            chosen = torch.arange(first, first + batch) % objects
            cloud, seen = points[chosen], views[chosen].to("cuda")
            torch.cuda.synchronize()
            begin = time.perf_counter()
            gaussians = fit(cloud.to("cuda"), seen[:, :count], settings, seeds=[0] * batch)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
            if run == 0:
                held_out = seen[:, count:]
                judged = range(min(batch, objects - first))
                psnrs += [quality(gaussians[b].prune(settings.prune_below), held_out[b])["psnr"] for b in judged]
    if len(seconds) > rounds:  # the first loads the kernels
        seconds = seconds[1:]
    return {
        "way": "clipgs",
        "px": views.rgba.shape[-2],
        "gaussians": settings.gaussians,
        "steps": settings.steps,
        "lr_factor": settings.lr_factor,
        "batch": batch,
        "loss": f"{1 - settings.ssim_weight:g} L1 + {settings.ssim_weight:g} (1 - SSIM) + alpha, random ground",
        "objects_per_hour": 3600 * batch / statistics.median(seconds),
        "seconds_a_batch": seconds,
        "psnr": statistics.fmean(psnrs),
        "psnr_by_object": psnrs,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
        "profile_us_a_step": profile(points, views, settings, batch),
        "commit": commit(),
    }


def profile(points: Points, views: Views, settings: Fit, batch: int) -> dict[str, float]:
    """Microseconds of each kernel a step, all objects on one stream; a fit has several, whose kernels overlap."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    count = Config().views.count
    chosen = torch.arange(batch) % len(points.xyz)
    with ThreadPoolExecutor(usable_cores()) as pool:
        starts = list(pool.map(lambda b, seed: prepare(points[b], count, settings, seed), chosen, range(batch)))
    raw, plans = zip(*starts, strict=True)
    one = CudaFit(torch.from_numpy(np.stack(raw)).cuda(), views[chosen, :count].to("cuda"), settings, plans)
    for number in range(200):
        one.step(number)
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as profiled:
        for number in range(200, 200 + PROFILED_STEPS):
            one.step(number)
        torch.cuda.synchronize()
    times = {event.key[:60]: event.self_device_time_total / PROFILED_STEPS for event in profiled.key_averages()}
    times = {key: value for key, value in times.items() if value > 1}
    begin = time.perf_counter()
    for number in range(240, 340):
        one.step(number)
    torch.cuda.synchronize()
    times["a whole step on one stream"] = (time.perf_counter() - begin) / 100 * 1e6
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def stock_rows(points: Points, views: Views, settings: Fit, most: int, timed: int) -> Iterator[dict[str, Any]]:
    """The row of the stock loop, after each of its objects."""
    objects = list(range(0, len(points.xyz), STOCK_EVERY))[:most]
    seconds, psnrs = [], []
    if objects:
        stock_object(points[[objects[0]]], views[[objects[0]]], settings.model_copy(update={"steps": 50}))

    def row() -> dict[str, Any]:
        return {
            "way": "stock",
            "px": views.rgba.shape[-2],
            "gaussians": settings.gaussians,
            "steps": settings.steps,
            "loss": f"{1 - settings.ssim_weight:g} L1 + {settings.ssim_weight:g} (1 - SSIM) + alpha, random ground",
            "objects": objects[: len(psnrs)],
            "objects_per_hour": 3600 / statistics.median(seconds),
            "seconds_an_object": seconds,
            "psnr": statistics.fmean(psnrs),
            "psnr_by_object": psnrs,
            "commit": commit(),
        }

    for index in objects[:timed]:
        took, psnr = stock_object(points[[index]], views[[index]], settings)
        seconds.append(took)
        psnrs.append(psnr)
        yield row()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(SIDE_BY_SIDE, mp_context=spawn) as pool:
        waiting = [pool.submit(stock_object, points[[index]], views[[index]], settings) for index in objects[timed:]]
        for future in waiting:
            psnrs.append(future.result()[1])
            yield row()


def stock_object(points: Points, views: Views, settings: Fit) -> tuple[float, float]:
    """Seconds and held-out PSNR of one object, [1, P, ...] and [1, V, ...] on the CPU."""
    count, seen = Config().views.count, views[0].to("cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    gaussians = stock(points[0], seen[:count], settings)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    return seconds, quality(gaussians.prune(settings.prune_below), seen[count:])["psnr"]


def stock(points: Points, views: Views, settings: Fit) -> Gaussians:
    """One object, [P, ...] on the CPU and [V, ...] on the GPU."""
    from gsplat import rasterization

    raw, plan = prepare(points, len(views.rgba), settings, 0)
    groups = [part.T.contiguous().cuda() for part in torch.from_numpy(raw).split(kernels.PARTS)]
    groups[1] = torch.tensor([1.0, 0, 0, 0], device="cuda").repeat(settings.gaussians, 1)
    groups[2] = groups[2][:, :1].repeat(1, 3) - np.log(settings.disc_spacing)
    groups[3] = torch.full_like(groups[3], np.log(0.1 / 0.9))
    optimizers = [
        torch.optim.Adam([group.requires_grad_()], lr=rate, eps=1e-15, fused=True)
        for group, rate in zip(groups, STOCK_RATES.values(), strict=True)
    ]
    grounds = torch.from_numpy(plan.grounds).cuda()
    height, width = views.rgba.shape[1:3]
    window = torch.tensor(WINDOW, device="cuda")
    window = (window[:, None] * window).expand(3, 1, -1, -1).contiguous()
    for number in range(settings.steps):
        view = int(plan.views[number])
        means, quats, log_scales, logits, colors = groups
        image, alpha, _ = rasterization(
            means,
            quats,
            log_scales.exp(),
            logits[:, 0].sigmoid(),
            colors.sigmoid(),
            views.viewmats[view : view + 1],
            views.Ks[view : view + 1],
            width,
            height,
            packed=False,
            backgrounds=grounds[number : number + 1],
        )
        rgba = views.rgba[view].float() / 255
        target = torch.lerp(grounds[number].expand(height, width, 3), rgba[..., :3], rgba[..., 3:])
        loss = (1 - settings.ssim_weight) * (image[0] - target).abs().mean()
        loss = loss + settings.ssim_weight * (1 - _ssim(image[0], target, window))
        loss = loss + settings.alpha_weight * (alpha[0] - rgba[..., 3:]).abs().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return as_gaussians(torch.cat([group.detach() for group in groups], dim=1).T[None])[0]


def _ssim(
    x: Tensor,  # [H, W, 3]
    y: Tensor,  # [H, W, 3]
    window: Tensor,  # [3, 1, 11, 11]
) -> Tensor:  # []
    x, y = x.movedim(-1, 0)[None], y.movedim(-1, 0)[None]
    mean_x, mean_y, xx, yy, xy = (conv2d(z, window, padding=5, groups=3) for z in (x, y, x * x, y * y, x * y))
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    similarity = (2 * product + C1) * (2 * (xy - product) + C2) / ((squares + C1) * (xx + yy - squares + C2))
    return similarity.mean()


def _tell(row: dict[str, Any]) -> None:
    _log.info(
        "%-6s %d px, %d Gaussians, %d steps: %.0f objects an hour, %.2f dB",
        *(row[key] for key in ("way", "px", "gaussians", "steps", "objects_per_hour", "psnr")),
    )
    for key in ("times_stock", "psnr_over_stock", "peak_memory_gb"):
        if key in row:
            _log.info("    %s %.2f", key, row[key])
    for name, microseconds in row.get("profile_us_a_step", {}).items():
        if microseconds > 10:
            _log.info("    %7.0f us  %s", microseconds, name)


if __name__ == "__main__":
    sys.exit(main())
