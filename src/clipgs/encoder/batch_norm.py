"""Batch norm over the last axis, and linear layers with a batch norm folded into their weights.

B objects, g patches of n Gaussians, C channels.
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Mode = Literal["sync", "local", "frozen"]


class BatchNorm(nn.BatchNorm1d):
    """A batch norm that can take its statistics from another layer's moments.

    `sync` uses the statistics of all processes' batches, `local` of its own batch, `frozen` the running ones even in
    training. Parameters, running statistics, momentum and arithmetic are those of `torch.nn.BatchNorm1d`.
    """

    running_mean: Tensor  # never None here
    running_var: Tensor
    momentum: float

    def __init__(self, channels: int, mode: Mode = "local") -> None:
        super().__init__(channels)
        self.mode: Mode = mode

    @property
    def uses_batch(self) -> bool:
        """Whether the statistics are the batch's own, and not the running ones."""
        return self.training and self.mode != "frozen"

    def scale_shift(
        self,
        mean: Tensor | None = None,  # [C], of this process's batch; default: the running statistics
        variance: Tensor | None = None,  # [C], biased
        rows: int = 0,
    ) -> tuple[Tensor, Tensor]:  # [C] each
        """Scale and shift of the norm `y * scale + shift`. The batch's own statistics update the running ones."""
        if mean is None or variance is None:
            mean, variance = self.running_mean, self.running_var
        else:
            variance = variance.clamp(min=0)
            if self.mode == "sync" and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                # All processes have the same number of rows, so the mean of their means is the mean of all rows.
                mean, square = _AverageOverProcesses.apply(torch.stack([mean, variance + mean.square()])).unbind(0)
                variance = (square - mean.square()).clamp(min=0)
                rows *= dist.get_world_size()
            with torch.no_grad():
                unbiased = variance * (rows / max(rows - 1, 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return scale, self.bias - mean * scale

    def forward(self, values: Tensor) -> Tensor:  # [..., C] each
        if not self.uses_batch:
            scale, shift = self.scale_shift()
        else:
            rows = _wide(values).flatten(0, -2)
            variance, mean = torch.var_mean(rows, dim=0, correction=0)
            scale, shift = self.scale_shift(mean, variance, len(rows))
        return (values * scale + shift).to(values.dtype)


class _AverageOverProcesses(torch.autograd.Function):
    """The mean over all processes; the loss of each depends on the values of all."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient / dist.get_world_size()


class Moments:
    """Mean and covariance of the rows of a batch, which determine the statistics of every linear function of them.

    The mean of W x is W times the mean of x, and its variance is the diagonal of W cov(x) W^T. So a batch norm after a
    linear layer does not need the layer's output: it becomes a part of the layer's weights.
    """

    def __init__(self, values: Tensor) -> None:  # [B, g, n, C]
        self.rows = values[..., 0].numel()
        self.mean = _wide(values).mean((0, 1, 2))  # [C]
        # One sum an object: in bfloat16 their rounding errors average out over the batch.
        objects = values.flatten(1, 2)
        square = _wide(torch.bmm(objects.mT, objects)).mean(0) / objects.shape[1]
        self.covariance = square - self.mean[:, None] * self.mean  # [C, C]


def centred(values: Tensor) -> tuple[Tensor, Tensor]:  # [B, g, n, C]; the same and [C]
    """The values minus their mean, and the mean. Nearly constant channels thus keep their precision in bfloat16."""
    mean = _wide(values).mean((0, 1, 2))
    return values - mean, mean


def folded(
    weight: Tensor,  # [C', C]
    offset: Tensor,  # [C'] or [..., C'], added to W x
    scale: Tensor,  # [C']
    shift: Tensor,  # [C']
) -> tuple[Tensor, Tensor]:
    """Weight and offset of one linear layer that equals this layer and its norm."""
    return weight * scale[:, None], offset * scale + shift


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
