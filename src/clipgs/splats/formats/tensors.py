"""Splats in files of torch: rows of 14, as UniGS publishes them, and checkpoints of gsplat. Nothing in them is run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.splats.rows import Limit, SplatRows, joined

_OF_GSPLAT = {"means": 3, "sh0": 3, "opacities": 1, "scales": 3, "quats": 4}  # columns
_DEPTH = 4  # of dictionaries and lists in which a splat is looked for


def read(path: Path, limit: Limit) -> SplatRows:
    """The one tensor or array of 14 columns in the file, in the order of SPLAT_PROPERTIES; or a checkpoint's splats.

    Raises:
        ValueError: it holds anything but tensors, arrays, numbers and texts; or no splat, or several, or one of more
            Gaussians than the limit.
    """
    from torch import load
    from torch.serialization import safe_globals

    try:
        with safe_globals(_allowed()):
            content = load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of torch, zip files and pickles
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the torch file cannot be read without running what is in it, or is damaged ({reason})"
        ) from None
    found = list(_splats(content, _DEPTH))
    if len(found) != 1:
        what = "no tensor of 14 columns and no checkpoint of gsplat" if not found else f"{len(found)} splats"
        raise ValueError(f"the torch file holds {what}")
    splat = found[0]
    if not isinstance(splat, dict):
        limit.check(len(splat))
        rows = _array(splat)
        return SplatRows(joined(rows[:, :3], rows[:, 3:6], rows[:, 6], rows[:, 7:10], rows[:, 10:]), [])
    count = limit.check(len(splat["means"]))
    if any(int(np.prod(splat[name].shape)) != count * columns for name, columns in _OF_GSPLAT.items()):
        raise ValueError("the parameters of its checkpoint differ in length")
    means, f_dc, logits, log_scales, quats = (_array(splat[name]).reshape(count, -1) for name in _OF_GSPLAT)
    harmonics = int(np.prod(splat["shN"].shape[1:])) if "shN" in splat else 0
    return SplatRows(joined(means, f_dc, logits[:, 0], log_scales, quats), [], harmonics)


def _splats(content: Any, depth: int) -> Iterator[Any]:
    """The tensors and arrays [N, 14] in nested dictionaries and lists, and the dictionaries that gsplat saves."""
    if hasattr(content, "shape"):
        if len(content.shape) == 2 and content.shape[1] == 14:
            yield content
    elif depth and isinstance(content, dict):
        if all(hasattr(content.get(name), "shape") for name in _OF_GSPLAT):
            yield content
            return
        for value in content.values():
            yield from _splats(value, depth - 1)
    elif depth and isinstance(content, list | tuple):
        for value in content:
            yield from _splats(value, depth - 1)


def _array(values: Any) -> np.ndarray:
    """Values as an array; those of a tensor that keeps gradients too."""
    array = values if isinstance(values, np.ndarray) else values.detach().float().numpy()
    if array.dtype.kind not in "fiu":
        raise ValueError(f"the torch file holds {array.dtype} instead of numbers")
    return array


def _allowed() -> list[Any]:
    """The makers of arrays of numbers and texts, which torch does not allow by itself. None runs anything."""

    def empty(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
        return np.ndarray.__new__(np.ndarray, (0,))  # __setstate__ gives it its shape and its bytes

    def scalar(dtype: np.dtype, data: bytes) -> Any:
        return np.frombuffer(data, dtype)[0]

    kinds = [type(np.dtype(code)) for code in ("f2", "f4", "f8", "u1", "i4", "i8", "?", "U1")]
    makers = [(empty, "_reconstruct"), (scalar, "scalar")]
    named = [(maker, f"numpy.{core}.multiarray.{name}") for maker, name in makers for core in ("core", "_core")]
    return [*named, np.ndarray, np.dtype, *kinds]
