"""Fitting Gaussians to posed views of objects, from points on their surfaces.

A fixed number N of Gaussians starts as thin discs in the surface; Gaussians that die are moved, never added (after
Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", 2024), so a batch stays rectangular. One view
a step, each view once an epoch. On a CPU one object at a time runs through compiled kernels on one thread, and its
result depends on nothing but its own points, views, seed and the settings; on CUDA the whole batch takes each step
in one call.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from scipy.spatial import cKDTree
from torch import Tensor

from clipgs.config import Fit
from clipgs.core.errors import ObjectError
from clipgs.core.processes import usable_cores
from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.losses import FrameLoss
from clipgs.splats.rasterizer import kernels
from clipgs.splats.rasterizer.cpu import Rasterizer, camera_row, padded
from clipgs.splats.rasterizer.simd import LANES, exp, load, root, store

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-15  # Adam, as in 3DGS
LAST_RATE = 0.05  # of a cosine schedule, as a part of the first
RELOCATIONS = 8  # spread over the middle of a fit: none before Gaussians had time to die, none near the end
PARTS = (3, 4, 3, 1, 3)  # rows of means, quaternions, log-scales, opacity logit, colour logits
NEIGHBOURS = 3
GRID_TRIALS = 16  # halvings of the cell: to a 30,000th of the object
SMALLEST_SPACING = 1e-4  # object sizes; points that coincide would get a scale of zero
COLOR_MARGIN = 1e-3  # a colour of exactly 0 or 1 has no logit
HIDDEN_LOGIT = -100.0
PROGRESS_STEPS = 100


def fit(
    points: Points,  # [B, P, ...]
    views: Views,  # [B, V, ...]
    settings: Fit,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gaussians:  # [B, N, ...]
    """Fit N Gaussians to each of B objects, where the tensors are: on the CPU or on a CUDA device.

    Args:
        points: at least N of them an object, with colours and normals; the start.
        views: pictures with alpha, and their cameras.
        settings: the `fit` section.
        seeds: one an object (default 0): the order of the views, the grounds and what is moved where.
        progress: called with (step, steps) about every hundred steps; on the CPU for each object in turn.

    Raises:
        ValueError: shapes that do not belong together, or fewer points than Gaussians.
        ObjectError: an object's numbers are not finite, or its fit did not stay finite.
        ClipgsError: on CUDA, where the kernels cannot be compiled.
    """
    objects, available = points.xyz.shape[:2]
    seeds = [0] * objects if seeds is None else list(seeds)
    if views.rgba.shape[0] != objects or len(seeds) != objects:
        raise ValueError(
            f"points are of {objects} objects, views of {views.rgba.shape[0]}, and there are {len(seeds)} seeds: "
            "all three must agree."
        )
    if available < settings.gaussians:
        raise ValueError(
            f"{settings.gaussians} Gaussians are asked for (fit.gaussians) but there are only {available} points "
            "an object (points.count): sample more points or fit fewer Gaussians."
        )
    run = _fit_cuda if points.xyz.is_cuda else _fit_cpu
    gaussians = run(points, views, settings, seeds, progress)
    for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors"):
        if not getattr(gaussians, name).isfinite().all():
            raise ObjectError(f"The fit did not stay finite ({name}).")
    return gaussians


def start(
    xyz: np.ndarray,  # [P, 3]
    rgb: np.ndarray,  # [P, 3] in [0, 1]
    normals: np.ndarray,  # [P, 3]
    settings: Fit,
    seed: int,
) -> np.ndarray:  # [14, N] float32
    """Discs in the surface, in the kernels' rows: means, quaternions, log-scales, opacity logit, colour logits.

    N of the points are taken, spread as evenly as they allow. A disc's radius is a part of the spacing, the root mean
    square of the distances to three neighbours.

    Raises:
        ObjectError: a number is not finite.
    """
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

    # the shortest turn from the z axis to the normal; half a turn about x where that is undefined
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-6, normals / length.clip(min=1e-6), [0, 0, 1])
    quats = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(count)], axis=1)
    quats[normals[:, 2] < -1 + 1e-6] = [0, 1, 0, 0]
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)

    rgb = rgb.clip(COLOR_MARGIN, 1 - COLOR_MARGIN)
    table = np.empty((kernels.PARAMETERS, count), np.float32)
    table[kernels.MEANS : kernels.QUATS] = xyz.T
    table[kernels.QUATS : kernels.SCALES] = quats.T
    table[kernels.SCALES : kernels.OPACITIES] = np.log(scales).T
    table[kernels.OPACITIES] = np.log(settings.disc_opacity / (1 - settings.disc_opacity))
    # Colours are learnt as logits: they stay in [0, 1] with no clamp, whose gradient would be 0 beyond it.
    table[kernels.COLORS :] = np.log(rgb / (1 - rgb)).T
    return table


def evenly_spaced(
    xyz: np.ndarray,  # [P, 3]
    count: int,
    rng: np.random.Generator,
) -> np.ndarray:  # [count] int64
    """Some of the points, spread over them: one a cell of the finest grid that has no more than `count` cells with
    points in them, and the rest at random.

    Farthest-point sampling spreads them a little better, and takes ten times as long.
    """
    order = rng.permutation(len(xyz))
    offsets = (xyz[order] - xyz.min(axis=0)).astype(np.float64)
    extent = max(float(offsets.max()), np.finfo(np.float32).tiny)
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


@dataclass(frozen=True)
class Schedule:
    """What each of T steps does: the same for both engines, and drawn from one object's seed alone."""

    views: np.ndarray  # [T] int64
    grounds: np.ndarray  # [T, 3] float32
    rates: np.ndarray  # [T, 14] float32, of the raw parameters
    relocations: frozenset[int]  # before which steps dead Gaussians are moved
    relocation_rng: np.random.Generator


