"""Triton kernels of the encoder, for operations that torch.compile makes slow. Only for CUDA; see `fused`.

B objects, g patches of n Gaussians, C channels, M rows, H channels of a feed-forward part. Arithmetic is float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import custom_op

# The fastest on an H200 at the sizes of the base encoder.
_MAX_AT_ONCE, _MAX_WARPS = 16, 4  # rows of a patch that are loaded at the same time
_RELU_AT_ONCE, _RELU_WARPS = 8, 1
_NORM_WARPS, _BACK_WARPS = 4, 8
_BACK_PROGRAMS = 8  # a multiprocessor; each has its own rows
_CHANNELS = 512  # at most, of a program


@triton.jit
def _patch_max(values, largest, place, C, n: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr):
    patch = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < C
    start = values + patch * n * C + channels
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.zeros([BLOCK], tl.int32)
    for first in range(0, n, AT_ONCE):
        for more in tl.static_range(AT_ONCE):
            row = first + more
            value = tl.load(start + row * C, mask=inside & (row < n), other=float("-inf")).to(tl.float32)
            better = (value > best) | (value != value)  # NaN is the maximum, as in torch
            best = tl.where(better, value, best)
            at = tl.where(better, row, at)
    tl.store(largest + patch * C + channels, best, mask=inside)
    tl.store(place + patch * C + channels, at, mask=inside)


@custom_op("clipgs::patch_max", mutates_args=(), device_types="cuda")
def patch_max(values: Tensor) -> tuple[Tensor, Tensor]:  # [B, g, n, C] to [B, g, C] twice
    """Maximum over a patch, and its first row, int16."""
    values = values.contiguous()
    B, g, n, C = values.shape
    largest = values.new_empty(B, g, C)
    place = torch.empty_like(largest, dtype=torch.int16)
    block = min(_CHANNELS, triton.next_power_of_2(C))
    grid = (B * g, triton.cdiv(C, block))
    with torch.cuda.device_of(values):
        _patch_max[grid](values, largest, place, C, n, BLOCK=block, AT_ONCE=_MAX_AT_ONCE, num_warps=_MAX_WARPS)
    return largest, place


@patch_max.register_fake
def _(values: Tensor) -> tuple[Tensor, Tensor]:
    B, g, _, C = values.shape
    return values.new_empty(B, g, C), values.new_empty(B, g, C, dtype=torch.int16)


@triton.jit
def _relu_of_sum_backward(
    gradient, found, to_points, to_patches, C, n: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr
):
    patch = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < C
    start = patch * n * C + channels
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n, AT_ONCE):
        for more in tl.static_range(AT_ONCE):
            row = first + more
            valid = inside & (row < n)
            active = tl.load(found + start + row * C, mask=valid, other=0.0) > 0
            value = tl.where(active, tl.load(gradient + start + row * C, mask=valid, other=0.0).to(tl.float32), 0.0)
            tl.store(to_points + start + row * C, value, mask=valid)
            total += value
    tl.store(to_patches + patch * C + channels, total, mask=inside)


@custom_op("clipgs::relu_of_sum_backward", mutates_args=(), device_types="cuda")
def relu_of_sum_backward(gradient: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:  # [B, g, n, C] each
    """Gradients of `found = relu(points + patches[:, :, None])`: [B, g, n, C], and float32 [B, g, C]."""
    gradient, found = gradient.contiguous(), found.contiguous()
    B, g, n, C = found.shape
    to_points = torch.empty_like(found)
    to_patches = found.new_empty(B, g, C, dtype=torch.float32)
    block = min(_CHANNELS, triton.next_power_of_2(C))
    grid = (B * g, triton.cdiv(C, block))
    with torch.cuda.device_of(found):
        _relu_of_sum_backward[grid](
            gradient, found, to_points, to_patches, C, n, BLOCK=block, AT_ONCE=_RELU_AT_ONCE, num_warps=_RELU_WARPS
        )
    return to_points, to_patches


@relu_of_sum_backward.register_fake
def _(gradient: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    B, g, _, C = found.shape
    return torch.empty_like(found), found.new_empty(B, g, C, dtype=torch.float32)


@triton.jit
def _gated_norm(hidden, weight, bias, normed, means, rates, H, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK)
    inside = channels < H
    gate = tl.load(hidden + row * 2 * H + channels, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(hidden + row * 2 * H + H + channels, mask=inside, other=0.0).to(tl.float32)
    x = gate * tl.sigmoid(gate) * value
    mean = tl.sum(x, 0) / H
    centred = tl.where(inside, x - mean, 0.0)
    rate = 1 / tl.sqrt(tl.sum(centred * centred, 0) / H + eps)
    w = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * H + channels, centred * rate * w + b, mask=inside)
    tl.store(means + row, mean)
    tl.store(rates + row, rate)


@custom_op("clipgs::gated_norm", mutates_args=(), device_types="cuda")
def gated_norm(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The layer norm [M, H] of `silu(gate) * value`, where `hidden` [M, 2 H] is gate, value; means; 1 / deviations."""
    hidden = hidden.contiguous()
    M, H = hidden.shape[0], hidden.shape[1] // 2
    normed = hidden.new_empty(M, H)
    means, rates = (hidden.new_empty(M, dtype=torch.float32) for _ in range(2))
    block = triton.next_power_of_2(H)
    with torch.cuda.device_of(hidden):
        _gated_norm[(M,)](hidden, weight, bias, normed, means, rates, H, eps, BLOCK=block, num_warps=_NORM_WARPS)
    return normed, means, rates


