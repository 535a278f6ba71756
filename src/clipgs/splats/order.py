"""Farthest-point order: the order in which the rows of a splat are stored."""

import numba
import numpy as np


# No FMA and no reassociated sums: the flags only let the maximum be taken in vector lanes, so the order is
# the same on every machine.
@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _farthest_point_order(
    x,  # [N] float32
    y,  # [N] float32
    z,  # [N] float32
    first,  # int
):
    count = x.shape[0]
    order = np.empty(count, np.int64)
    nearest = np.full(count, np.float32(np.finfo(np.float32).max))  # squared distance to the chosen set
    current = 0
    for step in range(first):
        order[step] = current
        nearest[current] = -1.0  # chosen: below every distance, so copies of a point are taken once each
        cx, cy, cz = x[current], y[current], z[current]
        farthest = np.float32(-1.0)
        for i in range(count):
            dx, dy, dz = x[i] - cx, y[i] - cy, z[i] - cz
            nearest[i] = min(nearest[i], dx * dx + dy * dy + dz * dz)
            farthest = max(farthest, nearest[i])
        for i in range(count):
            if nearest[i] == farthest:  # the first of equals
                current = i
                break
    step = first
    for i in range(count):
        if nearest[i] >= 0:  # not chosen
            order[step] = i
            step += 1
    return order


def farthest_point_order(
    xyz: np.ndarray,  # [N, 3]
    first: int | None = None,
) -> np.ndarray:
    """Rows in farthest-point order, starting with row 0: each next row is the farthest from all before it.

    The first g rows of the result are the g centres that farthest-point sampling would choose, for every g
    (Eldar et al., "The farthest point strategy for progressive image sampling", 1997). Equal distances go to
    the lower row, so the order is deterministic. With `first`, only so many rows are chosen, and the others follow
    as they stood: N steps cost N^2 distances, and who wants g centres needs g N of them.

    Returns:
        int64 [N], a permutation of 0 .. N - 1.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not np.isfinite(xyz).all():
        raise ValueError("Farthest-point order needs finite positions.")
    if len(xyz) == 0:
        return np.empty(0, np.int64)
    # Shifted and scaled in float64: an object far from the origin, or very large, loses nothing in float32.
    xyz = np.asarray(xyz, np.float64)
    xyz = xyz - xyz[0]
    xyz /= max(float(np.abs(xyz).max()), np.finfo(np.float64).tiny)
    steps = len(xyz) if first is None else min(first, len(xyz))
    return _farthest_point_order(*np.ascontiguousarray(xyz.T, dtype=np.float32), steps)
