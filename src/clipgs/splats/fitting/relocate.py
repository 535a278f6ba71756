"""Relocation of dead Gaussians onto living ones (Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte
Carlo", 2024): for one object in numpy, and for a batch of tensors on any device."""

import numpy as np
import torch
from torch import Tensor

from clipgs.splats.rasterizer import kernels

MOST_COPIES = 50  # of one Gaussian in the formula of the new scales


def relocate(
    raw: np.ndarray,  # [14, N], changed in place
    moments: np.ndarray,  # [2, 14, N] of Adam, changed in place
    below: float,
    rng: np.random.Generator,
) -> int:
    """Move Gaussians whose opacity is under `below` onto living ones; returns the number of moved Gaussians.

    The probability of a living Gaussian is proportional to its opacity and its area. It and its copies get opacities
    and scales that leave the image nearly unchanged (Kheradmand et al. 2024, equations 9 and 10), and new moments.
    """
    opacities = 1 / (1 + np.exp(-raw[kernels.OPACITIES].astype(np.float64)))
    dead = np.flatnonzero(opacities < below)
    alive = np.flatnonzero(opacities >= below)
    if len(dead) == 0 or len(alive) == 0:
        return 0
    log_scales = np.sort(raw[kernels.SCALES : kernels.OPACITIES, alive].astype(np.float64), axis=0)
    weights = opacities[alive] * np.exp(log_scales[1] + log_scales[2] - log_scales[1:].sum(0).max())
    targets = rng.choice(alive, len(dead), p=weights / weights.sum())
    sources, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    before = opacities[sources].clip(max=1 - 1e-6)
    after = 1 - (1 - before) ** (1 / (counts + 1))
    shrink = np.array([_shrinkage(o, n + 1) for o, n in zip(after, counts, strict=True)])
    raw[kernels.OPACITIES, sources] = np.log(after / (1 - after))
    raw[kernels.SCALES : kernels.OPACITIES, sources] += np.log(before * shrink)
    raw[:, dead] = raw[:, sources[index]]
    moments[:, :, sources] = 0
    moments[:, :, dead] = 0
    return len(dead)


def _shrinkage(opacity: float, copies: int) -> float:
    """Equation 9's factor on the scale, without the old opacity: 1 / (sum over i <= copies, k < i of
    C(i - 1, k) (-1)^k opacity^(k + 1) / sqrt(k + 1)). The sum over i of C(i - 1, k) is C(copies, k + 1).
    """
    total, binomial = 0.0, 1.0
    for k in range(min(copies, MOST_COPIES)):
        binomial *= (copies - k) / (k + 1)
        total += binomial * (-1) ** k * opacity ** (k + 1) / np.sqrt(k + 1)
    return 1 / total


def relocate_batch(
    raw: Tensor,  # [B, 14, N], changed in place
    moments: Tensor,  # [B, 2, 14, N] of Adam, changed in place
    below: float,
    uniforms: Tensor,  # [B, N] in [0, 1): each chooses the living Gaussian that a dead one is moved onto
) -> None:
    """`relocate` for a batch, on the device of the tensors."""
    opacities = raw[:, kernels.OPACITIES].double().sigmoid()
    dead = opacities < below
    log_scales = raw[:, kernels.SCALES : kernels.OPACITIES].double().sort(dim=1).values
    areas = log_scales[:, 1] + log_scales[:, 2]
    areas = (areas - areas.masked_fill(dead, -torch.inf).amax(dim=1, keepdim=True)).exp()
    cumulative = (opacities * areas).masked_fill(dead, 0).cumsum(dim=1)
    total = cumulative[:, -1:]
    targets = torch.searchsorted(cumulative, uniforms.double() * total, right=True).clamp(max=raw.shape[2] - 1)
    moved = dead & (total > 0)
    counts = torch.zeros_like(opacities).scatter_add_(1, targets, moved.double())
    sources = counts > 0

    before = opacities.clamp(max=1 - 1e-6)
    after = 1 - (1 - before) ** (1 / (counts + 1))
    # `_shrinkage` for all at once
    binomial, power, sum_of_terms = torch.ones_like(counts), torch.ones_like(counts), torch.zeros_like(counts)
    for k in range(MOST_COPIES):  # the binomial is 0 beyond the copies; reading their number would wait for the GPU
        binomial *= (counts + (1 - k)).clamp_(min=0).div_(k + 1)
        power *= after
        sum_of_terms.addcmul_(binomial, power, value=(-1) ** k / (k + 1) ** 0.5)
    changed = raw.clone()
    changed[:, kernels.OPACITIES] = torch.where(sources, after.logit(), opacities.logit()).float()
    changed[:, kernels.SCALES : kernels.OPACITIES] += (before / sum_of_terms).log()[:, None].float()
    changed = torch.where(sources[:, None], changed, raw)
    rows = targets[:, None].expand_as(changed)
    raw.copy_(torch.where(moved[:, None], changed.gather(2, rows), changed))
    moments.masked_fill_((sources | moved)[:, None, None], 0)
