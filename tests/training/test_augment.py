import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from clipgs.config import Augmentation
from clipgs.splats import Gaussians, rasterize
from clipgs.splats.quaternions import rotation_matrices
from clipgs.training.augment import augment, draw, transform

STILL = {"rotation": "none", "tilt_sigma": 0.0, "scale_min": 1.0, "scale_max": 1.0, "shift": 0.0, "color_dropout": 0.0}


def splats(objects, rows=40, seed=0):
    """Long, thin, opaque Gaussians: a wrong orientation would show."""
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.rand(objects, rows, 3, generator=generator) - 0.5,
        quats_wxyz=torch.randn(objects, rows, 4, generator=generator),
        log_scales=torch.tensor([0.15, 0.03, 0.01]).log().expand(objects, rows, 3),
        opacity_logits=torch.full((objects, rows), 2.0),
        colors=torch.rand(objects, rows, 3, generator=generator),
    )


def pictures(gaussians, viewmats):
    """[B, 64, 64, 3] with one camera an object."""
    Ks = torch.tensor([[90.0, 0, 32], [0, 90, 32], [0, 0, 1]]).expand(len(gaussians), 1, 3, 3)
    images, _ = rasterize(
        gaussians.means, gaussians.quats_wxyz, gaussians.scales, gaussians.opacities, gaussians.colors,
        viewmats[:, None], Ks, 64, 64,
    )  # fmt: skip
    return images[:, 0]


def in_front(objects, distance=2.0):
    """Cameras that look along z from `distance` away."""
    viewmats = torch.eye(4).repeat(objects, 1, 1)
    viewmats[:, 2, 3] = distance
    return viewmats


def drawn(settings, count=1, seed=0):
    return torch.from_numpy(draw(settings, count, np.random.default_rng(seed)))


def test_a_splat_turned_about_the_camera_axis_renders_as_the_turned_picture():
    before = splats(2)
    quarter = torch.tensor([[math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)]]).expand(2, 4)  # 90 degrees about z
    after = transform(before, quarter, torch.ones(2), torch.zeros(2, 3))
    turned = pictures(before, in_front(2)).rot90(-1, dims=(1, 2))  # y of a picture points down: clockwise
    difference = (pictures(after, in_front(2)) - turned).abs()
    assert difference.mean() < 1e-5
    assert difference.max() < 0.02  # equal depths may be drawn in another order


def test_a_turned_scaled_and_shifted_splat_renders_as_the_object_from_the_moved_camera():
    before, count = splats(3), 3
    draws = drawn(Augmentation(rotation="full", color_dropout=0.0, shift=0.3), count)
    after = augment(before, draws)
    quats, scales, shifts = draws[:, :4], draws[:, 4], draws[:, 5:8]
    # x' = s R x + t is seen by a camera W' = s W (s R, t)^-1 as x is seen by W, for a world s times as large.
    moved = in_front(count)
    moved[:, :3, :3] = moved[:, :3, :3] @ rotation_matrices(quats).mT
    moved[:, :3, 3] = scales[:, None] * in_front(count)[:, :3, 3] - torch.einsum("bij,bj->bi", moved[:, :3, :3], shifts)
    difference = (pictures(after, moved) - pictures(before, in_front(count))).abs()
    assert difference.mean() < 1e-4
    assert (pictures(after, in_front(count)) - pictures(before, in_front(count))).abs().mean() > 0.01


@pytest.mark.parametrize("rotation", ["none", "y", "full"])
def test_what_is_drawn_lies_in_its_limits(rotation):
    settings = Augmentation(rotation=rotation, tilt_sigma=0.1, tilt_clip=0.05)
    draws = drawn(settings, 400)
    quats, scales, shifts, keeps = draws[:, :4], draws[:, 4], draws[:, 5:8], draws[:, 8]
    assert torch.allclose(quats.norm(dim=1), torch.ones(400), atol=1e-6)
    assert 0.8 <= scales.min() < 0.85
    assert 1.2 < scales.max() <= 1.25
    assert -0.1 <= shifts.min() < -0.09
    assert 0.09 < shifts.max() <= 0.1
    assert 0.4 < keeps.mean() < 0.6
    up = rotation_matrices(quats)[:, 1, 1]  # cosine between the vertical before and after
    if rotation == "full":
        assert up.mean().abs() < 0.1
        assert up.std() == pytest.approx(1 / math.sqrt(3), abs=0.05)  # uniform over the sphere
    else:
        assert up.min() > math.cos(0.05 * math.sqrt(3)) - 1e-6
    forward = rotation_matrices(quats)[:, 2, 2]
    assert (forward.min() < -0.9) == (rotation != "none")


