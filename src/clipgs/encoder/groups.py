"""Patches of a splat: what is fed to the encoder, which Gaussians are centres, and which are near them.

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

# Beyond it a sigmoid is 0 or 1, and its gradient 0; a file may hold infinite logits, and they are no error.
MAX_LOGIT = 30.0


def prepare(gaussians: Gaussians, settings: Encoder | None = None, name: str = "the splat") -> Gaussians:
    """What the encoder sees of one object: cleaned, centred, of radius 1, the rows of the patch centres first.

    Gaussians that are nearly transparent, or far outside the others, are left out. Positions are centred at their
    mean and divided by the distance within which `radius_fraction` of them lie; with 1 that is the largest, as in
    Uni3D. Log-scales are shifted by the same factor. The first `groups` rows are in farthest-point order; of a splat
    with more than `gaussians` rows those stay that farthest-point sampling chooses.

    Args:
        gaussians: one object, [N, ...].
        settings: the section `encoder` of the configuration.
        name: of the object, for the errors.

    Raises:
        ObjectError: a value is not a number, or there is no Gaussian to be seen.
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
    rows, placed, radius = _frame(
        means, logits, _logit(settings.min_opacity), settings.outlier_radii, settings.radius_fraction
    )
    if len(rows) == 0:
        raise ObjectError(f"{name}: none of {len(gaussians)} Gaussians has an opacity of {settings.min_opacity:g}")
    placed = placed.astype(np.float32)
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


def _logit(opacity: float) -> float:
    return math.log(opacity) - math.log1p(-opacity) if opacity > 0 else -math.inf


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


# Compiled to release the GIL: it takes most of the time, and other threads prepare other splats meanwhile.
@numba.njit(cache=True, nogil=True)
def _frame(
    means: np.ndarray,  # [N, 3] float64
    logits: np.ndarray,  # [N] float64
    least_logit: float,
    outlier_radii: float,
    radius_fraction: float,
) -> tuple[np.ndarray, np.ndarray, float]:
    """The rows [n] that are kept, where they stand about their mean [n, 3] in units of the radius that holds
    `radius_fraction` of them, and this radius."""
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
    radius = radius if radius > 0 else 1.0  # all in one point
    return rows, kept / radius, radius


def centre_rows(
    count: Tensor,  # [B] int64, real rows of each object
    groups: int,
) -> Tensor:  # [B, g] int64
    """Rows of the patch centres: the first g, which farthest-point order made the centres.

    An object of fewer Gaussians than g has patches twice.
    """
    return torch.arange(groups, device=count.device) % count.clamp(min=1)[:, None]


@torch.no_grad()
def farthest_points(
    xyz: Tensor,  # [B, N, 3]
    groups: int,
) -> Tensor:  # [B, g] int64
    """Rows that farthest-point sampling chooses from row 0 on, for points that are in no such order.

    On a CPU by the compiled kernel of `clipgs.splats.order`, on a GPU in g steps without synchronising with the
    host. Fewer points than g are chosen again from the first on.
    """
    B, N, _ = xyz.shape
    if xyz.device.type == "cpu":
        rows = [torch.from_numpy(farthest_point_order(one.numpy(), first=groups)[:groups]) for one in xyz]
        chosen = torch.stack(rows)
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
    """The n rows nearest to each centre, the nearest first; padding is never among them.

    An object of fewer rows than n gives all of them, again from the nearest on. The result does not change when an
    object is moved, turned or scaled as a whole, so it may be stored.
    """
    N = xyz.shape[1]
    xyz, centres = xyz.float(), centres.float()
    # Differences first: the usual product of matrices loses the small distances, all the more in TF32.
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
