"""The losses against independent formulas, and the compiled frame loss against torch's autograd."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from clipgs.splats.losses import FrameLoss, fit_loss, ssim
from clipgs.splats.rasterizer.cpu import Rasterizer


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ssim_is_one_of_equal_pictures_only():
    x = pictures(2, 20, 30, 3)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (ssim(x, x.flip(1)) < 0.5).all()


def test_ssim_agrees_with_a_plain_convolution():
    """Equation 13 of Wang et al. 2004, with the two-dimensional window written out."""
    x, y = pictures(17, 13, 3), pictures(17, 13, 3, seed=1)
    y = 0.5 * (x + y)
    offsets = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window = (window / window.sum())[None, None]

    def mean(image):
        return conv2d(image.movedim(-1, 0)[:, None], window, padding=5)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, covariance = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)
    expected = expected / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
    torch.testing.assert_close(ssim(x, y), expected.mean())


def test_fit_loss_is_the_weighted_sum_of_its_parts():
    images, targets = pictures(2, 12, 12, 3), pictures(2, 12, 12, 3, seed=1)
    alphas, target_alphas = pictures(2, 12, 12, 1, seed=2), pictures(2, 12, 12, 1, seed=3)
    l1 = (images - targets).abs().flatten(1).mean(1)
    alpha = (alphas - target_alphas).abs().flatten(1).mean(1)
    expected = 0.7 * l1 + 0.3 * (1 - ssim(images, targets)) + 0.5 * alpha
    torch.testing.assert_close(fit_loss(images, alphas, targets, target_alphas, 0.3, 0.5), expected)


def drawn_frame(rasterizer, margin, seed=0):
    """A frame as the CPU engine might leave it: nothing drawn in a margin, pixels that finished early (negative
    transmittance), and rubbish right of the last column."""
    rng = np.random.default_rng(seed)
    width, height = rasterizer.width, rasterizer.height
    frame = rasterizer.frame
    frame[:] = rng.random(frame.shape) * 0.5
    frame[:, 0] *= np.sign(rng.random(frame[:, 0].shape) - 0.3)
    rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if margin:
        inside = np.zeros((height, width), bool)
        inside[margin:-margin, margin:-margin] = True
        frame[:, 0, :width][~inside] = 1
        frame[:, 1:, :width] *= inside[:, None]
        rgba[~inside] = 0
    frame[:, :, width:] = 9
    return frame, rgba


@pytest.mark.parametrize(("width", "height", "margin"), [(24, 17, 0), (13, 30, 0), (103, 20, 0), (61, 64, 22)])
@pytest.mark.parametrize(("ssim_weight", "alpha_weight"), [(0.0, 0.0), (0.2, 0.3), (1.0, 0.0)])
def test_frame_loss_agrees_with_torch(width, height, margin, ssim_weight, alpha_weight):
    rasterizer = Rasterizer(1, width, height)
    frame, rgba = drawn_frame(rasterizer, margin)
    ground = np.array([0.2, 0.9, 0.5], np.float32)
    loss = FrameLoss(width, height, ssim_weight, alpha_weight)
    for _ in range(2):  # the second call finds used buffers
        value = loss(frame, rgba, ground, rasterizer.pixel_gradients)
    got = np.moveaxis(rasterizer.pixel_gradients, 1, 2)

    planes = torch.from_numpy(np.moveaxis(frame, 1, 2)[:, :width].copy()).double()
    through = planes[..., :1].abs()
    colors, alphas = planes[..., 1:].requires_grad_(), (1 - through).requires_grad_()
    images = colors + (1 - alphas) * torch.from_numpy(ground)
    target_alphas = torch.from_numpy(rgba[..., 3:]).double() / 255
    targets = torch.from_numpy(rgba[..., :3]).double() / 255
    targets = target_alphas * targets + (1 - target_alphas) * torch.from_numpy(ground)
    expected = fit_loss(images, alphas, targets, target_alphas, ssim_weight, alpha_weight)
    expected.backward()

    assert value == pytest.approx(expected.item(), abs=1e-5)
    there = (through[..., 0] < 1).numpy()  # where nothing was drawn no Gaussian asks for a gradient
    for ours, theirs in ((got[..., 2:5], colors.grad), (got[..., 5], alphas.grad)):
        reference = theirs.reshape(ours[:, :width].shape).numpy()[there]
        assert np.linalg.norm(ours[:, :width][there] - reference) <= 2e-5 * np.linalg.norm(reference)
    assert not got[:, width:].any()
