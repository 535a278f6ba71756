"""Augmentation: random rotation, scale and shift of an object, and sometimes grey instead of its colours.

Positions, quaternions and scales change together, so the splat renders as the transformed object. All distances change
by one factor, so farthest-point order and neighbours stay the same. Kinds and sizes of the changes are those of Uni3D
(Zhou et al., ICLR 2024).
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from clipgs.config import Augmentation
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.quaternions import product, rotation_matrices

DRAWS = 9  # numbers per object: quaternion 4, scale 1, shift 3, whether it keeps its colours 1


def draw(settings: Augmentation, objects: int, generator: np.random.Generator) -> np.ndarray:
    """Random numbers of one augmentation for each object, [B, 9] float32, for `augment`."""
    if settings.rotation == "full":
        quats = generator.normal(size=(objects, 4))  # an isotropic direction in 4D is a uniform rotation
    else:
        half = generator.uniform(0, math.pi, objects) if settings.rotation == "y" else np.zeros(objects)
        zero = np.zeros(objects)
        about_y = np.stack([np.cos(half), zero, np.sin(half), zero], axis=1)
        tilts = settings.tilt_sigma * generator.normal(size=(objects, 3))
        tilts = tilts.clip(-settings.tilt_clip, settings.tilt_clip)  # radians, about x, y and z
        angles = np.linalg.norm(tilts, axis=1, keepdims=True)
        small = np.concatenate([np.cos(angles / 2), np.sin(angles / 2) * tilts / angles.clip(1e-12)], axis=1)
        quats = product(torch.from_numpy(about_y), torch.from_numpy(small)).numpy()
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    scales = generator.uniform(settings.scale_min, settings.scale_max, (objects, 1))
    shifts = generator.uniform(-settings.shift, settings.shift, (objects, 3))
    keeps_colors = generator.uniform(size=(objects, 1)) >= settings.color_dropout
    return np.concatenate([quats, scales, shifts, keeps_colors], axis=1).astype(np.float32)


def augment(
    gaussians: Gaussians,  # [B, N, *]
    draws: Tensor,  # [B, 9], of `draw`
    grey: float = 0.4,
) -> Gaussians:
    """Rotates, then scales, then shifts each object by its draws; makes it grey if they say so."""
    quats, scales, shifts, keeps = draws[:, :4], draws[:, 4], draws[:, 5:8], draws[:, 8]
    turned = transform(gaussians, quats, scales, shifts)
    keeps = keeps[:, None, None].to(gaussians.colors.dtype)
    return replace(turned, colors=gaussians.colors * keeps + grey * (1 - keeps))


def transform(
    gaussians: Gaussians,  # [B, N, *]
    quats_wxyz: Tensor,  # [B, 4], rotations, unit length
    scales: Tensor,  # [B], factors
    shifts: Tensor,  # [B, 3]
) -> Gaussians:
    """Transforms splats by x -> scale R x + shift: means, orientations and log-scales."""
    rotations = rotation_matrices(quats_wxyz)
    return replace(
        gaussians,
        means=scales[:, None, None] * gaussians.means @ rotations.mT + shifts[:, None],
        quats_wxyz=product(quats_wxyz[:, None], gaussians.quats_wxyz),
        log_scales=gaussians.log_scales + scales.log()[:, None, None],
    )
