"""The GS Tokenizer (CLIP-GS, section 4.1): two branches make tokens of patches of Gaussians.

Branch one is Uni3D's small PointNet over positions and colours. Branch two, the GS Refinement Block, convolves all
attributes along orders of the patches. A layer that starts at zero adds its output.

B objects, N Gaussians, g patches of n Gaussians, C channels, W the transformer's width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.config import Encoder
from clipgs.encoder import attributes, order
from clipgs.encoder.batch_norm import BatchNorm, Mode, Moments, centred, folded
from clipgs.encoder.fused import patch_max, relu_of_sum
from clipgs.encoder.groups import centre_rows, nearest, take
from clipgs.splats.gaussians import Gaussians

POINT_CHANNELS = 6  # position and colour, the input of Uni3D's point encoder
POINT_FEATURES = 512  # of its last layer
LIFTED = 128  # of a patch in branch two, before the convolutions
ALIGNMENT = 8  # channels; matrix products in half precision are slow unless rows are multiples of 16 bytes


class PointEncoder(nn.Module):
    """Uni3D's mini-PointNet: the same function of the same parameters, in fewer operations.

    The original: 1x1 convolutions C -> 128, norm, ReLU, -> 256; concatenation with the patch's maximum; 512 -> 512,
    norm, ReLU, -> 512; the patch's maximum. Here the second and third convolution are one matrix, because only the
    maximum is between them; terms of the patch are computed once a patch; and the norms are folded into the layers.
    """

    def __init__(self, channels: int = POINT_CHANNELS, features: int = POINT_FEATURES, mode: Mode = "local") -> None:
        super().__init__()
        self.conv1 = nn.Linear(channels, 128)
        self.norm1 = BatchNorm(128, mode)
        self.conv2 = nn.Linear(128, 256)
        self.conv3 = nn.Linear(2 * 256, 512)  # the patch's maximum comes first
        self.norm3 = BatchNorm(512, mode)
        self.conv4 = nn.Linear(512, features)

    def forward(
        self,
        patches: Tensor,  # [B, g, n, C or more]; further channels are ignored
        patch_moments: tuple[Moments, Tensor] | None = None,  # of the centred patches, and their mean before
    ) -> Tensor:  # [B, g, features]
        hidden = F.relu(normed_linear(patches, self.conv1, self.norm1, patch_moments))
        largest = patch_max(F.linear(hidden, self.conv2.weight)) + self.conv2.bias
        of_patch, of_point = self.conv3.weight.chunk(2, dim=1)
        with torch.autocast(hidden.device.type, enabled=False):
            weight = of_point @ self.conv2.weight  # [512, 128]
            bias = self.conv3.bias + of_point @ self.conv2.bias
        offset = F.linear(largest, of_patch, bias)  # [B, g, 512]
        if self.norm3.uses_batch:
            moments, mean_of_patch = Moments(hidden), hidden.mean(2)
            with torch.autocast(hidden.device.type, enabled=False):
                wide = offset.to(weight.dtype)
                offset_variance, offset_mean = torch.var_mean(wide, dim=(0, 1), correction=0)
                deviation = F.linear(mean_of_patch.to(weight.dtype) - moments.mean, weight)
                joint = (deviation * (wide - offset_mean)).mean((0, 1))
                variance = ((weight @ moments.covariance) * weight).sum(1) + 2 * joint + offset_variance
                mean = weight @ moments.mean + offset_mean
            scale, shift = self.norm3.scale_shift(mean, variance, moments.rows)
        else:
            scale, shift = self.norm3.scale_shift()
        weight, offset = folded(weight, offset, scale, shift)
        hidden = relu_of_sum(F.linear(hidden, weight), offset)
        return patch_max(F.linear(hidden, self.conv4.weight)) + self.conv4.bias


def normed_linear(
    patches: Tensor,  # [B, g, n, C or more]
    linear: nn.Linear,
    norm: BatchNorm,
    patch_moments: tuple[Moments, Tensor] | None = None,
    gain: Tensor | None = None,  # [C], of each channel
) -> Tensor:  # [B, g, n, C']
    """The linear layer and its batch norm as one layer; further channels of the patches are ignored."""
    channels = linear.in_features
    matrix = linear.weight if gain is None else linear.weight * gain
    bias = torch.zeros_like(norm.bias) if linear.bias is None else linear.bias
    if not norm.uses_batch:
        weight, offset = folded(matrix, bias, *norm.scale_shift())
    else:
        if patch_moments is None:
            patches, mean = centred(patches)
            patch_moments = Moments(patches), mean
        moments, taken_off = patch_moments
        with torch.autocast(patches.device.type, enabled=False):
            offset = matrix @ taken_off[:channels] + bias
            mean = matrix @ moments.mean[:channels] + offset
            covariance = moments.covariance[:channels, :channels]
            variance = ((matrix @ covariance) * matrix).sum(1)
            scale, shift = norm.scale_shift(mean, variance, moments.rows)
            weight, offset = folded(matrix, offset, scale, shift)
    return F.linear(patches, F.pad(weight, (0, patches.shape[-1] - channels)), offset)


class _Permute(torch.autograd.Function):
    """Rows in O orders: [B, g, C] and [B, O, g] to [B, O, g, C].

    An order is a permutation, so the backward pass can gather the gradient; torch's own adds it with atomics.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return take(values, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        back = gradient.gather(2, inverse[..., None].expand(-1, -1, -1, gradient.shape[-1]))
        return back.sum(1), None, None


