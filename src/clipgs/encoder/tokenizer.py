"""The GS Tokenizer (CLIP-GS, section 4.1): two branches make tokens of patches of Gaussians.

Branch one is Uni3D's small PointNet over positions and colours. Branch two, the GS Refinement Block, convolves all
attributes along orders of the patches. A layer that starts at zero adds its output.

B objects, N Gaussians, g patches of n Gaussians, C channels, W the transformer's width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgs.config import Encoder
from clipgs.encoder import attributes, order
from clipgs.encoder.batch_norm import BatchNorm, Mode, Moments, centred, folded
from clipgs.encoder.fused import patch_max, relu_of_sum
from clipgs.encoder.groups import centre_rows, log_shown, nearest, take
from clipgs.splats.gaussians import Gaussians

POINT_CHANNELS = 6  # position and colour, the input of Uni3D's point encoder
POINT_FEATURES = 512  # of its last layer
LIFTED = 128  # of a patch in branch two, before the convolutions
TEXTURE = 9  # numbers of `texture`
_COLOR_VARIANCE, _COLOR_GRADIENT = 0.03, 0.05  # deviations of these numbers over patches of the built-in objects
ALIGNMENT = 8  # channels; matrix products in half precision are slow unless rows are multiples of 16 bytes


Pooling = Literal["max", "weighted"]


class PointEncoder(nn.Module):
    """Uni3D's mini-PointNet: the same function of the same parameters, in fewer operations.

    The original: 1x1 convolutions C -> 128, norm, ReLU, -> 256; concatenation with the patch's maximum; 512 -> 512,
    norm, ReLU, -> 512; the patch's maximum. Here the second and third convolution are one matrix, because only the
    maximum is between them; terms of the patch are computed once a patch; and the norms are folded into the layers.
    """

    def __init__(
        self,
        channels: int = POINT_CHANNELS,
        features: int = POINT_FEATURES,
        mode: Mode = "local",
        pooling: Pooling = "max",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Linear(channels, 128)
        self.norm1 = BatchNorm(128, mode)
        self.conv2 = nn.Linear(128, 256)
        self.conv3 = nn.Linear(2 * 256, 512)  # the patch's maximum comes first
        self.norm3 = BatchNorm(512, mode)
        self.conv4 = nn.Linear(512, features)
        # From zero, so that Uni3D's weights give Uni3D's output before the first step.
        self.mean = _from_zero(nn.Linear(512, features, bias=False)) if pooling == "weighted" else None

    def forward(
        self,
        patches: Tensor,  # [B, g, n, C or more]; further channels are ignored
        patch_moments: tuple[Moments, Tensor] | None = None,  # of the centred patches, and their mean before
        weights: Tensor | None = None,  # [B, g, n] of the Gaussians in the mean, with sum 1
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
        features = patch_max(F.linear(hidden, self.conv4.weight)) + self.conv4.bias
        return features if self.mean is None else features + self.mean(weighted_mean(hidden, weights))


def weighted_mean(
    values: Tensor,  # [B, g, n, C]
    weights: Tensor | None,  # [B, g, n], with sum 1
) -> Tensor:  # [B, g, C]
    """The mean over each patch."""
    assert weights is not None
    return (weights.to(values.dtype)[:, :, None] @ values)[:, :, 0]


def _from_zero(linear: nn.Linear) -> nn.Linear:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


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


class _Lifting(nn.Module):
    """The first layer of branch two, over all channels of each Gaussian: linear layer and norm; a ReLU follows."""

    def __init__(self, settings: Encoder) -> None:
        super().__init__()
        self.orders: Sequence[order.Order] = settings.orders
        self.order_depth, self.order_fusion = settings.order_depth, settings.order_fusion
        gains = attributes.gains(settings.attribute_encoding)
        self.gain: Tensor
        self.register_buffer("gain", torch.tensor(gains), persistent=False)
        self.lift = nn.Linear(len(gains), LIFTED, bias=False)  # the norm would remove a bias
        self.lift_norm = BatchNorm(LIFTED, settings.batch_norm)
        self.features = settings.refinement_width * (len(self.orders) if self.order_fusion == "concatenate" else 1)

    def lifted(self, patches: Tensor, patch_moments: tuple[Moments, Tensor] | None) -> Tensor:  # [B, g, n, 128]
        return normed_linear(patches, self.lift, self.lift_norm, patch_moments, self.gain)


class Refinement(_Lifting):
    """The GS Refinement Block: 1 x 3 convolutions along orders of the patches, shared by the orders.

    Each patch becomes the maximum over its lifted Gaussians (linear layer, norm, ReLU). Along each order there are two
    1 x 3 convolutions with norms and a ReLU between them, and a 1 x 3 convolution with a norm as the shortcut. The
    results return to the order of the patches. With `patch_pooling: weighted` a patch is also the weighted mean of its
    lifted Gaussians, and with `texture` how its colours vary.
    """

    def __init__(self, settings: Encoder) -> None:
        super().__init__(settings)
        width, mode = settings.refinement_width, settings.batch_norm
        self.mean = nn.Linear(LIFTED, LIFTED, bias=False) if settings.patch_pooling == "weighted" else None
        self.texture = nn.Linear(TEXTURE, LIFTED, bias=False) if settings.texture else None
        self.conv1 = nn.Linear(3 * LIFTED, 2 * width, bias=False)  # the first of the two, and the shortcut
        self.norm1 = BatchNorm(2 * width, mode)
        self.conv2 = nn.Linear(3 * width, width, bias=False)
        self.norm2 = BatchNorm(width, mode)

    def forward(
        self,
        patches: Tensor,  # [B, g, n, C or more]
        centres: Tensor,  # [B, g, 3]
        patch_moments: tuple[Moments, Tensor] | None = None,
        weights: Tensor | None = None,  # [B, g, n], with sum 1
    ) -> Tensor:  # [B, g, features]
        of_gaussians = self.lifted(patches, patch_moments)
        lifted = F.relu(patch_max(of_gaussians))
        if self.mean is not None:
            lifted = lifted + self.mean(weighted_mean(F.relu(of_gaussians), weights))
        if self.texture is not None:
            lifted = lifted + self.texture(texture(patches, weights))
        rows = self.rows(centres)
        inverse = rows.argsort(dim=2)
        hidden, shortcut = self.norm1(conv1x3(_Permute.apply(lifted, rows, inverse), self.conv1)).chunk(2, dim=-1)
        refined = F.relu(self.norm2(conv1x3(F.relu(hidden), self.conv2)) + shortcut)
        refined = refined.gather(2, inverse[..., None].expand(-1, -1, -1, refined.shape[-1]))  # [B, O, g, width]
        if self.order_fusion == "concatenate":
            return refined.transpose(1, 2).flatten(2)
        return refined.mean(1)

    def rows(self, centres: Tensor) -> Tensor:  # [B, g, 3] to [B, O, g] int64
        """The patches in each order."""
        codes = torch.stack(order_codes(centres, self.orders, self.order_depth), dim=1)
        if self.order_fusion == "sample" and self.training:
            chosen = torch.randint(len(self.orders), (len(centres),), device=centres.device)
            codes = codes.gather(1, chosen[:, None, None].expand(-1, 1, codes.shape[2]))
        return codes.argsort(dim=2, stable=True)


class InnerRefinement(_Lifting):
    """The GS Refinement Block along the Gaussians inside each patch, as the paper's figure 3 can be read too.

    The lifted Gaussians of a patch are put in each order, and scaled and shifted by numbers learnt for that order.
    Three 1 x 3 convolutions with norms and ReLUs follow, of strides 1, 1 and 2; their maximum is the patch's.
    """

    def __init__(self, settings: Encoder) -> None:
        super().__init__(settings)
        width, mode = settings.refinement_width, settings.batch_norm
        # Vectors, because matrices have weight decay.
        self.scale = nn.ParameterList(torch.ones(LIFTED) for _ in self.orders)
        self.shift = nn.ParameterList(torch.zeros(LIFTED) for _ in self.orders)
        self.convolutions = nn.ModuleList(nn.Linear(3 * wide, width, bias=False) for wide in (LIFTED, width, width))
        self.norms = nn.ModuleList(BatchNorm(width, mode) for _ in self.convolutions)

    def forward(
        self,
        patches: Tensor,  # [B, g, n, C or more]
        centres: Tensor,  # [B, g, 3]
        patch_moments: tuple[Moments, Tensor] | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:  # [B, g, features]
        lifted = F.relu(self.lifted(patches, patch_moments))
        positions = patches[..., :3].float().flatten(0, 1)  # [B g, n, 3]
        codes = [one.view(patches.shape[:3]) for one in order_codes(positions, self.orders, self.order_depth)]
        chosen = [*range(len(self.orders))]
        if self.order_fusion == "sample" and self.training:  # one for the batch: each costs as much as all else
            chosen = [int(torch.randint(len(self.orders), ()))]
        found = []
        for index in chosen:
            rows = codes[index].argsort(dim=2, stable=True)
            along = lifted.gather(2, rows[..., None].expand_as(lifted)) * self.scale[index] + self.shift[index]
            for place, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
                along = F.relu(norm(conv1x3(along, convolution, stride=1 + (place == 2))))
            found.append(along.amax(2))
        return torch.cat(found, dim=-1) if self.order_fusion == "concatenate" else torch.stack(found).mean(0)


def order_codes(
    positions: Tensor,  # [B, n, 3]
    orders: Sequence[order.Order],
    depth: int,
) -> list[Tensor]:  # [B, n] int64 of each order
    """The places of each set's positions along the orders. The grid has 2^depth cubic cells along its longest side."""
    low = positions.amin(1, keepdim=True)
    side = (positions.amax(1, keepdim=True) - low).amax(2, keepdim=True).clamp(min=torch.finfo(positions.dtype).tiny)
    cells = 2**depth
    grid = ((positions - low) / side * cells).long().clamp(0, cells - 1)
    return [order.encode(grid, name, depth) for name in orders]


