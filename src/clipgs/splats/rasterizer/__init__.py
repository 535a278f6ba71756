"""Differentiable renders of Gaussians: one interface, two engines (gsplat on CUDA, numba kernels on a CPU)."""

import math
from typing import Literal

import torch
from torch import Tensor

_SHAPES = {
    **{"means": ("N", 3), "quats_wxyz": ("N", 4), "scales": ("N", 3), "opacities": ("N",), "colors": ("N", 3)},
    **{"backgrounds": ("V", 3), "viewmats": ("V", 4, 4), "Ks": ("V", 3, 3)},
}


def rasterize(
    means: Tensor,  # [..., N, 3]
    quats_wxyz: Tensor,  # [..., N, 4], any length but zero
    scales: Tensor,  # [..., N, 3], world units
    opacities: Tensor,  # [..., N], in [0, 1]
    colors: Tensor,  # [..., N, 3]
    viewmats: Tensor,  # [..., V, 4, 4], world to camera, OpenCV axes
    Ks: Tensor,  # [..., V, 3, 3], pixels, no skew
    width: int,
    height: int,
    *,
    backgrounds: Tensor | None = None,  # [..., V, 3]; black if not given
    mode: Literal["classic", "antialiased"] = "classic",
    engine: Literal["auto", "cpu", "cuda"] = "auto",
) -> tuple[Tensor, Tensor]:  # [..., V, H, W, 3], [..., V, H, W, 1]
    """Draw N Gaussians from V cameras, for any leading batch of objects: images and alphas.

    Differentiable in the five Gaussian inputs and the backgrounds, not in the cameras. The inputs may have any floating
    type; both results are float32. With `engine="auto"` the device of the tensors decides. The arithmetic is gsplat
    1.5's: the blur is 0.3 square pixels, alphas below 1/255 are skipped, alphas are capped at 0.999, a pixel is
    finished before its transmittance falls to 1e-4, and nothing nearer than 0.01 is drawn. `mode="antialiased"` lowers
    the opacity of Gaussians smaller than the blur (Mip-Splatting, Yu et al. 2024). On the CPU the results repeat bit
    for bit, and a Gaussian with a number that is not finite is not drawn and has no gradient.

    Raises:
        ValueError: an argument of the wrong shape, type, device or value, named.
        RuntimeError: `engine="cuda"` without a CUDA device or without gsplat; the message says what to do.
    """
    if not isinstance(means, Tensor) or means.ndim < 2:
        raise ValueError(f"means must be a tensor [..., N, 3], not {_describe(means)}.")
    if not isinstance(viewmats, Tensor) or viewmats.ndim < 3:
        raise ValueError(f"viewmats must be a tensor [..., V, 4, 4], not {_describe(viewmats)}.")
    batch, gaussians, views = means.shape[:-2], means.shape[-2], viewmats.shape[-3]
    if backgrounds is None:
        backgrounds = means.new_zeros(*batch, views, 3)
    tensors = (means, quats_wxyz, scales, opacities, colors, backgrounds, viewmats, Ks)
    for (name, (rows, *tail)), tensor in zip(_SHAPES.items(), tensors, strict=True):
        expected = (*batch, gaussians if rows == "N" else views, *tail)
        if not isinstance(tensor, Tensor) or tensor.shape != expected or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be a floating tensor {_shape('...', rows, *tail)}, "
                f"here {_shape(*expected)} as means and viewmats say, not {_describe(tensor)}."
            )
        if tensor.device != means.device:
            raise ValueError(f"{name} is on {tensor.device} but means is on {means.device}: use one device.")
    for name, tensor in (("viewmats", viewmats), ("Ks", Ks)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and the engines compute none for cameras: detach it.")
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be at least 1 pixel, not {width} and {height}.")
    if mode not in ("classic", "antialiased"):
        raise ValueError(f'mode must be "classic" or "antialiased", not {mode!r}.')
    if engine == "auto":
        engine = "cuda" if means.is_cuda else "cpu"
    if engine == "cpu":
        if means.device.type != "cpu":
            raise ValueError(f'engine="cpu" needs tensors on the CPU, but means is on {means.device}.')
        from clipgs.splats.rasterizer.cpu import rasterize as run
    elif engine == "cuda":
        from clipgs.splats.rasterizer.cuda import rasterize as run

        if torch.cuda.is_available() and not means.is_cuda:
            raise ValueError(f'engine="cuda" needs tensors on a CUDA device, but means is on {means.device}.')
    else:
        raise ValueError(f'engine must be "auto", "cpu" or "cuda", not {engine!r}.')

    def one_axis(tensor: Tensor) -> Tensor:  # [B, ...]
        return tensor.float().reshape(math.prod(batch), *tensor.shape[len(batch) :])

    images, alphas = run(*map(one_axis, tensors), int(width), int(height), mode == "antialiased")
    return images.reshape(*batch, *images.shape[1:]), alphas.reshape(*batch, *alphas.shape[1:])


def _shape(*sizes) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def _describe(value) -> str:
    if isinstance(value, Tensor):
        return f"{_shape(*value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__
