"""The quality of a splat on held-out views."""

import torch
from torch import Tensor

from clipgs.config import Fit
from clipgs.core.errors import ObjectError
from clipgs.splats.gaussians import Gaussians, Views
from clipgs.splats.losses import ssim
from clipgs.splats.render import draw

SMALLEST_MSE = 1e-10  # equal images have 100 dB, not infinity


def finished(gaussians: Gaussians, settings: Fit) -> Gaussians:
    """One object's splat after its fit: without the Gaussians that cannot be seen, which may be all.

    Raises:
        ObjectError: a number is not finite.
    """
    if not all(getattr(gaussians, name).isfinite().all() for name in ("means", "quats_wxyz", "log_scales")):
        raise ObjectError("The fit did not stay finite.")
    return gaussians.prune(settings.prune_below)


@torch.no_grad()
def quality(
    gaussians: Gaussians,  # [N, *]
    views: Views,  # [V, ...], held out
) -> dict[str, float | int | None]:
    """Compare one object's splat with held-out views, on a white background.

    Returns:
        psnr: dB over the whole frame, mean over the views.
        psnr_foreground: dB over the pixels that the object covers (alpha > 0), mean over the views; None if it covers
            none.
        ssim: structural similarity, mean over the views.
        alpha_iou: intersection over union of the silhouettes (alpha > 0.5), all views together; 1 if both are empty.
        gaussians: the number of Gaussians.
    """
    height, width = views.rgba.shape[-3:-1]
    images, alphas = draw(gaussians, views.viewmats, views.Ks, width, height)
    rgba = views.rgba.float() / 255
    true_alphas = rgba[..., 3:]
    targets = rgba[..., :3] * true_alphas + 1 - true_alphas

    squares = (images - targets).square().mean(dim=-1)  # [V, H, W]
    covered = views.rgba[..., 3] > 0
    foreground = [_decibels(view[mask].mean()) for view, mask in zip(squares, covered, strict=True) if mask.any()]
    solid, true_solid = alphas > 0.5, true_alphas > 0.5
    union = (solid | true_solid).sum()
    return {
        "psnr": _decibels(squares.mean(dim=(1, 2))).mean().item(),
        "psnr_foreground": torch.stack(foreground).mean().item() if foreground else None,
        "ssim": ssim(images, targets).mean().item(),
        "alpha_iou": ((solid & true_solid).sum() / union).item() if union else 1.0,
        "gaussians": len(gaussians),
    }


def _decibels(mse: Tensor) -> Tensor:
    return -10 * mse.clamp_min(SMALLEST_MSE).log10()
