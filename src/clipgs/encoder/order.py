"""Space-filling orders of patches: integer codes of grid cells; sorting by them brings neighbours together."""

from typing import Literal, get_args

import torch
from torch import Tensor

Order = Literal["xyz", "z", "z-trans", "hilbert", "hilbert-trans"]
ORDERS: tuple[str, ...] = get_args(Order)
MAX_DEPTH = 21  # three coordinates of 21 bits fill 63 bits of an int64
# After the step with shift s, the bits of a coordinate are in groups of s, three times as far apart.
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def encode(
    grid: Tensor,  # [..., N, 3] int64, each coordinate in 0 .. 2^depth - 1
    order: Order,
    depth: int,
) -> Tensor:  # [..., N] int64
    """Position of each grid cell along a space-filling order, unique and in 0 .. 2^(3 depth) - 1.

    `xyz` compares x, then y, then z. `z` is the Morton curve, with the bits of x highest (Morton, 1966). `hilbert` is
    the Hilbert curve (Skilling, "Programming the Hilbert curve", 2004). `-trans` exchanges x and y. The codes are those
    of Point Transformer V3.

    Raises:
        ValueError: an unknown order, a depth outside 1 .. 21, or a grid that is not int64 [..., 3].
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}.")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"depth must be 1 to {MAX_DEPTH}, not {depth}.")
    if grid.dtype != torch.int64 or grid.shape[-1:] != (3,):
        raise ValueError(f"grid must be int64 [..., N, 3], not {list(grid.shape)} of {grid.dtype}.")
    x, y, z = grid.unbind(-1)
    if order.endswith("-trans"):
        x, y = y, x
    if order == "xyz":
        return (x << 2 * depth) | (y << depth) | z
    if order.startswith("hilbert"):
        return _hilbert(x, y, z, depth)
    return _interleave(x, y, z)


def _interleave(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return (_spread(x) << 2) | (_spread(y) << 1) | _spread(z)


def _spread(value: Tensor) -> Tensor:
    """Insert two zero bits between each two bits."""
    for shift, mask in _SPREAD:
        value = (value | (value << shift)) & mask
    return value


def _hilbert(x: Tensor, y: Tensor, z: Tensor, depth: int) -> Tensor:
    axes = [x, y, z]
    for bit in reversed(range(1, depth)):
        lower = (1 << bit) - 1
        for axis in range(3):
            on = (axes[axis] >> bit) & 1
            # Where the bit is set, the lower bits of x are inverted; elsewhere they are exchanged with this axis's.
            exchanged = (axes[0] ^ axes[axis]) & lower & (on - 1)
            axes[0] = axes[0] ^ (-on & lower) ^ exchanged
            if axis:
                axes[axis] = axes[axis] ^ exchanged
    code = _interleave(*axes)
    shift = 1
    while shift < 3 * depth:  # from Gray code to binary
        code = code ^ (code >> shift)
        shift *= 2
    return code