@pytest.mark.parametrize("rotation", ["none", "y", "full"])
def test_draws_are_turns_about_the_vertical_after_a_tilt(rotation):
    """Each number from scipy's rotations, by the same generator in the same order."""
    settings = Augmentation(
        rotation=rotation, tilt_sigma=0.3, tilt_clip=0.4, scale_min=0.7, scale_max=1.1, shift=0.2, color_dropout=0.3
    )
    draws, generator, zero = draw(settings, 50, np.random.default_rng(5)), np.random.default_rng(5), np.zeros(50)
    if rotation == "full":
        expected = Rotation.from_quat(generator.normal(size=(50, 4)), scalar_first=True)
    else:
        turns = 2 * generator.uniform(0, math.pi, 50) if rotation == "y" else zero
        tilts = np.clip(0.3 * generator.normal(size=(50, 3)), -0.4, 0.4)
        expected = Rotation.from_rotvec(np.stack([zero, turns, zero], 1)) * Rotation.from_rotvec(tilts)
    assert draws.shape == (50, 9)
    assert draws.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(draws[:, :4], axis=1), 1, atol=1e-6)
    matrices = Rotation.from_quat(draws[:, :4], scalar_first=True).as_matrix()
    np.testing.assert_allclose(matrices, expected.as_matrix(), atol=1e-6)
    np.testing.assert_allclose(draws[:, 4], generator.uniform(0.7, 1.1, (50, 1))[:, 0], atol=1e-6)
    np.testing.assert_allclose(draws[:, 5:8], generator.uniform(-0.2, 0.2, (50, 3)), atol=1e-6)
    assert np.array_equal(draws[:, 8], generator.uniform(size=50) >= 0.3)


def test_without_a_tilt_or_a_turn_nothing_is_turned():
    draws = draw(Augmentation(rotation="none", tilt_sigma=0.0), 3, np.random.default_rng(0))
    assert np.array_equal(draws[:, :4], [[1, 0, 0, 0]] * 3)


def test_colours_are_dropped_as_often_as_is_said():
    never, always = (Augmentation(color_dropout=rate) for rate in (0.0, 1.0))
    assert drawn(never, 50)[:, 8].tolist() == [1] * 50
    assert drawn(always, 50)[:, 8].tolist() == [0] * 50


class Lowest:
    """A generator that draws the least number there is."""

    def normal(self, size):
        return np.ones(size)

    def uniform(self, low=0.0, high=1.0, size=None):
        return np.full(size, low)


def test_at_a_rate_of_zero_no_draw_at_all_drops_colours():
    assert draw(Augmentation(color_dropout=0.0), 3, Lowest())[:, 8].tolist() == [1] * 3


def test_colours_keep_their_type():
    before = splats(2)
    before = replace(before, colors=before.colors.half())
    assert augment(before, drawn(Augmentation(), 2)).colors.dtype == torch.float16


def test_nothing_changes_when_all_is_switched_off():
    before = splats(2)
    after = augment(before, drawn(Augmentation(**STILL), 2))
    for name in ("means", "log_scales", "opacity_logits", "colors", "quats_wxyz"):
        assert torch.equal(getattr(after, name), getattr(before, name))


def test_dropped_colors_are_grey_and_nothing_else_changes():
    before = splats(2)
    draws = drawn(Augmentation(**STILL), 2)
    draws[1, 8] = 0
    after = augment(before, draws)
    assert torch.equal(after.colors[0], before.colors[0])
    assert torch.equal(after.colors[1], torch.full_like(before.colors[1], 0.4))
    assert torch.equal(after.means, before.means)


def test_neighbours_stay_neighbours():
    before = splats(1)
    after = augment(before, drawn(Augmentation(rotation="full"), 1))
    near = [torch.cdist(g.means, g.means).argsort(dim=-1, stable=True)[..., :5] for g in (before, after)]
    assert torch.equal(*near)


def test_the_orientation_turns_with_the_positions():
    before = splats(1, rows=7)
    (quat,) = functional.normalize(torch.randn(1, 4, generator=torch.Generator().manual_seed(1)))[None]
    after = transform(before, quat, torch.ones(1), torch.zeros(1, 3))

    def axes(gaussians):
        return rotation_matrices(functional.normalize(gaussians.quats_wxyz, dim=-1))

    assert torch.allclose(axes(after), rotation_matrices(quat)[:, None] @ axes(before), atol=1e-5)
