"""How close a splat comes to pictures that it was not fitted to."""

import torch
from torch import Tensor

from clipgs.splats.gaussians import Gaussians, Views
from clipgs.splats.losses import ssim
from clipgs.splats.rasterizer import rasterize

SMALLEST_MSE = 1e-10  # equal pictures have 100 dB, not infinity


@torch.no_grad()
def quality(
    gaussians: Gaussians,  # [N, *]
    views: Views,  # [V, ...], held out
) -> dict[str, float | int | None]:
    """Judge one object's splat on held-out views.

    Returns:
        psnr: dB over the whole frame on a white ground, mean over the views.
        psnr_foreground: dB over the pixels that the object covers (alpha > 0), mean over the views; None
            where no view has any.
        ssim: structural similarity on a white ground, mean over the views.
        alpha_iou: overlap over union of the silhouettes (alpha > 0.5), all views together; 1 if both are
            empty.
        gaussians: how many there are.
    """
    height, width = views.rgba.shape[-3:-1]
    images, alphas = rasterize(
        gaussians.means,
        gaussians.quats_wxyz,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
        views.viewmats,
        views.Ks,
        width,
        height,
        backgrounds=torch.ones_like(views.viewmats[:, 0, :3]),
    )
    images = images.clamp(0, 1)
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