@gated_norm.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    M, H = hidden.shape[0], hidden.shape[1] // 2
    means, rates = (hidden.new_empty(M, dtype=torch.float32) for _ in range(2))
    return hidden.new_empty(M, H), means, rates


@triton.jit
def _gated_norm_backward(
    gradient, hidden, weight, means, rates, to_hidden, to_weight, to_bias, M, H, BLOCK: tl.constexpr
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    channels = tl.arange(0, BLOCK)
    inside = channels < H
    w = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    biases = tl.zeros([BLOCK], tl.float32)
    row = program.to(tl.int64)
    while row < M:
        gate = tl.load(hidden + row * 2 * H + channels, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(hidden + row * 2 * H + H + channels, mask=inside, other=0.0).to(tl.float32)
        above = tl.load(gradient + row * H + channels, mask=inside, other=0.0).to(tl.float32)
        mean, rate = tl.load(means + row), tl.load(rates + row)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        unit = tl.where(inside, (silu * value - mean) * rate, 0.0)
        weights += above * unit
        biases += above
        above *= w
        first, second = tl.sum(above, 0) / H, tl.sum(above * unit, 0) / H
        x = (above - first - unit * second) * rate
        tl.store(to_hidden + row * 2 * H + channels, x * value * (sigmoid + silu * (1 - sigmoid)), mask=inside)
        tl.store(to_hidden + row * 2 * H + H + channels, x * silu, mask=inside)
        row += programs
    tl.store(to_weight + program * H + channels, weights, mask=inside)
    tl.store(to_bias + program * H + channels, biases, mask=inside)


@custom_op("clipgs::gated_norm_backward", mutates_args=(), device_types="cuda")
def gated_norm_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, means: Tensor, rates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gated_norm`: [M, 2 H], and of weight and bias [H] each, float32."""
    gradient, hidden = gradient.contiguous(), hidden.contiguous()
    M, H = gradient.shape
    to_hidden = torch.empty_like(hidden)
    programs = min(M, _BACK_PROGRAMS * _multiprocessors(hidden.device))
    to_weight, to_bias = (hidden.new_empty(programs, H, dtype=torch.float32) for _ in range(2))
    given = (gradient, hidden, weight, means, rates, to_hidden, to_weight, to_bias, M, H)
    with torch.cuda.device_of(hidden):
        _gated_norm_backward[(programs,)](*given, BLOCK=triton.next_power_of_2(H), num_warps=_BACK_WARPS)
    return to_hidden, to_weight.sum(0), to_bias.sum(0)


@gated_norm_backward.register_fake
def _(gradient: Tensor, hidden: Tensor, weight: Tensor, means: Tensor, rates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    to_weight, to_bias = (hidden.new_empty(hidden.shape[1] // 2, dtype=torch.float32) for _ in range(2))
    return torch.empty_like(hidden), to_weight, to_bias


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
