import json

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
    showing,
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


def test_the_canonical_cameras_are_those_that_were_published():
    """Every dataset was drawn from these: another number would need another version of the stages."""
    viewmats, Ks = canonical()
    steps = np.arange(36) + 0.5
    height, azimuth = 1 - steps / 18, steps * 2.399963229728653  # the golden angle, 137.5 degrees
    level = np.sqrt(1 - height**2)
    spiral = 2.54 * np.stack([level * np.cos(azimuth), height, level * np.sin(azimuth)], axis=1)
    np.testing.assert_allclose(eyes(viewmats), spiral, atol=1e-6)
    np.testing.assert_allclose(
        eyes(viewmats)[[0, 1, 17, 35]],
        [
            [0.2154, 2.4694, 0.5541],
            [-0.9103, 2.3283, -0.4492],
            [-1.0171, 0.0706, -2.3264],
            [-0.5530, -2.4694, -0.2181],
        ],
        atol=1e-4,
    )
    up = np.broadcast_to([0.0, 1, 0], (36, 3))
    forward = -spiral / 2.54
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up), axis=1, keepdims=True)
    np.testing.assert_allclose(viewmats[:, :3, :3], np.stack([right, np.cross(forward, right), forward], 1), atol=1e-6)
    np.testing.assert_allclose(viewmats[:, :3, 3], np.tile([0, 0, 2.54], (36, 1)), atol=1e-6)
    np.testing.assert_allclose(Ks, np.tile([[351.6771, 0, 128], [0, 351.6771, 128], [0, 0, 1]], (36, 1, 1)), atol=1e-4)
    assert showing(viewmats) == 13


def test_the_held_out_cameras_are_those_that_were_published():
    viewmats, Ks = held_out()
    steps = np.array([4.0, 13, 22, 31])
    height, azimuth = 1 - steps / 18, steps * 2.399963229728653
    level = np.sqrt(1 - height**2)
    spiral = 2.54 * np.stack([level * np.cos(azimuth), height, level * np.sin(azimuth)], axis=1)
    np.testing.assert_allclose(eyes(viewmats), spiral, atol=1e-6)
    assert np.array_equal(Ks, canonical(4)[1])
    explicit = held_out(4, fov_degrees=40, distance=2.54, pixels=256, among=36)
    assert all(map(np.array_equal, explicit, (viewmats, Ks)))


def test_held_out_cameras_stay_off_the_poles():
    """Of as many as there are canonical ones, the first would stand at the pole itself."""
    steps = np.array([1, 1, 2, 3, 4, 5])
    height, azimuth = 1 - steps / 3, steps * 2.399963229728653
    level = np.sqrt(1 - height**2)
    spiral = np.stack([level * np.cos(azimuth), height, level * np.sin(azimuth)], axis=1)
    np.testing.assert_allclose(eyes(held_out(6, distance=1, among=6)[0]), spiral, atol=1e-6)
    last = held_out(12, distance=1, among=6)[0][-1]
    np.testing.assert_allclose(eyes(last[None]), spiral[-1:], atol=1e-6)


@pytest.mark.parametrize("eye", [[0, 2, 0], [0, -2, 0], [1e-9, 2, 0], [0, 0, 2], [2, 0, 0]])
def test_poles_are_safe(eye):
    viewmat = look_at_origin(np.array(eye, float))
    assert np.isfinite(viewmat).all()
    np.testing.assert_allclose(viewmat @ [0, 0, 0, 1], [0, 0, 2, 1], atol=1e-9)
    assert np.linalg.det(viewmat) == pytest.approx(1)


@pytest.mark.parametrize(
    ("eye", "up"),
    [
        ([0, 2, 0], [0, 0, -1]),
        ([0, -2, 0], [0, 0, 1]),
        ([np.sqrt(1 - 0.9995**2), 0.9995, 0], [0, 0, -1]),  # nearly above: up has next to no direction
        ([np.sqrt(1999), 999, 0], [0, 0, -1]),  # exactly at the bound: 1000 away
        ([0, 0.9985, np.sqrt(1 - 0.9985**2)], [0, np.sqrt(1 - 0.9985**2), -0.9985]),
        ([0, 0, 2], [0, 1, 0]),
    ],
)
def test_what_is_up_in_the_picture(eye, up):
    viewmat = look_at_origin(np.array(eye, float))
    assert viewmat.dtype == np.float64
    np.testing.assert_allclose(-viewmat[1, :3], up, atol=1e-9)  # the picture's y points down


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
    data = cameras_json(viewmats, Ks, np.int64(64))
    finer = viewmats.astype(float) * (1 + 1e-12), Ks.astype(float) * (1 + 1e-12)  # the same numbers in float32
    assert data == cameras_json(*finer, 64)
    assert data.endswith(b"}\n")
    assert json.loads(data) == {
        "convention": "opencv world-to-camera",
        "viewmats": viewmats.astype(float).tolist(),
        "Ks": Ks.astype(float).tolist(),
        "pixels": 64,
    }
    again = parse_cameras(data)
    np.testing.assert_array_equal(again[0], viewmats)
    np.testing.assert_array_equal(again[1], Ks)
    assert again[0].dtype == again[1].dtype == np.float32
    assert again[2] == 64
    with pytest.raises(ObjectError) as error:
        parse_cameras(data.replace(b"opencv", b"opengl"))
    assert str(error.value) == "the cameras have the unknown convention 'opengl world-to-camera'"
    with pytest.raises(ObjectError, match="the unknown convention None"):
        parse_cameras(b"{}")


@pytest.mark.parametrize(
    ("views", "intrinsics"), [((4, 4, 4), (5, 3, 3)), ((5, 3, 4), (5, 3, 3)), ((5, 4, 4), (5, 3, 2)), ((4, 4), (3, 3))]
)
def test_cameras_of_other_shapes_are_refused(views, intrinsics):
    with pytest.raises(ObjectError) as error:
        parse_cameras(cameras_json(np.zeros(views), np.zeros(intrinsics), 64))
    assert str(error.value) == f"the cameras have the shapes {views} and {intrinsics}"


def test_the_view_that_shows_an_object_is_from_the_front_right_and_above():
    eyes = np.array([[0, 0, 1], [0.62, 0.42, 0.66], [1, 0, 0], [0.5, 0.5, 0.7], [-0.62, 0.42, 0.66]])
    lengths = np.array([9, 1, 9, 2, 9])  # a direction, not a distance, is looked for
    viewmats = np.stack([look_at_origin(eye * length) for eye, length in zip(eyes, lengths, strict=True)])
    assert showing(viewmats) == 1
    assert showing(viewmats[2:]) == 1


def test_the_canonical_cameras_are_those_that_the_section_views_describes():
    settings = Views(count=7, fov_degrees=35.0, distance=3.0, pixels=512)
    for ours, expected in zip(canonical_cameras(settings, 48), canonical(7, 35.0, 3.0, 48), strict=True):
        assert np.array_equal(ours, expected)
