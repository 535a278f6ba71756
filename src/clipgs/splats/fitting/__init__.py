"""Fitting Gaussians to posed views of objects, from points on their surfaces.

A fixed number N of Gaussians starts as thin discs in the surface (`start`). Dead Gaussians are moved and none are added
(`relocate`), so a batch stays rectangular. Each step uses one view, and each epoch uses every view once (`schedule`).
On a CPU the objects are fitted one after the other by compiled kernels on one thread; an object's result depends only
on its own points, views and seed and on the settings (`cpu`). On CUDA one call does a step of the whole batch (`cuda`).
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
from clipgs.splats.gaussians import PARAMETERS, Gaussians, Points, Views
from clipgs.splats.rasterizer import kernels


def fit(
    points: Points | Sequence[Prepared],  # [B, P, ...], or B of them
    views: Views,  # [B, V, ...]
    settings: Fit,
    *,
    seeds: Sequence[int] | None = None,
    done: Callable[[], None] | None = None,
) -> Gaussians:  # [B, N, ...]
    """Fit N Gaussians to each of B objects, on the device of the views: the CPU or a CUDA device.

    Args:
        points: the start, at least N points an object, with colours and normals. Or the results of `prepare`, one an
            object, so that threads prepare the next batch while a GPU fits this one.
        views: images with alpha, and their cameras.
        settings: the `fit` section.
        seeds: one an object (default 0), for the order of the views, the backgrounds and the relocation. Prepared
            objects have their own.
        done: called after each step on a CPU; CUDA's steps are only queued.

    Raises:
        ValueError: the shapes do not agree, or an object has fewer points than Gaussians.
        ObjectError: an object's numbers are not finite, or its fit did not stay finite. The fits of prepared objects
            are not checked, so that one object does not fail the others of its batch.
        ClipgsError: the CUDA kernels cannot be compiled.
    """
    if isinstance(points, Points):
        prepared: Sequence[Prepared] = _prepared(points, views, settings, seeds)
    elif seeds is None:
        prepared = points
    else:
        raise ValueError("prepared objects have their own seeds: leave out `seeds`.")
    if len(prepared) != len(views.rgba):
        raise ValueError(f"{len(prepared)} objects are prepared, but the views are of {len(views.rgba)}.")
    raw = cuda._fit(prepared, views, settings) if views.rgba.is_cuda else cpu._fit(prepared, views, settings, done)
    gaussians = as_gaussians(raw)
    if isinstance(points, Points):
        for name in PARAMETERS:
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
    """Gaussians of the raw parameters."""
    means, quats, log_scales, logits, color_logits = raw.movedim(1, 2).split(kernels.PARTS, dim=2)
    return Gaussians(
        means=means.contiguous(),
        quats_wxyz=quats.contiguous(),
        log_scales=log_scales.contiguous(),
        opacity_logits=logits[..., 0].contiguous(),
        colors=color_logits.sigmoid().contiguous(),
    )
