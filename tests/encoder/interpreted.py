"""The Triton kernels on a CPU: run with TRITON_INTERPRET=1. Ends with 0 where they compute what torch does."""

import torch
from torch.nn import functional as F

from clipgs.encoder import kernels


def patch_max() -> None:
    values = torch.randn(2, 3, 13, 40).bfloat16()  # equal values among them
    values[0, 0, 5, 1] = torch.nan
    largest, place = kernels.patch_max._init_fn(values)
    torch.testing.assert_close(largest, values.amax(2), atol=0, rtol=0, equal_nan=True)
    assert torch.equal(place.long(), values.max(2).indices)


def relu_of_sum() -> None:
    gradient, found = torch.randn(2, 3, 13, 40), torch.randn(2, 3, 13, 40).relu()
    to_points, to_patches = kernels.relu_of_sum_backward._init_fn(gradient, found)
    assert torch.equal(to_points, gradient.where(found > 0, 0))
    torch.testing.assert_close(to_patches, to_points.sum(2))


def gated_norm() -> None:
    hidden, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((7, 40), (20,), (20,)))
    gate, value = hidden.chunk(2, dim=1)
    expected = F.layer_norm(F.silu(gate) * value, (20,), weight, bias, 1e-6)
    gradient = torch.randn(7, 20)
    expected.backward(gradient)
    with torch.no_grad():
        normed, means, rates = kernels.gated_norm._init_fn(hidden, weight, bias, 1e-6)
        gradients = kernels.gated_norm_backward._init_fn(gradient, hidden, weight, means, rates)
    torch.testing.assert_close(normed, expected.detach())
    for ours, theirs in zip(gradients, (hidden.grad, weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(ours, theirs)


if __name__ == "__main__":
    torch.manual_seed(0)
    patch_max()
    relu_of_sum()
    gated_norm()