class Refinement(nn.Module):
    """The GS Refinement Block: 1 x 3 convolutions along orders of the patches, shared by the orders.

    Each patch becomes the maximum over its lifted Gaussians (linear layer, norm, ReLU). Along each order there are two
    1 x 3 convolutions with norms and a ReLU between them, and a 1 x 3 convolution with a norm as the shortcut. The
    results return to the order of the patches.
    """

    def __init__(self, settings: Encoder) -> None:
        super().__init__()
        self.orders: Sequence[order.Order] = settings.orders
        self.order_depth, self.order_fusion = settings.order_depth, settings.order_fusion
        width, mode = settings.refinement_width, settings.batch_norm
        gains = attributes.gains(settings.attribute_encoding)
        self.gain: Tensor
        self.register_buffer("gain", torch.tensor(gains), persistent=False)
        self.lift = nn.Linear(len(gains), LIFTED, bias=False)  # the norm would remove a bias
        self.lift_norm = BatchNorm(LIFTED, mode)
        self.conv1 = nn.Linear(3 * LIFTED, 2 * width, bias=False)  # the first of the two, and the shortcut
        self.norm1 = BatchNorm(2 * width, mode)
        self.conv2 = nn.Linear(3 * width, width, bias=False)
        self.norm2 = BatchNorm(width, mode)
        self.features = width * (len(self.orders) if self.order_fusion == "concatenate" else 1)

    def forward(
        self,
        patches: Tensor,  # [B, g, n, C or more]
        centres: Tensor,  # [B, g, 3]
        patch_moments: tuple[Moments, Tensor] | None = None,
    ) -> Tensor:  # [B, g, features]
        lifted = F.relu(patch_max(normed_linear(patches, self.lift, self.lift_norm, patch_moments, self.gain)))
        rows = self.rows(centres)
        inverse = rows.argsort(dim=2)
        hidden, shortcut = self.norm1(conv1x3(_Permute.apply(lifted, rows, inverse), self.conv1)).chunk(2, dim=-1)
        refined = F.relu(self.norm2(conv1x3(F.relu(hidden), self.conv2)) + shortcut)
        refined = refined.gather(2, inverse[..., None].expand(-1, -1, -1, refined.shape[-1]))  # [B, O, g, width]
        if self.order_fusion == "concatenate":
            return refined.transpose(1, 2).flatten(2)
        return refined.mean(1)

    def rows(self, centres: Tensor) -> Tensor:  # [B, g, 3] to [B, O, g] int64
        """The patches in each order. The grid has 2^depth cubic cells along the longest side of an object's centres."""
        low = centres.amin(1, keepdim=True)
        side = (centres.amax(1, keepdim=True) - low).amax(2, keepdim=True).clamp(min=torch.finfo(centres.dtype).tiny)
        cells = 2**self.order_depth
        grid = ((centres - low) / side * cells).long().clamp(0, cells - 1)
        codes = torch.stack([order.encode(grid, name, self.order_depth) for name in self.orders], dim=1)
        if self.order_fusion == "sample" and self.training:
            chosen = torch.randint(len(self.orders), (len(centres),), device=centres.device)
            codes = codes.gather(1, chosen[:, None, None].expand(-1, 1, codes.shape[2]))
        return codes.argsort(dim=2, stable=True)


