"""The loss of a fit: L1 and structural similarity over a background, and the silhouette.

There are two implementations: plain torch, for any device and as the reference, and numba kernels that compute the loss
of one frame and its gradient in one call.
"""

import numpy as np
from numba import njit
from torch import Tensor
from torch.nn.functional import pad

from clipgs.splats.rasterizer.simd import LANES, any_lane, load, magnitude, ramp, repeat, store, total, where

# Structural similarity, Wang et al. 2004, section III: an 11 x 11 Gaussian window of 1.5 pixels, data range 1.
RADIUS = 5
TAPS = 2 * RADIUS + 1
_window = np.exp(-((np.arange(TAPS) - RADIUS) ** 2) / (2 * 1.5**2))
WINDOW = tuple((_window / _window.sum()).tolist())
C1, C2 = 0.01**2, 0.03**2


def _blur(images: Tensor) -> Tensor:  # [..., H, W, C]
    """Blur by the window over the two axes before the last, with zeros outside the image."""
    for axis, sides in ((-3, (0, 0, 0, 0, RADIUS, RADIUS)), (-2, (0, 0, RADIUS, RADIUS))):
        size, wide = images.shape[axis], pad(images, sides)
        # shifted adds take a tenth of the time of a grouped convolution on a GPU
        images = sum(weight * wide.narrow(axis, k, size) for k, weight in enumerate(WINDOW))
    return images


def ssim(
    x: Tensor,  # [..., H, W, C] in [0, 1]
    y: Tensor,  # [..., H, W, C] in [0, 1]
) -> Tensor:  # [...]
    """Structural similarity of images, the mean over pixels and channels (Wang et al. 2004, equation 13)."""
    mean_x, mean_y = _blur(x), _blur(y)
    xx, yy, xy = _blur(x * x), _blur(y * y), _blur(x * y)
    product, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    similarity = (2 * product + C1) * (2 * (xy - product) + C2) / ((squares + C1) * (xx + yy - squares + C2))
    return similarity.mean(dim=(-3, -2, -1))


def fit_loss(
    images: Tensor,  # [..., H, W, 3], over a background
    alphas: Tensor,  # [..., H, W, 1]
    targets: Tensor,  # [..., H, W, 3], over the same background
    target_alphas: Tensor,  # [..., H, W, 1]
    ssim_weight: float,
    alpha_weight: float,
) -> Tensor:  # [...]
    """(1 - w) L1 + w (1 - SSIM) of each image (Kerbl et al. 2023, equation 7), plus a weight times the alphas' L1."""
    loss = (1 - ssim_weight) * (images - targets).abs().mean(dim=(-3, -2, -1))
    if ssim_weight:
        loss = loss + ssim_weight * (1 - ssim(images, targets))
    if alpha_weight:
        loss = loss + alpha_weight * (alphas - target_alphas).abs().mean(dim=(-3, -2, -1))
    return loss


class FrameLoss:
    """`fit_loss` and its gradient for frames of the CPU engine, in buffers made once."""

    def __init__(self, width: int, height: int, ssim_weight: float, alpha_weight: float):
        self._weights = np.array([ssim_weight, alpha_weight], np.float32)
        # The window extends beyond the image: zeros for one vector on either side, and RADIUS rows above and below.
        self._stride = (width + LANES - 1) // LANES * LANES + 2 * LANES
        self._planes = np.zeros((2 + 5 + 3, height + 2 * RADIUS, self._stride), np.float32)
        self._target_alpha = np.zeros((height, self._stride), np.float32)

    def __call__(
        self,
        frame: np.ndarray,  # [H, 4, stride], from `Rasterizer.draw`
        rgba: np.ndarray,  # [H, W, 4] uint8, colour not multiplied by alpha
        ground: np.ndarray,  # [3]
        pixel_gradients: np.ndarray,  # [H, 6, stride], planes 2 to 5 are written
    ) -> float:
        scratch = (self._planes.reshape(-1), self._target_alpha.reshape(-1), self._stride)
        gradients = pixel_gradients.reshape(-1)
        return _frame_loss(frame.reshape(-1), frame.shape[2], rgba, ground, self._weights, *scratch, gradients)


