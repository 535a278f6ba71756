"""The rasteriser's CUDA engine: gsplat's kernels (Ye et al., gsplat: An Open-Source Library for Gaussian Splatting,
2024)."""

import functools
from collections.abc import Callable

import torch
from filelock import FileLock
from torch import Tensor

from clipgs.config import Config


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
    """The CUDA engine of `clipgs.splats.rasterizer`, for one leading axis.

    Raises:
        RuntimeError: no CUDA device, or gsplat is not installed; the message says what to do.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            'engine="cuda" needs an NVIDIA GPU, and torch finds none. '
            'Use engine="cpu" (device: cpu in config.yaml), or run `clipgs doctor` to see why.'
        )
    mode = "antialiased" if antialiased else "classic"
    gaussians = (means, quats_wxyz, scales, opacities, colors)
    images, alphas, _ = _rasterization()(
        *gaussians, viewmats, Ks, width, height, packed=False, backgrounds=backgrounds, rasterize_mode=mode
    )
    return images, alphas


@functools.cache
def _rasterization() -> Callable:
    """gsplat's `rasterization`. One process compiles its kernels while the others wait: gsplat empties the folder in
    which another process may be compiling.
    """
    folder = Config().cache_path / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from gsplat import rasterization

        with FileLock(folder / "gsplat.lock"):
            from gsplat.cuda import _backend
    except ImportError as error:
        raise RuntimeError(
            'engine="cuda" needs gsplat 1.5: pip install "clipgs[gpu]". Compiling its kernels at the first use '
            "takes about a minute and needs the CUDA toolkit and a C++ compiler."
        ) from error
    if _backend._C is None:
        raise RuntimeError(
            "gsplat's kernels cannot be compiled: install the CUDA toolkit (nvcc) and set CUDA_HOME, or use device: cpu"
        )
    return rasterization
