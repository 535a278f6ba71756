"""Fitting Gaussians to posed views of objects, from points on their surfaces.

A fixed number N of Gaussians starts as thin discs in the surface (`start`); Gaussians that die are moved, never added
(`relocate`), so a batch stays rectangular. One view a step, each view once an epoch (`schedule`). On a CPU one object
at a time runs through compiled kernels on one thread, and its result depends on nothing but its own points, views, seed
and the settings (`cpu`); on CUDA the whole batch takes each step in one call (`cuda`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from clipgs.config import Fit
from clipgs.core.errors import ObjectError
from clipgs.core.processes import usable_cores
from clipgs.splats.fitting import cpu, cuda
from clipgs.splats.fitting.start import Prepared as Prepared
from clipgs.splats.fitting.start import prepare as prepare
from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.rasterizer import kernels


def fit(
    points: Points | Sequence[Prepared],  # [B, P, ...], or B of them
    views: Views,  # [B, V, ...]
    settings: Fit,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gaussians:  # [B, N, ...]
    """Fit N Gaussians to each of B objects, where the views are: on the CPU or on a CUDA device.

    Args:
        points: at least N of them an object, with colours and normals; the start. Or what `prepare` made of each
            object's points, so that threads prepare the next batch while a GPU fits this one.
        views: pictures with alpha, and their cameras.
        settings: the `fit` section.
        seeds: one an object (default 0): the order of the views, the grounds and what is moved where. What is prepared
            has its own.
        progress: called with (step, steps) about every hundred steps; on the CPU for each object in turn.

    Raises:
        ValueError: shapes that do not belong together, or fewer points than Gaussians.
        ObjectError: an object's numbers are not finite, or its fit did not stay finite. Of prepared objects the second
            is not looked for: one must not take the others of its batch along.
        ClipgsError: on CUDA, where the kernels cannot be compiled.
    """
    if isinstance(points, Points):
        prepared: Sequence[Prepared] = _prepared(points, views, settings, seeds)
    elif seeds is None:
        prepared = points
    else:
        raise ValueError("What is prepared has its seeds already.")
    if len(prepared) != len(views.rgba):
        raise ValueError(f"{len(prepared)} objects are prepared, and there are views of {len(views.rgba)}.")
    run = cuda._fit if views.rgba.is_cuda else cpu._fit
    gaussians = as_gaussians(run(prepared, views, settings, progress))
    if isinstance(points, Points):
        for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors"):
            if not getattr(gaussians, name).isfinite().all():
                raise ObjectError(f"The fit did not stay finite ({name}).")
    return gaussians


def _prepared(points: Points, views: Views, settings: Fit, seeds: Sequence[int] | None) -> list[Prepared]:
    objects, count = views.rgba.shape[:2]
    seeds = [0] * len(points.xyz) if seeds is None else list(seeds)
    if len(points.xyz) != objects or len(seeds) != objects:
        raise ValueError(
            f"points are of {len(points.xyz)} objects, views of {objects}, and there are {len(seeds)} seeds: "
            "all three must agree."
        )
    here = points.to("cpu")
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(lambda b: prepare(here[b], count, settings, seeds[b]), range(objects)))


def as_gaussians(
    raw: Tensor,  # [B, 14, N]
) -> Gaussians:  # [B, N, ...]
    """Raw parameters as what a splat holds."""
    means, quats, log_scales, logits, color_logits = raw.movedim(1, 2).split(kernels.PARTS, dim=2)
    return Gaussians(
        means=means.contiguous(),
        quats_wxyz=quats.contiguous(),
        log_scales=log_scales.contiguous(),
        opacity_logits=logits[..., 0].contiguous(),
        colors=color_logits.sigmoid().contiguous(),
    )