_WINDOW = tuple(np.float32(weight) for weight in WINDOW)
_compiled = njit(cache=True, error_model="numpy", nogil=True)
_inlined = njit(forceinline=True, error_model="numpy")


@_compiled
def _frame_loss(frame, frame_stride, rgba, ground, weights, planes, target_alpha, stride, gradients):
    height, width = rgba.shape[0], rgba.shape[1]
    ssim_weight, alpha_weight = weights[0], weights[1]
    pixels = np.float32(height * width)
    one, zero = repeat(np.float32(1)), repeat(np.float32(0))
    loss = 0.0

    # The loss of the silhouette, whose gradient is in plane 5, and the box of pixels that the splat or the object
    # covers: outside it, the image and the target are both the background.
    step = alpha_weight / pixels
    top, bottom, left, right = height, 0, width, 0
    for y in range(height):
        out = 0.0
        for x in range(width):
            target_alpha[y * stride + x] = rgba[y, x, 3] * np.float32(1 / 255)
        for x in range(0, width, LANES):
            inside = ramp() < np.float32(width - x)
            alpha = 1.0 - magnitude(load(frame, y * 4 * frame_stride + x))
            target = load(target_alpha, y * stride + x)
            if any_lane(inside & (alpha + target > 0.0)):
                top, bottom = min(top, y), y + 1
                left, right = min(left, x), max(right, x + LANES)
            off = where(inside, alpha - target, zero)
            out += total(magnitude(off))
            slope = where(off > 0.0, one, where(off < 0.0, zero - one, zero)) * step
            store(gradients, (y * 6 + 5) * frame_stride + x, slope)
        loss += out * step

    size = (height + 2 * RADIUS) * stride
    # the first pixel of each plane
    start = RADIUS * stride + LANES
    px, py = start, size + start
    blurred, slopes = 2 * size + start, 7 * size + start
    step = (np.float32(1) - ssim_weight) / (np.float32(3) * pixels)
    weight = -ssim_weight / (np.float32(3) * pixels)
    for c in range(3):
        shade = ground[c]
        for y in range(height):
            row = y * stride
            for x in range(width):
                alpha = target_alpha[row + x]
                planes[py + row + x] = alpha * (rgba[y, x, c] * np.float32(1 / 255) - shade) + shade
            out = 0.0
            for x in range(0, width, LANES):
                inside = ramp() < np.float32(width - x)
                f = y * 4 * frame_stride + x
                image = load(frame, f + (1 + c) * frame_stride) + magnitude(load(frame, f)) * shade
                image = where(inside, image, zero)
                store(planes, px + row + x, image)
                off = image - load(planes, py + row + x)
                out += total(magnitude(off))
                slope = where(off > 0.0, one, where(off < 0.0, zero - one, zero)) * step
                store(gradients, (y * 6 + 2 + c) * frame_stride + x, slope)
            loss += out * step
        if ssim_weight > 0 and top < bottom:
            # Farther from the box than the window's radius, SSIM is 1 and no Gaussian needs a gradient.
            y0, y1 = max(top - RADIUS, 0), min(bottom + RADIUS, height)
            x0, x1 = max(left - LANES, 0), min(right + LANES, width)
            _blur_moments(planes, px, py, blurred, size, stride, y0, y1, x0, x1, height)
            similarity = _similarity(planes, blurred, slopes, size, stride, y0, y1, x0, x1)
            loss += weight * (similarity - (y1 - y0) * (x1 - x0))
            _blur_slopes(planes, slopes, blurred, size, stride, y0, y1, left, right)
            for y in range(top, bottom):
                for x in range(left, right, LANES):
                    at = y * stride + x
                    m, s, p = zero, zero, zero
                    for k in range(TAPS):
                        a = blurred + at + (k - RADIUS) * stride
                        m = m + _WINDOW[k] * load(planes, a)
                        s = s + _WINDOW[k] * load(planes, a + size)
                        p = p + _WINDOW[k] * load(planes, a + 2 * size)
                    slope = (m + 2.0 * load(planes, px + at) * s + load(planes, py + at) * p) * weight
                    g = (y * 6 + 2 + c) * frame_stride + x
                    inside = ramp() < np.float32(width - x)
                    store(gradients, g, load(gradients, g) + where(inside, slope, zero))
        for y in range(height):
            for x in range(0, width, LANES):
                g = y * 6 * frame_stride + x
                through = load(gradients, g + (2 + c) * frame_stride) * shade
                store(gradients, g + 5 * frame_stride, load(gradients, g + 5 * frame_stride) - through)
    return loss


