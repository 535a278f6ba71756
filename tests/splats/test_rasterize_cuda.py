"""The CUDA engine: what it says where it cannot run, and that it agrees with the CPU engine where it can."""

import pytest
import torch

from clipgs.splats.rasterizer import rasterize
from tests.splats.test_rasterize_cpu import NAMES, scene


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_without_a_gpu_the_error_says_what_to_do():
    inputs, viewmats, Ks, _ = scene()
    with pytest.raises(RuntimeError, match=r"needs an NVIDIA GPU.*engine=\"cpu\""):
        rasterize(*inputs.values(), viewmats, Ks, 8, 8, engine="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_agrees_with_the_cpu(batch, mode):
    pytest.importorskip("gsplat", reason="needs gsplat")
    inputs, viewmats, Ks, backgrounds = scene(batch)
    weights = torch.randn(*batch, 2, 22, 37, 4, generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        values = [value.detach().to(device).requires_grad_() for value in inputs.values()]
        images, alphas = rasterize(
            *values, viewmats.to(device), Ks.to(device), 37, 22, backgrounds=backgrounds.to(device), mode=mode
        )
        picture = torch.cat([images, alphas], dim=-1)
        (picture * weights.to(device)).sum().backward()
        results.append([picture.detach().cpu(), *(value.grad.cpu() for value in values)])
    (ours, *our_gradients), (theirs, *their_gradients) = results
    # An alpha that float32 puts on either side of 1/255 changes a pixel by up to that much.
    off = (ours - theirs).abs()
    assert off.max() < 1 / 255 + 1e-4
    assert off.mean() < 1e-5
    for name, mine, reference in zip(NAMES, our_gradients, their_gradients, strict=True):
        assert (mine - reference).norm() < 1e-2 * reference.norm(), name
