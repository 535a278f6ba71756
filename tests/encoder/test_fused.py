import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from clipgs.encoder.fused import gated_norm, patch_max, relu_of_sum


def test_the_maximum_of_a_patch_and_its_gradient_are_torchs():
    x = torch.randn(2, 3, 8, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(patch_max, x)
    assert torch.equal(patch_max(x), x.amax(2))


def test_what_is_not_negative_of_a_sum_and_its_gradients_are_torchs():
    points = torch.randn(2, 3, 8, 5, dtype=torch.float64, requires_grad=True)
    patches = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(relu_of_sum, (points, patches))
    assert torch.equal(relu_of_sum(points, patches), F.relu(points + patches[:, :, None]))


def test_the_kernels_compute_what_torch_does():
    pytest.importorskip("triton", reason="torch comes without Triton here")
    script = Path(__file__).with_name("interpreted.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_the_kernels_give_what_torch_does_on_the_cpu(dtype):
    """Widths that fill no block, too, and what the encoder's real sizes need."""
    for M, H in ((7, 20), (513, 2048), (65, 2730)):
        inputs = [torch.randn(3, M, 2 * H).to(dtype), torch.randn(H), torch.randn(H)]
        _same(lambda *given: gated_norm(*given, 1e-6), inputs)
    for g, n, C in ((5, 13, 40), (16, 64, 512), (3, 1, 600)):
        points = torch.randn(2, g, n, C).to(dtype)
        _same(patch_max, [points])
        _same(relu_of_sum, [points, torch.randn(2, g, C).to(dtype).float()])


def _same(function, inputs):
    """The same values and gradients, by norm: the CPU computes in float64 what both are given."""
    found = []
    for device, wide in (("cpu", torch.float64), ("cuda", None)):
        given = [value.detach().to(device, wide).requires_grad_() for value in inputs]
        out = function(*given)
        above = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).to(inputs[0].dtype).view_as(out)
        out.backward(above.to(out))
        found.append([value.double().cpu() for value in (out.detach(), *(one.grad for one in given))])
    for expected, ours in zip(*found, strict=True):
        limit = 2e-5 if inputs[0].dtype == torch.float32 else 1e-2
        assert (ours - expected).norm() <= limit * expected.norm()
