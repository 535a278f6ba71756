"""What the tokenizer reads of each Gaussian: its attributes as channels, by `encoder.attribute_encoding`.

B objects, N Gaussians, C channels.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgs.splats.gaussians import Gaussians
from clipgs.splats.quaternions import rotation_matrices

Encoding = Literal["paper", "standardised", "covariance"]

# Mean and deviation of log-scales of radius-1 splats, from the longest axis to the shortest, and of opacities: over the
# 24 built-in objects and 11 real ones, with 6,000 Gaussians. Positions are in patches of about a hundredth of a splat.
_LOG_SCALES = ((-3.6, -4.2, -7.3), (0.6, 0.8, 1.0))
_OPACITY = (0.45, 0.27)
_POSITION, _COLOR, _ROTATION = 0.045, 0.26, 0.55  # deviations
_FLATNESS = (0.34, 0.34, 0.34, 0.2, 0.2, 0.2)
_STRETCH = (0.38, 0.38, 0.38, 0.16, 0.16, 0.16)
_MOST_LOG_SCALE = 12.0  # of a flat Gaussian that another program wrote with a scale of zero


def widths(encoding: Encoding) -> dict[str, int]:
    """The number of channels of each attribute, in their order in a patch."""
    return {"position": 3, "color": 3, "opacity": 1, "scale": 3, "rotation": 12 if encoding == "covariance" else 9}


def gains(encoding: Encoding) -> list[float]:
    """What branch two multiplies each channel with before its first layer.

    So that all channels deviate by about 1 there. Otherwise rotation has 90 % of the variance that the layer sees, and
    scale 0.03 %, and a step of Adam, which moves all weights alike, moves little of what scale says.
    """
    if encoding == "paper":
        return [1.0] * sum(widths(encoding).values())
    rotation = [*_FLATNESS, *_STRETCH] if encoding == "covariance" else [_ROTATION] * 9
    deviations = [_POSITION] * 3 + [_COLOR] * 3 + [1.0] * 4 + rotation
    return [1 / deviation for deviation in deviations]


def encoded(gaussians: Gaussians, encoding: Encoding) -> Tensor:  # [B, N, C - 3]
    """Colour, opacity, scale and rotation of each Gaussian.

    `paper`: opacity and scale through sigmoids, and the rotation matrix by rows (CLIP-GS, section 4.1). `standardised`:
    the opacity and the logarithms of the sorted scales, each with mean 0 and deviation 1; the matrix with its columns
    in the order of the scales. `covariance`: as that, but instead of the matrix two symmetric ones that are equal for
    all equal Gaussians: n n^T of the shortest axis times 1 - shortest / middle, and t t^T of the longest times the
    logarithm of longest / middle. A matrix names an ellipsoid in 24 ways; these name it in one, and each vanishes where
    its axis has no direction.
    """
    matrices = rotation_matrices(F.normalize(gaussians.quats_wxyz.float(), dim=-1))  # [B, N, 3, 3], axes are columns
    opacities, log_scales = gaussians.opacity_logits.float().sigmoid()[..., None], gaussians.log_scales.float()
    if encoding == "paper":
        parts = [opacities, log_scales.sigmoid(), matrices.flatten(-2)]
        return torch.cat([gaussians.colors.float(), *parts], dim=-1)
    sizes, axes = log_scales.clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE).sort(dim=-1, descending=True)
    mean, deviation = (sizes.new_tensor(values) for values in _LOG_SCALES)
    parts = [(opacities - _OPACITY[0]) / _OPACITY[1], (sizes - mean) / deviation]
    ordered = matrices.gather(-1, axes[..., None, :].expand_as(matrices))
    if encoding == "standardised":
        parts.append(ordered.flatten(-2))
    else:
        flatness = 1 - (sizes[..., 2:] - sizes[..., 1:2]).exp()
        stretch = sizes[..., :1] - sizes[..., 1:2]
        parts += [flatness * _square(ordered[..., 2]), stretch * _square(ordered[..., 0])]
    return torch.cat([gaussians.colors.float(), *parts], dim=-1)


def _square(axis: Tensor) -> Tensor:  # [..., 3] to [..., 6]
    """The different numbers of a a^T: the diagonal, then xy, xz, yz."""
    x, y, z = axis.unbind(-1)
    return torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], dim=-1)
