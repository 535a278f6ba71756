"""From one mesh file to one splat, by the same steps as the stages `sample`, `view` and `fit`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch

from clipgs.catalog.records import UpAxis
from clipgs.catalog.sources.digests import digest_of, with_named_files
from clipgs.config import Config, check
from clipgs.core import workers
from clipgs.core.devices import choose_device
from clipgs.core.errors import ObjectError, UsageError
from clipgs.core.runner import Files, Row, Task
from clipgs.core.seeds import seed_of
from clipgs.meshes import views as drawing
from clipgs.meshes.load import load_by
from clipgs.meshes.points import sample
from clipgs.splats.export import save
from clipgs.splats.gaussians import Gaussians, Points, Views

Target = TypeVar("Target")
Preset = Literal["demo", "quick", "fast", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
# `quick` is no recipe of a run: as sharp as `fast`, and a third of its time on a CPU.
_QUICK = {"views": {"pixels": 256}, "fit": {"gaussians": 10_000, "steps": 1_000, "lr_factor": 4.0}}
_POINTS_A_GAUSSIAN = 1.25  # of which the start takes those that lie evenly
# The user's own file is no attack: what one mesh may need is not limited as for the objects of a run.
_MESHES = {"max_faces": 100_000_000, "max_texture_pixels": 1 << 30}


@dataclass(frozen=True, eq=False)
class FittedMesh:
    """A splat and the mesh that it was fitted to."""

    gaussians: Gaussians
    """[N, ...], in the canonical frame, in which Y is up and the longest side of the mesh is 1, around the origin."""
    views: Views
    """[V, ...] of the mesh, first those that the splat was fitted to, then the held-out ones."""
    held_out: int
    """How many of the views are held out."""
    quality: dict[str, Any]
    """Over the held-out views, see `clipgs.splats.quality.quality`."""
    note: str | None = None
    """What of the mesh was read in another way than its file says."""

    @property
    def psnr(self) -> float:
        """dB over the whole frame on a white background, mean over the held-out views."""
        return float(self.quality["psnr"])

    def save(self, path: str | Path) -> None:
        """Writes the splat, whole or not at all: a PLY, or what the suffix says (.ply, .splat, .glb).

        Raises:
            UsageError: the suffix is another, or there is no such folder.
        """
        if not (folder := Path(path).parent).is_dir():
            raise UsageError(f"there is no folder {folder}")
        save(self.gaussians, Path(path))

    def __repr__(self) -> str:
        return f"FittedMesh({len(self.gaussians):,} Gaussians, {self.psnr:.1f} dB on {self.held_out} held-out views)"


class ToFit(NamedTuple):
    """What is to be made of one mesh file. Picklable."""

    config: Config
    file: Path
    up_axis: UpAxis = "auto"
    root: Path | None = None  # textures may lie anywhere below it


class Seen(NamedTuple):
    """What a fit needs of one mesh. Picklable."""

    points: Points  # [P, ...]
    views: Views  # [V, ...]
    seed: int
    note: str | None


def fit_mesh(
    path: str | Path,
    *,
    preset: Preset | None = None,
    gaussians: int | None = None,
    steps: int | None = None,
    pixels: int | None = None,
    up_axis: UpAxis = "auto",
    seed: int = 0,
) -> FittedMesh:
    """Fits a splat to a mesh file, on the GPU if there is one.

    The same file and settings give the splat that a run of the workflow gives; on a CPU to the byte.

    Args:
        path: a file of any format that `catalog.source: folder` reads.
        preset: `demo`, `fast` and `paper` are the recipes of a run. `quick` is between `demo` and `fast`. The default
            is `paper` on a GPU, and `quick` on a CPU.
        gaussians, steps, pixels: replace those of the preset.
        up_axis: the axis that points up in the file, y or z; `auto` takes what the file says, or else y.
        seed: of the points, the order of the views and the backgrounds.

    Raises:
        UsageError: an argument is wrong.
        ObjectError: the file is missing, or cannot be read, drawn or fitted; the text names it.
    """
    config = settings(preset, gaussians=gaussians, steps=steps, pixels=pixels, seed=seed)
    if up_axis not in get_args(UpAxis):
        raise UsageError(f"up_axis is {up_axis!r}; allowed: {', '.join(get_args(UpAxis))}")
    if not isinstance(path, (str, Path)):
        raise TypeError(f"fit_mesh takes the path of one mesh file, not {type(path).__name__}")
    try:
        return fit_one(ToFit(config, Path(path), up_axis))
    except ObjectError as error:
        raise ObjectError(f"{path}: {error}") from error


def settings(
    preset: Preset | None = None,
    *,
    gaussians: int | None = None,
    steps: int | None = None,
    pixels: int | None = None,
    seed: int = 0,
) -> Config:
    """The configuration of a fit; see `fit_mesh`.

    Raises:
        UsageError: a value is not allowed.
    """
    if preset is None:
        preset = "quick" if choose_device("auto", alone=False) == "cpu" else "paper"
    if preset not in PRESETS:
        raise UsageError(f"the preset is {preset!r}; allowed: {', '.join(PRESETS)}")
    of_preset = check({"recipe": "demo", **_QUICK} if preset == "quick" else {"recipe": preset})
    fit = of_preset.fit.model_dump() | _given(gaussians=gaussians, steps=steps) | {"min_psnr": 0.0}
    views = of_preset.views.model_dump() | _given(pixels=pixels)
    values: dict[str, Any] = {"recipe": of_preset.recipe, "seed": seed, "meshes": _MESHES, "views": views, "fit": fit}
    try:
        config = check(values, "the fit")
    except UsageError as error:  # in the words of the caller
        raise UsageError(re.sub(r"\b(?:views|fit)\.(pixels|gaussians|steps)\b", r"\1", str(error))) from None
    points = max(config.points.count, int(_POINTS_A_GAUSSIAN * config.fit.gaussians))
    return check(values | {"points": {"count": points}}, "the fit")


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}


def fit_one(to_fit: ToFit, done: Callable[[], None] | None = None) -> FittedMesh:
    """Fits one mesh in this process; `done` as for `clipgs.splats.fitting.fit`. Raises as `fit_mesh`."""
    from clipgs.splats.fitting import fit

    config = to_fit.config
    device = choose_device(config.device, alone=False)
    if device == "cuda":  # the first use of a GPU takes a second, in which the mesh is read and drawn
        Thread(target=torch.zeros, args=(1,), kwargs={"device": device}, daemon=True).start()
    seen = see(to_fit)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the stage: with more, numbers may differ in their last bits
    try:
        to_see = seen.views[None, : config.views.count].to(device)
        gaussians = fit(seen.points[None], to_see, config.fit, seeds=[seen.seed], done=done)[0]
        return judged(config, gaussians, seen)
    finally:
        torch.set_num_threads(threads)


def see(to_fit: ToFit) -> Seen:
    """Reads a mesh, samples its surface and draws its views.

    Raises:
        ObjectError: it cannot be read or drawn.
    """
    config, file = to_fit.config, to_fit.file
    mesh = load_by(config, file, up_axis=to_fit.up_axis, root=to_fit.root)
    uid = digest_of(with_named_files(file.absolute(), to_fit.root))[:16]  # as the catalog names it
    points = sample(mesh, config.points.count, seed_of(config.seed, "sample", uid))
    drawn = drawing.posed(mesh, config.views)
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (*points, *drawn)]
    return Seen(Points(*tensors[:3]), Views(*tensors[3:]), seed_of(config.seed, "fit", uid), mesh.note)


def judged(
    config: Config,
    gaussians: Gaussians,  # [N, *]
    seen: Seen,
) -> FittedMesh:
    """The result of a fit, on the CPU: for one object its engine is quick, and a GPU's would be loaded first.

    Raises:
        ObjectError: the fit did not stay finite, or left nothing.
    """
    from clipgs.splats.quality import finished, quality

    gaussians = finished(gaussians.to("cpu"), config.fit)
    if len(gaussians) == 0:
        raise ObjectError("the fit left no Gaussian that can be seen")
    measured = quality(gaussians, seen.views[config.views.count :])
    return FittedMesh(gaussians, seen.views, config.views.held_out, measured, seen.note)


def fit_many(
    jobs: Sequence[tuple[ToFit, Target]], threads: int, finish: Callable[[Target, FittedMesh], Row]
) -> Iterator[tuple[int, Row | str]]:
    """Fits many meshes with one configuration: on a GPU in batches, on a CPU in one process a core.

    Args:
        jobs: what to fit, and what `finish` gets with it. Picklable.
        finish: a function of a module, called with the result in a thread or another process.

    Yields:
        The index of each job with its row or, as text, its error; in the order in which they finish.
    """
    if choose_device("auto", alone=False) == "cuda":
        yield from _in_batches(jobs, threads, finish)
        return
    limits = jobs[0][0].config.workers
    memory = limits.load_memory_mb + limits.fit_memory_mb
    yield from _in_workers(partial(_fit_and_finish, finish), jobs, threads, limits.fit_timeout_seconds, memory)


def _in_workers(
    function: Callable[[Any], Any], payloads: Sequence[Any], threads: int, seconds: float, memory_mb: int
) -> Iterator[tuple[int, Any]]:
    """As `workers.run`, with failures as text."""
    count = min(workers.usable_workers(threads, memory_mb), len(payloads))
    results = workers.run(function, payloads, workers=count, timeout_seconds=seconds, memory_mb=memory_mb)
    for index, result in results:
        yield index, result.error if isinstance(result, workers.Failure) else result


def _fit_and_finish(finish: Callable[[Target, FittedMesh], Row], job: tuple[ToFit, Target]) -> Row:
    to_fit, target = job
    return finish(target, fit_one(to_fit))


def _in_batches(
    jobs: Sequence[tuple[ToFit, Target]], threads: int, finish: Callable[[Target, FittedMesh], Row]
) -> Iterator[tuple[int, Row | str]]:
    """Draws in worker processes, as many objects as a batch holds, fits them in this one, and so on."""
    from clipgs.splats import fitting
    from clipgs.splats.fitting.batches import fit_batches

    config = jobs[0][0].config
    limits = config.workers.load_limits
    size = fitting.cuda.objects_a_batch(config.fit, config.views.count, config.views.pixels)

    def finished(payload: tuple[int, Seen], gaussians: Gaussians, views: Views) -> tuple[Row, Files]:
        return finish(jobs[payload[0]][1], judged(config, gaussians, payload[1])), []

    drawn = _in_workers(see, [to_fit for to_fit, _ in jobs], threads, limits.timeout_seconds, limits.memory_mb)
    while some := list(islice(drawn, size)):
        yield from ((index, seen) for index, seen in some if isinstance(seen, str))
        tasks = [Task("", "", (index, seen)) for index, seen in some if not isinstance(seen, str)]
        for task, result in fit_batches(config, tasks, threads, lambda payload: payload[1][:3], finished):
            yield task.payload[0], result if isinstance(result, str) else result[0]
