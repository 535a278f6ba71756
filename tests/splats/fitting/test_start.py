"""The start: discs in the surface, spread evenly."""

import numpy as np
import torch
from scipy.spatial import cKDTree

from clipgs.splats.fitting.start import evenly_spaced, start
from clipgs.splats.gaussians import Points
from clipgs.splats.rasterizer import kernels
from tests.splats.balls import SETTINGS, balls


def test_discs_lie_in_the_surface():
    points, _ = balls(points=1000)
    table = start(points[0], SETTINGS, seed=0)
    w, x, y, z = table[kernels.QUATS : kernels.SCALES].astype(np.float64)
    third_axis = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=1)
    means = table[: kernels.QUATS].T
    np.testing.assert_allclose(third_axis, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-5)
    scales = np.exp(table[kernels.SCALES : kernels.OPACITIES])
    np.testing.assert_allclose(scales[0], scales[1])
    np.testing.assert_allclose(scales[2], SETTINGS.disc_thickness * scales[0], rtol=1e-5)
    # 250 points are about 0.08 apart on a ball of radius 0.4
    assert 0.06 < np.median(scales[0] / SETTINGS.disc_spacing) < 0.11
    np.testing.assert_allclose(1 / (1 + np.exp(-table[kernels.COLORS :])), (means.T + 0.5).clip(1e-3, 0.999), atol=1e-5)


def test_the_points_taken_are_spread_over_all():
    xyz = balls(points=4000)[0].xyz[0].numpy()

    def nearest(chosen):
        return cKDTree(xyz[chosen]).query(xyz[chosen], k=2)[0][:, 1]

    even = evenly_spaced(xyz, 1000, np.random.default_rng(0))
    by_chance = np.random.default_rng(0).permutation(4000)[:1000]
    assert len(set(even)) == 1000
    assert nearest(even).mean() > 1.15 * nearest(by_chance).mean()
    assert np.array_equal(even, evenly_spaced(xyz, 1000, np.random.default_rng(0)))


def test_points_in_one_place_are_taken_too():
    assert len(set(evenly_spaced(np.ones((30, 3)), 10, np.random.default_rng(0)))) == 10
    assert len(set(evenly_spaced(np.ones((30, 3)), 30, np.random.default_rng(0)))) == 30


def test_normals_straight_down_or_missing_still_give_a_disc():
    xyz, normals = torch.rand(300, 3), torch.tensor([0.0, 0, -1]).repeat(300, 1)
    normals[::2] = 0
    table = start(Points(xyz, xyz, normals), SETTINGS, seed=0)
    assert np.isfinite(table).all()
    np.testing.assert_allclose(np.linalg.norm(table[kernels.QUATS : kernels.SCALES], axis=0), 1, rtol=1e-5)
