"""Patches of a splat: what is fed to the encoder, which Gaussians are centres, and which are near them.

B objects, N Gaussians, g patches of n Gaussians each.
"""

from dataclasses import replace

import torch
from torch import Tensor

from clipgs.config import Encoder
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.order import farthest_point_order
from clipgs.storage import ObjectError

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
            rows = int(bad.reshape(len(values), -1).any(1).sum())
            raise ObjectError(f"{name}: {field} of {rows} of {len(values)} Gaussians are not finite numbers")
    keep = gaussians.opacities >= settings.min_opacity
    if not keep.any():
        raise ObjectError(f"{name}: none of {len(gaussians)} Gaussians has an opacity of {settings.min_opacity:g}")
    gaussians = gaussians[keep]
    means = gaussians.means.double()
    distance = (means - means.median(0).values).norm(dim=1)
    keep = distance <= settings.outlier_radii * distance.quantile(settings.radius_fraction)
    gaussians, means = gaussians[keep], means[keep]
    means = means - means.mean(0)
    radius = means.norm(dim=1).quantile(settings.radius_fraction)
    radius = torch.where(radius > 0, radius, 1.0)  # all in one point
    gaussians = replace(
        gaussians,
        means=(means / radius).to(gaussians.means.dtype),
        log_scales=(gaussians.log_scales - radius.log()).clamp(-MAX_LOGIT, MAX_LOGIT).to(gaussians.log_scales.dtype),
        opacity_logits=gaussians.opacity_logits.clamp(-MAX_LOGIT, MAX_LOGIT),
    )
    most = settings.gaussians if len(gaussians) > settings.gaussians else settings.groups
    order = farthest_point_order(gaussians.means.detach().cpu().numpy(), first=most)[: settings.gaussians]
    return gaussians[torch.from_numpy(order).to(gaussians.means.device)]


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

    On a CPU by the compiled kernel of `clipgs.splats.order`, elsewhere by g steps without a word to the host. Fewer
    points than g are chosen again from the first on.
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
