"""Patches of a splat: the encoder's input, the centres of the patches, and the Gaussians nearest to them.

B objects, N Gaussians, g patches of n Gaussians each.
"""

import math
from dataclasses import replace

import numba
import numpy as np
import torch
from torch import Tensor

from clipgs.config import Encoder
from clipgs.core.errors import ObjectError
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.order import farthest_point_order
from clipgs.splats.ply import MAX_LOGIT


def prepare(gaussians: Gaussians, settings: Encoder | None = None, name: str = "the splat") -> Gaussians:
    """The encoder's input of one object: cleaned, centred, of radius 1, the rows of the patch centres first.

    Gaussians that are nearly transparent or far outside the others are dropped. Positions are centred at their mean and
    divided by the radius that contains `radius_fraction` of them; with 1 that is the largest distance, as in Uni3D.
    Log-scales are shifted by the same factor. The first `groups` rows are in farthest-point order; farthest-point
    sampling also chooses the rows to keep of a splat with more than `gaussians` rows, unless `choice` draws them.

    Args:
        gaussians: one object, [N, ...].
        settings: the section `encoder` of the configuration.
        name: of the object, for the errors.

    Raises:
        ObjectError: a value is not a number, or no Gaussian is visible.
    """
    settings = settings or Encoder()
    if gaussians.means.ndim != 2:
        raise ValueError(f"prepare takes one object, not a batch {list(gaussians.means.shape)}.")
    for field in ("means", "quats_wxyz", "colors", "opacity_logits", "log_scales"):
        values = getattr(gaussians, field)
        bad = values.isnan() if field in ("opacity_logits", "log_scales") else ~values.isfinite()
        if bad.any():
            count = int(bad.reshape(len(values), -1).any(1).sum())
            raise ObjectError(f"{name}: {field} of {count} of {len(values)} Gaussians are not finite numbers")
    means = gaussians.means.detach().cpu().double().numpy()
    logits = gaussians.opacity_logits.detach().cpu().double().numpy()
    opacity = settings.min_opacity
    least_logit = math.log(opacity) - math.log1p(-opacity) if opacity > 0 else -math.inf
    rows, placed, radius = _frame(means, logits, least_logit, settings.outlier_radii, settings.radius_fraction)
    if len(rows) == 0:
        raise ObjectError(f"{name}: none of {len(gaussians)} Gaussians has an opacity of {settings.min_opacity:g}")
    placed = placed.astype(np.float32)
    if len(rows) > settings.gaussians and settings.choice == "weight":
        kept = _drawn(gaussians[torch.from_numpy(rows).to(gaussians.means.device)], settings.gaussians)
        rows, placed = rows[kept], placed[kept]
    most = settings.gaussians if len(rows) > settings.gaussians else settings.groups
    order = farthest_point_order(placed, first=most)[: settings.gaussians]
    device = gaussians.means.device
    gaussians = gaussians[torch.from_numpy(rows[order]).to(device)]
    return replace(
        gaussians,
        means=torch.from_numpy(placed[order]).to(device),
        log_scales=(gaussians.log_scales - math.log(radius)).clamp(-MAX_LOGIT, MAX_LOGIT),
        opacity_logits=gaussians.opacity_logits.clamp(-MAX_LOGIT, MAX_LOGIT),
    )


def log_shown(
    logits: Tensor,  # [..., N] of opacities
    log_scales: Tensor,  # [..., N, 3]
    opacity: Tensor | float = 1.0,  # 0 leaves the opacity out
    scale: Tensor | float = 1.0,  # 0 leaves the area out
) -> Tensor:  # [..., N]
    """The logarithm of what each Gaussian shows: opacity times the area of its two longest axes."""
    return opacity * torch.nn.functional.logsigmoid(logits) + scale * log_scales.topk(2, dim=-1).values.sum(-1)


def _drawn(gaussians: Gaussians, count: int) -> np.ndarray:
    """Rows drawn by opacity times area without replacement (Efraimidis and Spirakis, 2006), always the same ones."""
    logits, log_scales = (values.detach().cpu().double() for values in (gaussians.opacity_logits, gaussians.log_scales))
    keys = log_shown(logits, log_scales).numpy() + np.random.default_rng(0).gumbel(size=len(logits))
    return np.sort(np.argpartition(keys, -count)[-count:])


@numba.njit(cache=True, nogil=True)
def _quantile(
    values: np.ndarray,  # [N] float64
    fraction: float,
) -> float:
    ordered = np.sort(values)
    place = fraction * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@numba.njit(cache=True, nogil=True)
