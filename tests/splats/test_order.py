"""Farthest-point order against the plain loop, where points tie, coincide or lie in a plane."""

import numpy as np
import pytest

from clipgs.splats.order import LEAF, farthest_point_order


def plainly(xyz: np.ndarray) -> list[int]:
    xyz = xyz - xyz[0]
    points = (xyz / max(np.abs(xyz).max(), np.finfo(np.float64).tiny)).astype(np.float32)
    nearest, order = np.full(len(points), np.inf, np.float32), [0]
    for _ in range(len(points) - 1):
        dx, dy, dz = (points - points[order[-1]]).T
        nearest[order[-1]] = -1
        nearest = np.minimum(nearest, dx * dx + dy * dy + dz * dz)
        order.append(int(nearest.argmax()))
    return order


CLOUDS = {
    "scattered": lambda rng, count: rng.normal(size=(count, 3)),
    "on a grid": lambda rng, count: np.round(rng.normal(size=(count, 3)) * 2) / 2,  # ties and copies
    "in a plane": lambda rng, count: rng.normal(size=(count, 3)) * [1, 0, 1],
    "far away": lambda rng, count: rng.normal(size=(count, 3)) + 1e4,
    "one place": lambda rng, count: np.zeros((count, 3)),
}


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("count", [1, 2, LEAF, LEAF + 1, 700])
def test_is_the_plain_loop_s(cloud, count):
    xyz = CLOUDS[cloud](np.random.default_rng(count), count)
    order = plainly(xyz)
    assert farthest_point_order(xyz).tolist() == order
    for first in (1, 5, count, count + 3):
        assert farthest_point_order(xyz, first).tolist() == order[:first] + sorted(order[first:])