def texture(
    patches: Tensor,  # [B, g, n, 6 or more]: position, colour
    weights: Tensor | None,  # [B, g, n], with sum 1
) -> Tensor:  # [B, g, 9]
    """How the colours of a patch vary: their covariance, and where to it grows brighter, a gradient over the patch."""
    values = patches[..., :POINT_CHANNELS].float()
    values = values - weighted_mean(values, weights)[:, :, None]
    assert weights is not None
    position, color = values.split(3, dim=-1)
    weighed = weights[..., None] * color  # [B, g, n, 3]
    covariance = weighed.mT @ color
    rows, columns = torch.triu_indices(3, 3)
    spread = (weights * position.square().sum(-1)).sum(-1, keepdim=True).sqrt().clamp(min=1e-6)
    gradient = (weighed.mean(-1, keepdim=True) * position).sum(2) / spread
    return torch.cat([covariance[..., rows, columns] / _COLOR_VARIANCE, gradient / _COLOR_GRADIENT], dim=-1)


def conv1x3(
    values: Tensor,  # [..., g, C]
    linear: nn.Module,  # 3 C to C'
    stride: int = 1,
) -> Tensor:  # [..., g / stride, C']
    """A convolution of three neighbours along g, with zeros beyond the ends."""
    ended = F.pad(values, (0, 0, 1, 1))
    return linear(torch.cat([ended[..., i : i + values.shape[-2] : stride, :] for i in range(3)], dim=-1))