def schedule(settings: Fit, views: int, seed: int) -> Schedule:
    """Plan a fit to that many views."""
    steps = settings.steps
    order_rng, ground_rng, relocation_rng = np.random.default_rng(seed).spawn(3)
    order = np.concatenate([order_rng.permutation(views) for _ in range(-(-steps // views))])[:steps]
    decay = np.ones(steps)
    if settings.schedule == "cosine":
        decay = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    rates = np.repeat(
        [settings.lr_means, settings.lr_quats, settings.lr_scales, settings.lr_opacities, settings.lr_colors],
        PARTS,
    )
    return Schedule(
        views=order,
        grounds=(ground_rng.random((steps, 3)) if settings.random_ground else np.ones((steps, 3))).astype(np.float32),
        rates=(settings.lr_factor * decay[:, None] * rates).astype(np.float32),
        relocations=relocation_steps(settings),
        relocation_rng=relocation_rng,
    )


def relocation_steps(settings: Fit) -> frozenset[int]:
    """Before which steps dead Gaussians are moved."""
    steps = np.linspace(0.1, 0.8, RELOCATIONS) * settings.steps
    return frozenset(int(step) for step in steps if step >= 1)


def relocate(
    table: np.ndarray,  # [14, N], changed in place
    moments: np.ndarray,  # [2, 14, N] of Adam, changed in place
    below: float,
    rng: np.random.Generator,
) -> int:
    """Move Gaussians whose opacity is under `below` onto living ones; returns how many were moved.

    A living Gaussian is chosen with a chance that grows with its opacity and its area. It and those moved onto it
    share its place with opacities and scales that leave the picture nearly as it was (Kheradmand et al. 2024,
    equations 9 and 10), and start Adam anew.
    """
    opacities = 1 / (1 + np.exp(-table[kernels.OPACITIES].astype(np.float64)))
    dead = np.flatnonzero(opacities < below)
    alive = np.flatnonzero(opacities >= below)
    if len(dead) == 0 or len(alive) == 0:
        return 0
    log_scales = np.sort(table[kernels.SCALES : kernels.OPACITIES, alive].astype(np.float64), axis=0)
    weights = opacities[alive] * np.exp(log_scales[1] + log_scales[2] - log_scales[1:].sum(0).max())
    targets = rng.choice(alive, len(dead), p=weights / weights.sum())
    sources, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    before = opacities[sources].clip(max=1 - 1e-6)
    after = 1 - (1 - before) ** (1 / (counts + 1))
    shrink = np.array([_shrinkage(o, n + 1) for o, n in zip(after, counts, strict=True)])
    table[kernels.OPACITIES, sources] = np.log(after / (1 - after))
    table[kernels.SCALES : kernels.OPACITIES, sources] += np.log(before * shrink)
    table[:, dead] = table[:, sources[index]]
    moments[:, :, sources] = 0
    moments[:, :, dead] = 0
    return len(dead)


def _shrinkage(opacity: float, copies: int) -> float:
    """1 / (sum over i <= copies, k < i of C(i - 1, k) (-1)^k opacity^(k + 1) / sqrt(k + 1)): equation 9's factor on
    the scale for copies of one new opacity, less the old opacity. The sum over i of C(i - 1, k) is C(copies, k + 1).
    """
    total, binomial = 0.0, 1.0
    for k in range(min(copies, 50)):
        binomial *= (copies - k) / (k + 1)
        total += binomial * (-1) ** k * opacity ** (k + 1) / np.sqrt(k + 1)
    return 1 / total


class CpuFit:
    """One object's fit on the CPU, step by step, in buffers made once."""

    def __init__(
        self,
        table: np.ndarray,  # [14, N], from `start`
        rgba: np.ndarray,  # [V, H, W, 4] uint8
        cameras: Sequence[np.ndarray],  # V of [16]
        settings: Fit,
        seed: int,
    ):
        self.rgba, self.cameras = rgba, cameras
        self.schedule = schedule(settings, len(rgba), seed)
        height, width = rgba.shape[1:3]
        self.gaussians = table.shape[1]
        self.size = padded(self.gaussians)
        self.raw = np.zeros((kernels.PARAMETERS, self.size), np.float32)
        self.raw[kernels.OPACITIES] = HIDDEN_LOGIT  # of the padding: never drawn
        self.raw[:, : self.gaussians] = table
        self.moments = np.zeros((2, *self.raw.shape), np.float32)
        self.params = np.zeros(self.raw.size, np.float32)
        self.rasterizer = Rasterizer(self.gaussians, width, height)
        self.loss = FrameLoss(width, height, settings.ssim_weight, settings.alpha_weight)
        self.relocate_below = settings.relocate_below
        _activate(self.raw.reshape(-1), self.params)

    @property
    def table(self) -> np.ndarray:  # [14, N]
        return self.raw[:, : self.gaussians]

    def step(self, number: int) -> float:
        """One view, one step of Adam; returns the loss before it."""
        plan = self.schedule
        if number in plan.relocations:
            relocate(self.table, self.moments[:, :, : self.gaussians], self.relocate_below, plan.relocation_rng)
            _activate(self.raw.reshape(-1), self.params)
        view = plan.views[number]
        self.rasterizer.project(self.params, self.cameras[view])
        frame = self.rasterizer.draw()
        loss = self.loss(frame, self.rgba[view], plan.grounds[number], self.rasterizer.pixel_gradients)
        gradients = self.rasterizer.backward(self.params, self.cameras[view])
        _adam(
            self.raw.reshape(-1),
            self.params,
            gradients,
            self.moments.reshape(-1),
            plan.rates[number],
            np.float32(1 / (1 - BETA_1 ** (number + 1))),
            np.float32(1 / (1 - BETA_2 ** (number + 1))),
        )
        _activate(self.raw.reshape(-1), self.params)
        return loss


_compiled = njit(cache=True, error_model="numpy", nogil=True)


@_compiled
def _activate(
    raw,  # [14 * S]: means, quaternions, log-scales, opacity logits, colour logits
    params,  # out [14 * S]: means, quaternions, scales, opacities, colours
):
    size = raw.size // kernels.PARAMETERS
    params[: kernels.SCALES * size] = raw[: kernels.SCALES * size]
    for i in range(kernels.SCALES * size, kernels.OPACITIES * size, LANES):
        store(params, i, exp(load(raw, i)))
    for i in range(kernels.OPACITIES * size, kernels.PARAMETERS * size, LANES):
        store(params, i, 1.0 / (1.0 + exp(0.0 - load(raw, i))))


@_compiled
def _adam(
    raw,  # [14 * S], changed in place
    params,  # [14 * S]
    gradients,  # [14 * S], of params
    moments,  # [2 * 14 * S], changed in place
    rates,  # [14]
    first_correction,
    second_correction,
):
    """Adam (Kingma and Ba 2015) on the raw parameters, through the activations."""
    size = raw.size // kernels.PARAMETERS
    for row in range(kernels.PARAMETERS):
        rate = rates[row] * first_correction
        for i in range(row * size, (row + 1) * size, LANES):
            g = load(gradients, i)
            if row >= kernels.SCALES:
                value = load(params, i)
                g = g * value
                if row >= kernels.OPACITIES:
                    g = g * (1.0 - value)
            first, second = load(moments, i), load(moments, raw.size + i)
            first = BETA_1 * first + (1 - BETA_1) * g
            second = BETA_2 * second + (1 - BETA_2) * (g * g)
            store(moments, i, first)
            store(moments, raw.size + i, second)
            store(raw, i, load(raw, i) - rate * first / (root(second * second_correction) + EPSILON))


def _fit_cpu(points, views, settings, seeds, progress) -> Gaussians:
    objects = views.rgba.shape[0]
    tables = []
    for b in range(objects):
        table = start(*(tensor[b].numpy() for tensor in (points.xyz, points.rgb, points.normals)), settings, seeds[b])
        rgba = np.ascontiguousarray(views.rgba[b].numpy())
        cameras = [
            camera_row(viewmat, K) for viewmat, K in zip(views.viewmats[b].numpy(), views.Ks[b].numpy(), strict=True)
        ]
        one = CpuFit(table, rgba, cameras, settings, seeds[b])
        for number in range(settings.steps):
            one.step(number)
            report(progress, number + 1, settings.steps)
        tables.append(torch.from_numpy(one.table.copy()))
    return as_gaussians(torch.stack(tables))


def _fit_cuda(points, views, settings, seeds, progress) -> Gaussians:
    from clipgs.splats.fitting.cuda import fit_tables

    clouds = [tensor.cpu().numpy() for tensor in (points.xyz, points.rgb, points.normals)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        tables = list(pool.map(lambda *cloud: start(*cloud[:3], settings, cloud[3]), *clouds, seeds))
        plans = list(pool.map(lambda seed: schedule(settings, views.rgba.shape[1], seed), seeds))
    return as_gaussians(fit_tables(np.stack(tables), views, settings, plans, progress))


def report(
    progress: Callable[[int, int], None] | None, step: int, steps: int, wait: Callable[[], None] | None = None
) -> None:
    """Tell of every hundredth step and the last, after waiting for it."""
    if progress is not None and (step % PROGRESS_STEPS == 0 or step == steps):
        if wait is not None:
            wait()
        progress(step, steps)


def as_gaussians(
    tables: Tensor,  # [B, 14, N]
) -> Gaussians:  # [B, N, ...]
    """Raw parameters as what a splat holds."""
    means, quats, log_scales, logits, color_logits = tables.movedim(1, 2).split(PARTS, dim=2)
    return Gaussians(
        means=means.contiguous(),
        quats_wxyz=quats.contiguous(),
        log_scales=log_scales.contiguous(),
        opacity_logits=logits[..., 0].contiguous(),
        colors=color_logits.sigmoid().contiguous(),
    )
