"""Farthest-point order: the order in which the rows of a splat are stored."""

import numba
import numpy as np

LEAF = 64  # neighbouring points; the distance to their bounding box tells whether a new point can be near any of them
BITS = 10  # of each coordinate in the Z-order
MARGIN = np.float32(1 - 1e-5)  # larger than the rounding error of a squared distance in float32


# The flags only allow a maximum over vector lanes, neither FMA nor reassociated sums: the order is the same on every
# machine.
@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _farthest_point_order(
    x,  # [N] float32, in Z-order
    y,  # [N] float32
    z,  # [N] float32
    rows,  # [N] int64: the original row of each point
    start,  # the point of row 0
    steps,  # the number of rows to choose
):
    count = x.shape[0]
    leaves = (count + LEAF - 1) // LEAF
    low, high = np.empty((3, leaves), np.float32), np.empty((3, leaves), np.float32)
    farthest = np.full(leaves, np.float32(np.finfo(np.float32).max))  # of a leaf's points from the chosen set, squared
    where = np.empty(leaves, np.int64)  # that point; of equally far ones the one with the lowest row
    for leaf in range(leaves):
        part = slice(leaf * LEAF, min((leaf + 1) * LEAF, count))
        low[0, leaf], low[1, leaf], low[2, leaf] = x[part].min(), y[part].min(), z[part].min()
        high[0, leaf], high[1, leaf], high[2, leaf] = x[part].max(), y[part].max(), z[part].max()
    order = np.empty(steps, np.int64)
    nearest = np.full(count, np.float32(np.finfo(np.float32).max))  # squared distance to the chosen set
    zero = np.float32(0.0)
    current = start
    for step in range(steps):
        order[step] = rows[current]
        nearest[current] = -1.0  # below every distance, so that each copy of a point is chosen once
        own = current // LEAF
        cx, cy, cz = x[current], y[current], z[current]
        best = np.float32(-1.0)
        for leaf in range(leaves):
            dx = max(low[0, leaf] - cx, cx - high[0, leaf], zero)
            dy = max(low[1, leaf] - cy, cy - high[1, leaf], zero)
            dz = max(low[2, leaf] - cz, cz - high[2, leaf], zero)
            if (dx * dx + dy * dy + dz * dz) * MARGIN <= farthest[leaf] or leaf == own:
                most = np.float32(-1.0)
                begin, end = leaf * LEAF, min((leaf + 1) * LEAF, count)
                for i in range(begin, end):
                    dx, dy, dz = x[i] - cx, y[i] - cy, z[i] - cz
                    nearest[i] = min(nearest[i], dx * dx + dy * dy + dz * dz)
                    most = max(most, nearest[i])
                at = -1
                for i in range(begin, end):
                    if nearest[i] == most and (at < 0 or rows[i] < rows[at]):
                        at = i
                farthest[leaf], where[leaf] = most, at
            best = max(best, farthest[leaf])
        current = -1
        for leaf in range(leaves):
            if farthest[leaf] == best and (current < 0 or rows[where[leaf]] < rows[current]):
                current = where[leaf]
    return order


@numba.njit(cache=True, nogil=True)
def _side_by_side(
    points,  # [3, N] float32 in [-1, 1]
):  # [N] int64
    """The Z-order of the points: neighbours in space are close to each other in it."""
    codes = np.zeros(points.shape[1], np.int64)
    half = np.float32(0.5 * ((1 << BITS) - 1))
    for i in range(points.shape[1]):
        for axis in range(3):
            cell = np.int64((points[axis, i] + np.float32(1)) * half)
            for bit in range(BITS):
                codes[i] |= (cell >> bit & 1) << (3 * bit + axis)
    return np.argsort(codes, kind="mergesort")


@numba.njit(cache=True, nogil=True)
def _ordered(
    points,  # [3, N] float32 in [-1, 1]
    steps,  # the number of rows to choose
):  # [N] int64
    """The chosen rows, and then the others in their order."""
    rows = _side_by_side(points)
    order = _farthest_point_order(
        points[0][rows], points[1][rows], points[2][rows], rows, np.flatnonzero(rows == 0)[0], steps
    )
    others = np.ones(len(rows), np.bool_)
    others[order] = False
    return np.concatenate((order, np.flatnonzero(others)))


def farthest_point_order(
    xyz: np.ndarray,  # [N, 3]
    first: int | None = None,
) -> np.ndarray:
    """Rows in farthest-point order, starting with row 0: each next row is the farthest from all before it.

    The first g rows of the result are the g centres of farthest-point sampling, for every g (Eldar et al., "The
    farthest point strategy for progressive image sampling", 1997). Of equally far rows the lowest comes first, so the
    order is deterministic. Bounding boxes of neighbouring points tell which of them a new point cannot affect, so most
    steps look at few points. With `first`, only so many rows are chosen, and the others follow in their order.

    Returns:
        int64 [N], a permutation of 0 .. N - 1.

    Raises:
        ValueError: a coordinate is not finite.
    """
    if not np.isfinite(xyz).all():
        raise ValueError("Farthest-point order needs finite positions.")
    if len(xyz) == 0:
        return np.empty(0, np.int64)
    # Shifted and scaled in float64, so that float32 suffices for an object far from the origin or very large.
    xyz = np.asarray(xyz, np.float64)
    xyz = xyz - xyz[0]
    xyz /= max(float(np.abs(xyz).max()), np.finfo(np.float64).tiny)
    points = np.ascontiguousarray(xyz.T, dtype=np.float32)
    return _ordered(points, len(xyz) if first is None else min(first, len(xyz)))
