"""Operations of the encoder with their own gradients: Triton kernels on CUDA, torch elsewhere.

B objects, g patches of n Gaussians, C channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from clipgs.encoder import kernels
except ImportError:  # some systems have torch without Triton
    kernels = None  # type: ignore[assignment]

_KERNEL_TYPES = (torch.bfloat16, torch.float16, torch.float32)


def _by_kernel(tensor: Tensor) -> bool:
    return kernels is not None and tensor.is_cuda and tensor.dtype in _KERNEL_TYPES


class _PatchMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        if _by_kernel(values):
            largest, place = kernels.patch_max(values)
        else:
            largest, place = values.max(dim=2)
            place = place.to(torch.int16)
        ctx.save_for_backward(place)
        ctx.size = values.shape[2]
        return largest

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (place,) = ctx.saved_tensors
        slots = torch.arange(ctx.size, dtype=torch.int16, device=gradient.device)
        return torch.where(place[:, :, None] == slots[:, None], gradient[:, :, None], 0)


def patch_max(values: Tensor) -> Tensor:  # [B, g, n, C] to [B, g, C]
    """Maximum over a patch; the first of equal maxima gets the gradient.

    Unlike torch's `amax`, it keeps two bytes a maximum for the backward pass instead of all values.
    """
    return _PatchMax.apply(values)


class _ReluOfSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, patches: Tensor) -> Tensor:
        found = F.relu(points + patches.to(points.dtype)[:, :, None])
        ctx.save_for_backward(found)
        ctx.dtype = patches.dtype
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (found,) = ctx.saved_tensors
        if _by_kernel(found):
            to_points, to_patches = kernels.relu_of_sum_backward(gradient, found)
        else:
            to_points = torch.where(found > 0, gradient, 0)
            to_patches = to_points.sum(2)
        return to_points, to_patches.to(ctx.dtype)


def relu_of_sum(
    points: Tensor,  # [B, g, n, C]
    patches: Tensor,  # [B, g, C], of the same or higher precision
) -> Tensor:  # [B, g, n, C]
    """ReLU of the sum of each point's values and its patch's. One pass computes both gradients."""
    return _ReluOfSum.apply(points, patches)


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = hidden.flatten(0, -2)
        normed, means, rates = kernels.gated_norm(rows, weight, bias, eps)
        ctx.save_for_backward(rows, weight, means, rates)
        return normed.view(*hidden.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        rows, weight, means, rates = ctx.saved_tensors
        above = gradient.flatten(0, -2)
        to_hidden, to_weight, to_bias = kernels.gated_norm_backward(above, rows, weight, means, rates)
        return to_hidden.view(*gradient.shape[:-1], -1), to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


def gated_norm(
    hidden: Tensor,  # [..., 2 H], the gate first
    weight: Tensor,  # [H]
    bias: Tensor,  # [H]
    eps: float,
) -> Tensor:  # [..., H]
    """Layer norm of SwiGLU's product."""
    if _by_kernel(hidden):
        return _GatedNorm.apply(hidden, weight, bias, eps)
    gate, value = hidden.chunk(2, dim=-1)
    product = F.silu(gate) * value
    return F.layer_norm(product, product.shape[-1:], weight, bias, eps)
