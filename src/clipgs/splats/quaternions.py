"""Rotations as quaternions w, x, y, z."""

import torch
from torch import Tensor


def rotation_matrices(
    quats_wxyz: Tensor,  # [..., 4], unit length
) -> Tensor:  # [..., 3, 3]
    """The rotation x -> R x of each quaternion."""
    w, x, y, z = quats_wxyz.unbind(-1)
    entries = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def product(
    a: Tensor,  # [..., 4]
    b: Tensor,  # [..., 4]
) -> Tensor:  # [..., 4]
    """Hamilton's product: the rotation by b, then by a."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    parts = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return torch.stack(parts, dim=-1)