class Tokenizer(nn.Module):
    """Tokens of a splat's patches, and the centres of the patches."""

    def __init__(self, settings: Encoder, width: int) -> None:
        super().__init__()
        self.groups, self.group_size = settings.groups, settings.group_size
        self.encoding: attributes.Encoding = settings.attribute_encoding
        widths = attributes.widths(self.encoding)
        self.channels = sum(widths.values())
        all_attributes = settings.point_attributes == "all"
        read = self.channels if all_attributes else POINT_CHANNELS
        self.points = PointEncoder(read, mode=settings.batch_norm, pooling=settings.patch_pooling)
        self.project = nn.Linear(POINT_FEATURES, width)
        self.weighs = settings.patch_pooling == "weighted" or settings.texture
        block = Refinement if settings.refinement_along == "patches" else InnerRefinement
        self.refinement = block(settings) if settings.refinement else None
        if self.refinement is not None:
            self.fuse = nn.Linear(POINT_FEATURES + self.refinement.features, POINT_FEATURES)
            self.add = _from_zero(nn.Linear(POINT_FEATURES, width))
        used = [float(name in settings.attributes) for name, channels in widths.items() for _ in range(channels)]
        padding = -self.channels % ALIGNMENT
        self.used: Tensor
        self.register_buffer("used", torch.tensor(used + [0.0] * padding), persistent=False)

    def forward(
        self,
        gaussians: Gaussians,  # [B, N, ...]
        neighbours: Tensor | None = None,  # [B, g, n], any integers
    ) -> tuple[Tensor, Tensor]:  # [B, g, W], [B, g, 3]
        patches, centres, rows = self.patches(gaussians, neighbours)
        # The first channels of opacity and scale: one that is left out weighs nothing.
        weights = patch_weights(gaussians, rows, self.used[6], self.used[7]) if self.weighs else None
        moments = None
        if self.points.norm1.uses_batch:
            patches, mean = centred(patches)
            moments = Moments(patches), mean
        points = self.points(patches, moments, weights)
        tokens = self.project(points)
        if self.refinement is not None:
            refined = self.refinement(patches, centres, moments, weights)
            fused = F.gelu(self.fuse(torch.cat([points, refined.to(points.dtype)], dim=-1)))
            tokens = tokens + self.add(fused)
        return tokens, centres

    @contextmanager
    def without(self, attribute: str) -> Iterator[None]:
        """An attribute of the Gaussians in their patches is zero meanwhile."""
        used, start = self.used.clone(), 0
        for name, channels in attributes.widths(self.encoding).items():
            if name == attribute:
                self.used[start : start + channels] = 0
            start += channels
        try:
            yield
        finally:
            self.used.copy_(used)

    def patches(
        self, gaussians: Gaussians, neighbours: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:  # [B, g, n, 24], [B, g, 3], [B, g, n] rows of the Gaussians
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
        return patches * self.used, centres, rows


def patch_weights(
    gaussians: Gaussians,  # [B, N, ...]
    rows: Tensor,  # [B, g, n] int64
    opacity: Tensor | float = 1.0,  # as for `log_shown`
    scale: Tensor | float = 1.0,
) -> Tensor:  # [B, g, n], with sum 1
    """Each Gaussian's share of what its patch shows."""
    logarithm = log_shown(gaussians.opacity_logits.float(), gaussians.log_scales.float(), opacity, scale)
    return take(logarithm[..., None], rows)[..., 0].softmax(dim=-1)
