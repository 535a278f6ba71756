"""The start of a fit: thin discs in the object's surface, and the schedule of its steps."""

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from clipgs.config import Fit
from clipgs.core.errors import ObjectError
from clipgs.splats.fitting.schedule import Schedule, schedule
from clipgs.splats.gaussians import Points
from clipgs.splats.rasterizer import kernels

NEIGHBOURS = 3
GRID_TRIALS = 16  # halvings of the cell: to a 30,000th of the object
SMALLEST_SPACING = 1e-4  # object sizes; points that coincide would get a scale of zero
COLOR_MARGIN = 1e-3  # a colour of exactly 0 or 1 has no logit


class Prepared(NamedTuple):
    """The input of one object's fit besides its views. Serves one fit, which consumes the schedule's generator."""

    raw: np.ndarray  # [14, N] float32, see `start`
    schedule: Schedule


def prepare(
    points: Points,  # [P, ...] on the CPU
    views: int,
    settings: Fit,
    seed: int,
) -> Prepared:
    """Prepare one object's fit to so many views. May run in a thread while a GPU fits other objects.

    Raises:
        ValueError: fewer points than Gaussians.
        ObjectError: a number is not finite.
    """
    if len(points.xyz) < settings.gaussians:
        raise ValueError(
            f"{settings.gaussians} Gaussians (fit.gaussians) need as many points, but an object has {len(points.xyz)} "
            "points (points.count): sample more points or fit fewer Gaussians."
        )
    return Prepared(start(points, settings, seed), schedule(settings, views, seed))


def start(
    points: Points,  # [P, ...] on the CPU
    settings: Fit,
    seed: int,
) -> np.ndarray:  # [14, N] float32
    """Discs in the surface, in the kernels' rows: means, quaternions, log-scales, opacity logits, colour logits.

    Their centres are N of the points, spread evenly. A disc's radius is `disc_spacing` times the root mean square of
    the distances to its three nearest neighbours.

    Raises:
        ObjectError: a number is not finite.
    """
    xyz, rgb, normals = points.xyz.numpy(), points.rgb.numpy(), points.normals.numpy()
    if not all(np.isfinite(array).all() for array in (xyz, rgb, normals)):
        raise ObjectError("A surface point's position, colour or normal is not finite.")
    count = settings.gaussians
    chosen = evenly_spaced(xyz, count, np.random.default_rng(seed))
    xyz, rgb, normals = (array[chosen].astype(np.float64) for array in (xyz, rgb, normals))

    neighbours = min(NEIGHBOURS, count - 1)
    distances = cKDTree(xyz).query(xyz, k=neighbours + 1)[0][:, 1:]
    spacing = np.sqrt(np.mean(distances**2, axis=1)).clip(min=SMALLEST_SPACING)
    radius = settings.disc_spacing * spacing
    scales = radius[:, None] * np.array([1, 1, settings.disc_thickness])

    # the shortest rotation from the z axis to the normal; where that is undefined, 180 degrees about x
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-6, normals / length.clip(min=1e-6), [0, 0, 1])
    quats = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], axis=1)
    quats[normals[:, 2] < -1 + 1e-6] = [0, 1, 0, 0]
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)

    rgb = rgb.clip(COLOR_MARGIN, 1 - COLOR_MARGIN)
    raw = np.empty((kernels.PARAMETERS, count), np.float32)
    raw[kernels.MEANS : kernels.QUATS] = xyz.T
    raw[kernels.QUATS : kernels.SCALES] = quats.T
    raw[kernels.SCALES : kernels.OPACITIES] = np.log(scales).T
    raw[kernels.OPACITIES] = np.log(settings.disc_opacity / (1 - settings.disc_opacity))
    # Colours are optimised as logits, so they stay in [0, 1] without a clamp, which would cut the gradient off.
    raw[kernels.COLORS :] = np.log(rgb / (1 - rgb)).T
    return raw


def evenly_spaced(
    xyz: np.ndarray,  # [P, 3]
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:  # [count] int64
    """The rows of `count` points: one from each cell of the finest grid with at most `count` occupied cells, and the
    rest at random. Farthest-point sampling spreads them a little better but takes ten times as long.
    """
    order = rng.permutation(len(xyz))
    offsets = (xyz[order] - xyz.min(axis=0)).astype(np.float64)
    extent = max(float(offsets.max()), float(np.finfo(np.float32).tiny))
    fine, coarse, best = 0.0, 2.0, np.empty(0, np.int64)
    for _ in range(GRID_TRIALS):
        cell = (fine + coarse) / 2
        cells = np.floor(offsets / (cell * extent)).astype(np.int64)
        _, first = np.unique(cells @ np.array([1, 1 << 20, 1 << 40]), return_index=True)
        if len(first) <= count:
            coarse, best = cell, first
        else:
            fine = cell
    rest = np.delete(np.arange(len(xyz)), best)[: count - len(best)]
    return order[np.sort(np.concatenate([best, rest]))]