def _lengths(
    vectors: np.ndarray,  # [N, 3] float64
) -> np.ndarray:  # [N]
    return np.sqrt(vectors[:, 0] ** 2 + vectors[:, 1] ** 2 + vectors[:, 2] ** 2)


# Compiled to release the GIL: this is the slowest part, and other threads prepare other splats meanwhile.
@numba.njit(cache=True, nogil=True)
def _frame(
    means: np.ndarray,  # [N, 3] float64
    logits: np.ndarray,  # [N] float64
    least_logit: float,
    outlier_radii: float,
    radius_fraction: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The kept rows [n], their centred means [n, 3] divided by the radius that contains `radius_fraction` of them, and
    this radius."""
    rows = np.flatnonzero(logits >= least_logit)
    centre, middle = np.zeros(3), np.zeros(3)
    kept = means[rows]
    if len(rows) == 0:
        return rows, kept, 1.0
    for axis in range(3):
        middle[axis] = np.sort(kept[:, axis])[(len(rows) - 1) // 2]
    distance = _lengths(kept - middle)
    near = np.flatnonzero(distance <= outlier_radii * _quantile(distance, radius_fraction))
    rows, kept = rows[near], kept[near]
    for axis in range(3):
        centre[axis] = kept[:, axis].mean()
    kept = kept - centre
    radius = _quantile(_lengths(kept), radius_fraction)
    radius = radius if radius > 0 else 1.0  # all are at one point
    return rows, kept / radius, radius


def centre_rows(
    count: Tensor,  # [B] int64, real rows of each object
    groups: int,
) -> Tensor:  # [B, g] int64
    """Rows of the patch centres: the first g, in farthest-point order. With fewer Gaussians than g they repeat."""
    return torch.arange(groups, device=count.device) % count.clamp(min=1)[:, None]


@torch.no_grad()
def farthest_points(
    xyz: Tensor,  # [B, N, 3]
    groups: int,
) -> Tensor:  # [B, g] int64
    """Rows of farthest-point sampling from row 0, for points in any order. Fewer points than g repeat.

    The CPU uses the compiled kernel of `clipgs.splats.order`, a GPU takes g steps without synchronising with the host.
    """
    B, N, _ = xyz.shape
    if xyz.device.type == "cpu":
        chosen = torch.stack([torch.from_numpy(farthest_point_order(one.numpy(), groups)[:groups]) for one in xyz])
    else:
        objects = torch.arange(B, device=xyz.device)
        chosen = torch.zeros(B, min(groups, N), dtype=torch.int64, device=xyz.device)
        nearest = torch.full((B, N), torch.inf, device=xyz.device)
        for step in range(1, chosen.shape[1]):
            last = xyz[objects, chosen[:, step - 1]]
            nearest = torch.minimum(nearest, (xyz - last[:, None]).square().sum(-1))
            chosen[:, step] = nearest.argmax(1)
    return chosen[:, torch.arange(groups, device=xyz.device) % chosen.shape[1]]


@torch.no_grad()
def nearest(
    xyz: Tensor,  # [B, N, 3]
    centres: Tensor,  # [B, g, 3]
    size: int,
    count: Tensor | None = None,  # [B] int64, real rows of each object
) -> Tensor:  # [B, g, n] int64
    """The n rows nearest to each centre, the nearest first, without padding. Fewer rows than n repeat from the nearest.

    Translating, rotating or scaling an object does not change the result, so it may be stored.
    """
    N = xyz.shape[1]
    xyz, centres = xyz.float(), centres.float()
    # From differences: a matrix product would lose small distances, most of all in TF32.
    distance = (centres[:, :, None, 0] - xyz[:, None, :, 0]).square()
    for axis in (1, 2):
        distance = distance + (centres[:, :, None, axis] - xyz[:, None, :, axis]).square()
    if count is not None:
        padding = torch.arange(N, device=xyz.device) >= count[:, None]
        distance = distance.masked_fill(padding[:, None], torch.inf)
    rows = distance.topk(min(size, N), dim=-1, largest=False).indices
    if count is None and size <= N:
        return rows
    real = torch.full((len(xyz),), N, device=xyz.device) if count is None else count
    slots = torch.arange(size, device=xyz.device) % real.clamp(1, size)[:, None]  # [B, n]
    return rows.gather(2, slots[:, None].expand(-1, rows.shape[1], -1))


def take(
    values: Tensor,  # [B, N, C]
    rows: Tensor,  # [B, ...] int64
) -> Tensor:  # [B, ..., C]
    """Rows of each object."""
    flat = rows.flatten(1)
    return values.gather(1, flat[..., None].expand(-1, -1, values.shape[2])).view(*rows.shape, values.shape[2])