@_inlined
def _blur_moments(planes, px, py, blurred, size, stride, y0, y1, x0, x1, height):
    """Blur x, y, x^2, y^2 and x y along the rows y0 to y1 and those within the window's radius of them."""
    zero = repeat(np.float32(0))
    for y in range(max(y0 - RADIUS, 0), min(y1 + RADIUS, height)):
        for x in range(x0, x1, LANES):
            at = y * stride + x
            mx, my, xx, yy, xy = zero, zero, zero, zero, zero
            for k in range(TAPS):
                a = load(planes, px + at + k - RADIUS)
                b = load(planes, py + at + k - RADIUS)
                wa, wb = _WINDOW[k] * a, _WINDOW[k] * b
                mx = mx + wa
                my = my + wb
                xx = xx + wa * a
                yy = yy + wb * b
                xy = xy + wa * b
            store(planes, blurred + at, mx)
            store(planes, blurred + size + at, my)
            store(planes, blurred + 2 * size + at, xx)
            store(planes, blurred + 3 * size + at, yy)
            store(planes, blurred + 4 * size + at, xy)


@_inlined
def _similarity(planes, blurred, slopes, size, stride, y0, y1, x0, x1):
    """The sum of SSIM over a box; three planes get its slopes by the mean and the square of x and by x y."""
    zero = repeat(np.float32(0))
    similarity = 0.0
    for y in range(y0, y1):
        row = zero
        for x in range(x0, x1, LANES):
            at = blurred + y * stride + x
            mx, my, xx, yy, xy = zero, zero, zero, zero, zero
            for k in range(TAPS):
                a = at + (k - RADIUS) * stride
                mx = mx + _WINDOW[k] * load(planes, a)
                my = my + _WINDOW[k] * load(planes, a + size)
                xx = xx + _WINDOW[k] * load(planes, a + 2 * size)
                yy = yy + _WINDOW[k] * load(planes, a + 3 * size)
                xy = xy + _WINDOW[k] * load(planes, a + 4 * size)
            product, squares = mx * my, mx * mx + my * my
            n1, n2 = 2.0 * product + C1, 2.0 * (xy - product) + C2
            d1, d2 = squares + C1, xx + yy - squares + C2
            inverse = 1.0 / (d1 * d2)
            value = n1 * n2 * inverse
            inside = ramp() < np.float32(x1 - x)
            row = row + where(inside, value, zero)
            by_mean = (2.0 * my * (n2 - n1) - 2.0 * mx * value * (d2 - d1)) * inverse
            to = slopes + y * stride + x
            store(planes, to, where(inside, by_mean, zero))
            store(planes, to + size, where(inside, zero - value * d1 * inverse, zero))
            store(planes, to + 2 * size, where(inside, 2.0 * n1 * inverse, zero))
        similarity += total(row)
    return similarity


@_inlined
def _blur_slopes(planes, slopes, blurred, size, stride, y0, y1, x0, x1):
    """Blur the three slopes along the rows, and overwrite the planes of the moments."""
    zero = repeat(np.float32(0))
    for y in range(y0, y1):
        for x in range(x0, x1, LANES):
            at = y * stride + x
            m, s, p = zero, zero, zero
            for k in range(TAPS):
                a = slopes + at + k - RADIUS
                m = m + _WINDOW[k] * load(planes, a)
                s = s + _WINDOW[k] * load(planes, a + size)
                p = p + _WINDOW[k] * load(planes, a + 2 * size)
            store(planes, blurred + at, m)
            store(planes, blurred + size + at, s)
            store(planes, blurred + 2 * size + at, p)
