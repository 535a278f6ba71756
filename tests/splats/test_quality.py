import math

import pytest
import torch

from clipgs.splats.gaussians import Views
from clipgs.splats.quality import quality
from clipgs.splats.rasterizer import rasterize
from tests.splats.test_render import front_camera, red_dot

PIXELS = 32


def views(rgba: torch.Tensor) -> Views:  # [H, W, 4] in [0, 1]
    return Views((rgba * 255).round().to(torch.uint8)[None], *front_camera(PIXELS))


def drawn(gaussians) -> torch.Tensor:
    """The Gaussians' own render as straight RGBA [H, W, 4] in [0, 1]."""
    inputs = (gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacities, gaussians.colors)
    image, alpha = rasterize(*inputs, *front_camera(PIXELS), PIXELS, PIXELS)
    return torch.cat([image / alpha.clamp_min(1e-6), alpha], dim=-1)[0].clamp(0, 1)


def test_a_splat_against_its_own_picture():
    result = quality(red_dot(), views(drawn(red_dot())))
    assert result["psnr"] > 50  # what is left is the rounding to 8 bits
    assert result["psnr_foreground"] > 40
    assert result["ssim"] > 0.999
    assert result["alpha_iou"] == 1
    assert result["gaussians"] == 1


def test_figures_by_hand():
    """Nothing drawn, against a black square that covers a quarter of the frame."""
    rgba = torch.zeros(PIXELS, PIXELS, 4)
    rgba[:16, :16, 3] = 1
    invisible = red_dot(opacity_logits=torch.tensor([-200.0]))
    result = quality(invisible, views(rgba))
    assert result["psnr"] == pytest.approx(10 * math.log10(4), abs=1e-4)
    assert result["psnr_foreground"] == pytest.approx(0, abs=1e-4)
    assert result["alpha_iou"] == 0


def test_mean_over_views_is_of_the_decibels():
    rgba = torch.zeros(2, PIXELS, PIXELS, 4)
    rgba[0, :16, :16, 3] = 1
    rgba[1, :, :, 3] = 1
    viewmats, Ks = front_camera(PIXELS)
    both = Views((rgba * 255).to(torch.uint8), viewmats.expand(2, 4, 4), Ks.expand(2, 3, 3))
    result = quality(red_dot(opacity_logits=torch.tensor([-200.0])), both)
    assert result["psnr"] == pytest.approx((10 * math.log10(4) + 0) / 2, abs=1e-4)


def test_colour_under_transparency_does_not_count():
    rgba = drawn(red_dot())
    changed = rgba.clone()
    changed[rgba[..., 3] == 0] = torch.tensor([0.3, 0.9, 0.1, 0.0])
    assert quality(red_dot(), views(changed)) == quality(red_dot(), views(rgba))


def test_nothing_against_nothing():
    result = quality(red_dot(opacity_logits=torch.tensor([-200.0])), views(torch.zeros(PIXELS, PIXELS, 4)))
    assert result["psnr"] == pytest.approx(100)
    assert result["psnr_foreground"] is None
    assert result["alpha_iou"] == 1
