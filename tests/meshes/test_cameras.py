import numpy as np
import pytest

from clipgs.config import Views
from clipgs.core.errors import ObjectError
from clipgs.meshes.cameras import (
    cameras_json,
    canonical,
    canonical_cameras,
    held_out,
    look_at_origin,
    parse_cameras,
)


def eyes(viewmats: np.ndarray) -> np.ndarray:
    return -np.einsum("vba,vb->va", viewmats[:, :3, :3], viewmats[:, :3, 3]).astype(float)


@pytest.mark.parametrize("make", [canonical, held_out])
@pytest.mark.parametrize("count", [1, 4, 36])
def test_cameras_are_upright_and_look_at_the_origin(make, count):
    viewmats, Ks = make(count, fov_degrees=50, distance=3, pixels=200)
    assert viewmats.shape == (count, 4, 4)
    assert Ks.shape == (count, 3, 3)
    assert viewmats.dtype == Ks.dtype == np.float32
    turns = viewmats[:, :3, :3].astype(float)
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-6)
    np.testing.assert_allclose(viewmats[:, :3, 3], np.tile([0, 0, 3], (count, 1)), atol=1e-6)
    assert (turns[:, 1, 1] <= 1e-6).all()  # the camera's y, downward, points down in the world
    np.testing.assert_allclose(turns[:, 0, 1], 0, atol=1e-6)  # and its x is level
    np.testing.assert_allclose(Ks[0], [[214.45, 0, 100], [0, 214.45, 100], [0, 0, 1]], atol=0.01)


def test_views_cover_the_sphere_and_held_out_lie_between():
    seen = eyes(canonical()[0]) / 2.54
    between = eyes(held_out()[0]) / 2.54
    angles = np.degrees(np.arccos(np.clip(seen @ seen.T, -1, 1)))
    np.fill_diagonal(angles, 180)
    assert angles.min() > 20  # an even spread of 36 has about 34 degrees to the next
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert np.degrees(np.arccos((directions @ seen.T).max(axis=1))).max() < 35
    nearest = np.degrees(np.arccos((between @ seen.T).max(axis=1)))
    assert nearest.min() > 8
    assert (np.abs(between[:, 1]) < 0.8).all()


@pytest.mark.parametrize("eye", [[0, 2, 0], [0, -2, 0], [1e-9, 2, 0], [0, 0, 2], [2, 0, 0]])
def test_poles_are_safe(eye):
    viewmat = look_at_origin(np.array(eye, float))
    assert np.isfinite(viewmat).all()
    np.testing.assert_allclose(viewmat @ [0, 0, 0, 1], [0, 0, 2, 1], atol=1e-9)
    assert np.linalg.det(viewmat) == pytest.approx(1)


def test_a_cube_fits_from_every_side():
    """The half diagonal over the sine of half the field of view: no turn of a unit cube is cut off."""
    viewmats, Ks = canonical(pixels=100)
    directions = np.random.default_rng(0).normal(size=(5000, 3))
    sphere = directions / np.linalg.norm(directions, axis=1, keepdims=True) * np.sqrt(0.75)
    in_camera = np.einsum("vab,pb->vpa", viewmats[:, :3, :3], sphere) + viewmats[:, None, :3, 3]
    in_frame = np.einsum("vab,vpb->vpa", Ks, in_camera)
    in_frame = in_frame[..., :2] / in_frame[..., 2:]
    assert in_frame.min() > 0
    assert in_frame.max() < 100


def test_cameras_come_back_from_their_file():
    viewmats, Ks = canonical(5, pixels=64)
    data = cameras_json(viewmats, Ks, 64)
    assert data == cameras_json(viewmats, Ks, 64)
    again = parse_cameras(data)
    np.testing.assert_array_equal(again[0], viewmats)
    np.testing.assert_array_equal(again[1], Ks)
    assert again[2] == 64
    with pytest.raises(ObjectError, match="convention"):
        parse_cameras(data.replace(b"opencv", b"opengl"))
    with pytest.raises(ObjectError, match="shapes"):
        parse_cameras(cameras_json(viewmats[:4], Ks, 64))


def test_the_canonical_cameras_are_those_that_the_section_views_describes():
    settings = Views(count=7, fov_degrees=35.0, distance=3.0, pixels=512)
    for ours, expected in zip(canonical_cameras(settings, 48), canonical(7, 35.0, 3.0, 48), strict=True):
        assert np.array_equal(ours, expected)
