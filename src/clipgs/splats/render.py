"""Pictures of splats."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipgs.splats.gaussians import Gaussians
from clipgs.splats.rasterize import rasterize

WHITE = (1.0, 1.0, 1.0)
WEBP_METHOD = 4  # libwebp's effort, 0 to 6: beyond 4 the time doubles for 1 % of the bytes


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


def to_webp(
    image: np.ndarray,  # [H, W, 3] uint8
    quality: int,
) -> bytes:
    """One picture as lossy WebP of `quality` 0 to 100; equal pictures give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=WEBP_METHOD)
    return buffer.getvalue()


def from_image(data: bytes) -> np.ndarray:
    """The picture in a WebP or PNG, [H, W, 3] uint8; what is transparent stands over white."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "RGB":
            return np.asarray(image)
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
