"""Colours as PLY, STL, OFF and OBJ files have them: sRGB, as bytes or as fractions."""

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import srgb_to_linear


def fractions(
    values: np.ndarray,  # [N, C]
) -> np.ndarray:
    """Fractions [N, C] of numbers that may be fractions or bytes.

    They are bytes if most of those that are not 0 are over 2 and one is over 7, since no mesh is that black. The
    largest alone says nothing: computed colours overshoot 1.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise ObjectError("some vertex colours are not finite numbers")
    shown = values[values != 0]
    bytes_ = len(shown) and np.median(shown) > 2 and shown.max() > 7
    return (values / 255 if bytes_ else values).clip(0, 1)


def linear_rgba(
    srgb: np.ndarray,  # [N, 3], fractions
) -> np.ndarray:
    """Linear colours [N, 4] without transparency: the alpha of these formats is unreliable, often 0 throughout."""
    return np.column_stack([srgb_to_linear(srgb), np.ones(len(srgb))])
