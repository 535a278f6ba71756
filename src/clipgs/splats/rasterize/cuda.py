"""The rasteriser's CUDA engine: gsplat's kernels (Ye et al., gsplat: An Open-Source Library for Gaussian Splatting,
2024) behind this project's interface."""

import torch
from torch import Tensor


def rasterize(
    means: Tensor,  # [B, N, 3]
    quats_wxyz: Tensor,  # [B, N, 4]
    scales: Tensor,  # [B, N, 3]
    opacities: Tensor,  # [B, N]
    colors: Tensor,  # [B, N, 3]
    backgrounds: Tensor,  # [B, V, 3]
    viewmats: Tensor,  # [B, V, 4, 4]
    Ks: Tensor,  # [B, V, 3, 3]
    width: int,
    height: int,
    antialiased: bool,
) -> tuple[Tensor, Tensor]:
    """The CUDA engine of `clipgs.splats.rasterize`, for one leading axis.

    Raises:
        RuntimeError: no CUDA device, or gsplat is not installed; the text says what to do.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            'engine="cuda" needs an NVIDIA GPU that torch can use, and none was found. '
            'Use engine="cpu" (device: cpu in config.yaml), or see what `clipgs doctor` says.'
        )
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise RuntimeError(
            'engine="cuda" needs gsplat 1.5: pip install "clipgs[gpu]". Its kernels are compiled when first used '
            "(about a minute), which needs the CUDA toolkit and a C++ compiler."
        ) from error
    images, alphas, _ = rasterization(
        means,
        quats_wxyz,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        packed=False,
        sh_degree=None,
        backgrounds=backgrounds,
        rasterize_mode="antialiased" if antialiased else "classic",
    )
    return images, alphas
