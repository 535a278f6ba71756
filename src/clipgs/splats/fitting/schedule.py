"""The schedule of a fit: each step's view, background and learning rates, and the steps that dead Gaussians move at."""

from dataclasses import dataclass

import numpy as np

from clipgs.config import Fit
from clipgs.splats.rasterizer import kernels

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-15  # Adam, as in 3DGS
LAST_RATE = 0.05  # of a cosine schedule, as a fraction of the first
RELOCATIONS = 8  # spread over the middle of a fit: not before Gaussians had time to die, not near the end


@dataclass(frozen=True)
class Schedule:
    """The plan of T steps, the same for both engines; its random numbers depend on the object's seed alone."""

    views: np.ndarray  # [T] int64
    grounds: np.ndarray  # [T, 3] float32
    rates: np.ndarray  # [T, 14] float32, of the raw parameters
    relocations: frozenset[int]  # before which steps dead Gaussians are moved
    relocation_rng: np.random.Generator


def schedule(settings: Fit, views: int, seed: int) -> Schedule:
    """Plan a fit to so many views."""
    steps = settings.steps
    relocations = np.linspace(0.1, 0.8, RELOCATIONS) * steps
    order_rng, ground_rng, relocation_rng = np.random.default_rng(seed).spawn(3)
    order = np.concatenate([order_rng.permutation(views) for _ in range(-(-steps // views))])[:steps]
    decay = np.ones(steps)
    if settings.schedule == "cosine":
        decay = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
    rates = np.repeat(
        [settings.lr_means, settings.lr_quats, settings.lr_scales, settings.lr_opacities, settings.lr_colors],
        kernels.PARTS,
    )
    return Schedule(
        views=order,
        grounds=(ground_rng.random((steps, 3)) if settings.random_ground else np.ones((steps, 3))).astype(np.float32),
        rates=(settings.lr_factor * decay[:, None] * rates).astype(np.float32),
        relocations=frozenset(int(step) for step in relocations if step >= 1),
        relocation_rng=relocation_rng,
    )
