"""Renders of splats."""

import torch
from torch import Tensor

from clipgs.splats.gaussians import Gaussians
from clipgs.splats.rasterizer import rasterize


def draw(
    gaussians: Gaussians,  # [..., N, *]
    viewmats: Tensor,  # [..., V, 4, 4], world to camera
    Ks: Tensor,  # [..., V, 3, 3], pixels
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:  # [..., V, H, W, 3], [..., V, H, W, 1]
    """Images of the Gaussians over white, clamped to [0, 1], and their alphas."""
    inputs = (gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacities, gaussians.colors)
    backgrounds = torch.ones_like(viewmats[..., 0, :3])
    images, alphas = rasterize(*inputs, viewmats, Ks, width, height, backgrounds=backgrounds)
    return images.clamp(0, 1), alphas


@torch.no_grad()
def render(
    gaussians: Gaussians,  # [..., N, *]
    viewmats: Tensor,  # [..., V, 4, 4], world to camera
    Ks: Tensor,  # [..., V, 3, 3], pixels
    pixels: int,
) -> Tensor:  # [..., V, pixels, pixels, 3] uint8
    """Square images of the Gaussians over white."""
    images, _ = draw(gaussians, viewmats, Ks, pixels, pixels)
    return (images * 255).round().to(torch.uint8)