def conv1x3(
    values: Tensor,  # [..., g, C]
    linear: nn.Linear,  # 3 C to C'
) -> Tensor:  # [..., g, C']
    """A convolution of three neighbours along g, with zeros beyond the ends."""
    ended = F.pad(values, (0, 0, 1, 1))
    return linear(torch.cat([ended[..., :-2, :], values, ended[..., 2:, :]], dim=-1))


class Tokenizer(nn.Module):
    """Tokens of a splat's patches, and the centres of the patches."""

    def __init__(self, settings: Encoder, width: int) -> None:
        super().__init__()
        self.groups, self.group_size = settings.groups, settings.group_size
        self.encoding: attributes.Encoding = settings.attribute_encoding
        widths = attributes.widths(self.encoding)
        self.channels = sum(widths.values())
        all_attributes = settings.point_attributes == "all"
        self.points = PointEncoder(self.channels if all_attributes else POINT_CHANNELS, mode=settings.batch_norm)
        self.project = nn.Linear(POINT_FEATURES, width)
        self.refinement = Refinement(settings) if settings.refinement else None
        if self.refinement is not None:
            self.fuse = nn.Linear(POINT_FEATURES + self.refinement.features, POINT_FEATURES)
            self.add = nn.Linear(POINT_FEATURES, width)
            nn.init.zeros_(self.add.weight)
            nn.init.zeros_(self.add.bias)
        used = [float(name in settings.attributes) for name, channels in widths.items() for _ in range(channels)]
        padding = -self.channels % ALIGNMENT
        self.used: Tensor
        self.register_buffer("used", torch.tensor(used + [0.0] * padding), persistent=False)

    def forward(
        self,
        gaussians: Gaussians,  # [B, N, ...]
        neighbours: Tensor | None = None,  # [B, g, n], any integers
    ) -> tuple[Tensor, Tensor]:  # [B, g, W], [B, g, 3]
        patches, centres = self.patches(gaussians, neighbours)
        moments = None
        if self.points.norm1.uses_batch:
            patches, mean = centred(patches)
            moments = Moments(patches), mean
        points = self.points(patches, moments)
        tokens = self.project(points)
        if self.refinement is not None:
            refined = self.refinement(patches, centres, moments)
            fused = F.gelu(self.fuse(torch.cat([points, refined.to(points.dtype)], dim=-1)))
            tokens = tokens + self.add(fused)
        return tokens, centres

    def patches(
        self, gaussians: Gaussians, neighbours: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:  # [B, g, n, 24], [B, g, 3]
        """Each patch's Gaussians: position from the centre, the channels of `attributes.encoded`, zeros up to 24."""
        means = gaussians.means.float()
        if gaussians.count is None and means.shape[1] >= self.groups:
            centres = means[:, : self.groups]
        else:
            count = gaussians.count
            if count is None:
                count = torch.full((len(means),), means.shape[1], device=means.device)
            centres = take(means, centre_rows(count, self.groups))
        if neighbours is None:
            neighbours = nearest(means, centres, self.group_size, gaussians.count)
        rows = neighbours.long()
        padding = means.new_zeros(*means.shape[:2], len(self.used) - self.channels)
        values = torch.cat([attributes.encoded(gaussians, self.encoding), padding], dim=-1)
        patches = torch.cat([take(means, rows) - centres[:, :, None], take(values, rows)], dim=-1)
        return patches * self.used, centres
