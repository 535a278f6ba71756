"""What one step of a fit costs on one CPU thread: forward, loss, backward and Adam, at the start and later.

    python benchmarks/rasterize_cpu.py --data ../shared/data/core

The first object by uid, 10,000 Gaussians, 128 x 128 pixels. Every figure is the median of five runs of two epochs,
divided by how much slower than the reference a fixed loop ran beside it, so that a busy or a slower machine does not
look like slower code. Writes benchmarks/results/rasterize_cpu.json and a table to standard output.
"""

import argparse
import csv
import math
import resource
import sys
import time
from pathlib import Path

import numba
import numpy as np
import torch
from record import SHARED, record

from clipgs.config import Fit, Meshes, PointCloud
from clipgs.config import Views as ViewSettings
from clipgs.meshes import cameras, points, views
from clipgs.meshes.load import load
from clipgs.splats.fitting import prepare
from clipgs.splats.fitting.cpu import CpuFit
from clipgs.splats.gaussians import Points
from clipgs.splats.rasterizer.cpu import camera_row

PIXELS, VIEWS, RUNS, STEPS_A_RUN = 128, 36, 5, 72
BARS_MS = {"L1": 12.5, "L1 and SSIM": 16.0}
# The least of many runs of `calibration` on the idle machine that the bars were set on (Intel Xeon, family 6 model
# 207, 2 cores, 2.3 GHz nominal).
REFERENCE_SECONDS = 0.0128


@numba.njit(cache=True)
def calibration(rounds):
    """A chain of float32 multiplications, additions, roots and divisions, which no compiler can shorten."""
    x = np.float32(0.5)
    for _ in range(rounds):
        x = np.float32(3.7) * x * (np.float32(1) - x)
        x = math.sqrt(x * x + np.float32(0.01)) / (np.float32(1.2) + x * np.float32(0.1))
    return x


def calibration_seconds() -> float:
    begin = time.perf_counter()
    calibration(1_000_000)
    return time.perf_counter() - begin


def first_object(data: Path) -> tuple[dict, Points, np.ndarray, list[np.ndarray]]:
    """The first object by uid: its manifest row, points, pictures and cameras."""
    with open(data / "manifest.csv", newline="") as file:
        row = min(csv.DictReader(file), key=lambda row: row["uid"])
    limits = Meshes()
    mesh = load(data / row["file"], max_faces=limits.max_faces, max_texture_pixels=limits.max_texture_pixels)
    viewmats, Ks = cameras.canonical(VIEWS, pixels=PIXELS)
    cloud = Points(*map(torch.from_numpy, points.sample(mesh, PointCloud().count, seed=0)))
    rgba = views.render(mesh, viewmats, Ks, PIXELS, supersample=ViewSettings().supersample)
    return row, cloud, rgba, [camera_row(viewmat, K) for viewmat, K in zip(viewmats, Ks, strict=True)]


def measure(one: CpuFit, first_step: int) -> dict[str, float]:
    """Median milliseconds a step over runs that all begin with the same Gaussians."""
    saved = one.raw.copy(), one.moments.copy(), one.params.copy()
    measured, scales = [], []
    for run in range(RUNS + 1):
        for array, value in zip((one.raw, one.moments, one.params), saved, strict=True):
            array[...] = value
        before = calibration_seconds()
        begin = time.perf_counter()
        for number in range(first_step, first_step + STEPS_A_RUN):
            one.step(number)
        seconds = time.perf_counter() - begin
        scale = (before + calibration_seconds()) / 2 / REFERENCE_SECONDS
        if run > 0:  # the first compiles
            measured.append(seconds / STEPS_A_RUN * 1e3)
            scales.append(scale)
    for array, value in zip((one.raw, one.moments, one.params), saved, strict=True):
        array[...] = value
    return {
        "ms_a_step": float(np.median(measured)),
        "machine_slower_by": float(np.median(scales)),
        "ms_a_step_scaled": float(np.median(np.array(measured) / scales)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "core", help="folder with manifest.csv")
    parser.add_argument("--step", type=int, default=2500, help="the later step")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    row, cloud, rgba, camera_rows = first_object(arguments.data)
    settings = Fit(gaussians=10_000)
    rows = []
    for loss, weight in (("L1", 0.0), ("L1 and SSIM", settings.ssim_weight)):
        chosen = settings.model_copy(update={"ssim_weight": weight})
        one = CpuFit(prepare(cloud, VIEWS, chosen, seed=0), rgba, camera_rows, chosen)
        for first_step in (0, arguments.step):
            for number in range(first_step):
                one.step(number)
            rows.append({"loss": loss, "step": first_step, **measure(one, first_step), "bar_ms": BARS_MS[loss]})
    met = all(row["ms_a_step_scaled"] <= row["bar_ms"] for row in rows)

    results = {
        "object": {"uid": row["uid"], "file": row["file"]},
        "calibration_reference_seconds": REFERENCE_SECONDS,
        "rows": rows,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bars_met": met,
    }
    record("rasterize_cpu", {"pixels": PIXELS, "views": VIEWS, "fit": settings.model_dump(mode="json")}, results)
    lines = [f"{'loss':<12} {'step':>5} {'ms':>6} {'scaled':>7} {'bar':>5}"]
    lines += [
        f"{r['loss']:<12} {r['step']:>5} {r['ms_a_step']:>6.2f} {r['ms_a_step_scaled']:>7.2f} {r['bar_ms']:>5.1f}"
        for r in rows
    ]
    lines.append(f"peak memory {results['peak_memory_mb']:.0f} MB; bars {'met' if met else 'MISSED'}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
