"""Pictures of splats."""

import torch
from torch import Tensor

from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import from_image as from_image
from clipgs.splats.pictures import to_webp as to_webp
from clipgs.splats.rasterizer import rasterize

WHITE = (1.0, 1.0, 1.0)


@torch.no_grad()
def render(
    gaussians: Gaussians,  # [..., N, *]
    viewmats: Tensor,  # [..., V, 4, 4], world to camera
    Ks: Tensor,  # [..., V, 3, 3], pixels
    pixels: int,
    ground: tuple[float, float, float] = WHITE,
) -> Tensor:
    """Square pictures of the Gaussians over a plain ground, [..., V, pixels, pixels, 3] uint8."""
    images, _ = rasterize(
        gaussians.means,
        gaussians.quats_wxyz,
        gaussians.scales,
        gaussians.opacities,
        gaussians.colors,
        viewmats,
        Ks,
        pixels,
        pixels,
        backgrounds=viewmats.new_tensor(ground).expand(*viewmats.shape[:-2], 3),
    )
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
