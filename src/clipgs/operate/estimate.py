"""What a run will need, from measured rates: disk, jobs and hours a stage, before anything is started.

The rates come from the benchmarks (docs/scaling.md names the machines). They give the size of a run, not its exact end.
"""

from dataclasses import dataclass

from clipgs.catalog.shards import Plan, plan
from clipgs.config import Config
from clipgs.core.lists import counted
from clipgs.stages import STAGES

# Bytes. A picture's are in proportion to its pixels, measured at 128 and 256 px on real and built-in objects.
POINT_BYTES = 36
VIEW_BYTES_A_PIXEL = 0.45  # PNG with alpha, cut by most of the frame being empty
RENDER_BYTES_A_PIXEL = 0.10  # WebP of quality 90
GAUSSIAN_BYTES = 56
OBJECT_BYTES = 30_000  # tar headers and the JSON with 36 cameras

# Seconds of one core an object, on an Intel Xeon of 2.3 GHz.
LOAD_SECONDS = 0.1
VIEW_SECONDS, VIEW_SECONDS_A_PIXEL = 0.4, 1.1e-5  # for all 40 views; a pixel of one rendered view; with Mesa
FIT_SECONDS_A_GAUSSIAN, FIT_SECONDS_A_PIXEL = 2.0e-7, 9.0e-8  # a step
RENDER_SECONDS = 0.5
PACK_SECONDS = 0.02
# Seconds of one H200 an object and step, at 256 px and 10,000 Gaussians.
GPU_FIT_SECONDS = 1.9e-5
GPU_JOB_SECONDS = 20  # of a fit job in which its GPU waits: start, first pictures, last files


@dataclass(frozen=True)
class Need:
    """What one stage needs for all objects. Where nothing was measured, only its jobs are known."""

    stage: str
    jobs: int
    disk_bytes: float
    core_hours: float
    gpu_hours: float  # where the stage runs on a GPU; its core-hours are those without one
    passing: bool  # its files are temporary


def rates(config: Config) -> dict[str, tuple[float, float, float]]:
    """Of each stage bytes on disk, seconds of one core and seconds of one GPU, for one object."""
    views, fit = config.views, config.fit
    images, rendered = views.count + views.held_out, (views.pixels * views.supersample) ** 2
    splat = GAUSSIAN_BYTES * fit.gaussians
    renders = views.count * config.render.pixels**2 * RENDER_BYTES_A_PIXEL
    step = FIT_SECONDS_A_GAUSSIAN * fit.gaussians + FIT_SECONDS_A_PIXEL * views.pixels**2
    gpu_step = GPU_FIT_SECONDS * (fit.gaussians / 10_000 + (views.pixels / 256) ** 2) / 2
    return {
        "fetch": (0.0, LOAD_SECONDS, 0.0),
        "sample": (POINT_BYTES * config.points.count, LOAD_SECONDS, 0.0),
        "view": (images * views.pixels**2 * VIEW_BYTES_A_PIXEL, VIEW_SECONDS + VIEW_SECONDS_A_PIXEL * rendered, 0.0),
        "fit": (splat, fit.steps * step, fit.steps * gpu_step + GPU_JOB_SECONDS / config.catalog.shard_objects),
        "render": (renders, RENDER_SECONDS, 0.0),
        "pack": (splat + renders + OBJECT_BYTES, PACK_SECONDS, 0.0),
    }


def needs(config: Config) -> tuple[Plan, list[Need]]:
    """The catalog with the objects to come, and what each stage needs for all of them.

    Raises:
        ClipgsError: as `clipgs.catalog.shards.plan`.
    """
    made, of_object = plan(config), rates(config)
    found, needed = [], {"index"}
    for stage in reversed(STAGES.values()):
        needed |= set(stage.after) if stage.name in needed else set()
    for stage in (stage for stage in STAGES.values() if stage.name in needed or stage.by_object):
        size, core, gpu = (made.objects * rate for rate in of_object.get(stage.name, (0.0, 0.0, 0.0)))
        jobs = len(made.shards) if stage.per == ("shard",) else 1
        found.append(Need(stage.name, jobs, size, core / 3600, gpu / 3600, stage.folder in config.temporary))
    return made, found


def plan_text(config: Config) -> str:
    """Which objects are taken, and the needs as a table, for `clipgs plan`."""
    made, stages = needs(config)
    jobs = sum(need.jobs for need in stages)
    shards = f"{counted(len(made.shards), 'shard')} of up to {config.catalog.shard_objects:,}"
    lines = [
        *(f"{note[0].upper()}{note[1:]}." for note in made.notes),
        f"{counted(made.objects, 'object')} in {shards}, {counted(jobs, 'job')}",
        f"{'stage':<8} {'jobs':>7} {'disk':>10} {'of one core':>12} {'of one H200':>12}",
    ]
    for need in stages:
        disk = size_text(need.disk_bytes) if need.disk_bytes else ""
        core, gpu = (time_text(hours) if hours else "" for hours in (need.core_hours, need.gpu_hours))
        row = f"{need.stage:<8} {need.jobs:>7,} {disk:>10} {core:>12} {gpu:>12}"
        lines.append((row + ("  dropped when no longer needed" if need.passing else "")).rstrip())
    kept = sum(need.disk_bytes for need in stages if not need.passing)
    lines.append(f"{'kept':<8} {'':>7} {size_text(kept):>10}")
    lines.append("fit runs on a GPU or on cores. Mesh files and their download are not counted.")
    return "\n".join(lines) + "\n"


def size_text(count: float) -> str:
    """Bytes in MB or GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def time_text(hours: float) -> str:
    """Hours in hours or minutes."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} min"
