import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes import polygons
from clipgs.meshes.polygons import check_corners, triangulate

U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
KEYHOLE = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]  # a frame, cut open once
SPIKE = [(0, 0), (2, 0), (2, 1), (4, 1), (2, 1), (2, 2), (0, 2)]


def star(count: int, radius: float = 0.3) -> list[tuple[float, float]]:
    angles = np.arange(count) / count * 2 * np.pi
    radii = np.where(np.arange(count) % 2, 1, radius)
    return list(zip(np.cos(angles) * radii, np.sin(angles) * radii, strict=True))


def spiral(count: int) -> list[tuple[float, float]]:
    angles = np.linspace(0, 6 * np.pi, count // 2)
    arms = [np.stack([np.cos(angles), np.sin(angles)], axis=1) * (r + angles)[:, None] for r in (1, 3)]
    return [*map(tuple, arms[0]), *map(tuple, arms[1][::-1])]


def enclosed(outline) -> float:
    x, y = np.transpose(outline)
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def in_space(outline, tilt: int) -> np.ndarray:
    """The outline in a plane of any direction, far from the origin."""
    axes = np.linalg.qr(np.random.default_rng(tilt).normal(size=(3, 3)))[0]
    return np.column_stack([outline, np.full(len(outline), 100.0)]) @ axes


def areas(vertices, corners, triangles) -> np.ndarray:
    a, b, c = (vertices[corners[triangles[:, k]]] for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("outline", "area"),
    [
        ([(0, 0), (1, 0), (0, 1)], 0.5),
        ([(0, 0), (1, 0), (1, 1), (0, 1)], 1),
        ([(0, 0), (4, 0), (1, 1), (0, 4)], 4),  # the quad's corner 2 is the concave one
        ([(0, 0), (1, 0), (2, 0), (2, 2), (1, 2), (0, 2)], 4),  # straight corners
        (U, 7),
        (KEYHOLE, 12),
        (SPIKE, 4),
        (star(400, 0.1), None),
        (spiral(60), None),
    ],
)
def test_the_area_is_exact_from_every_first_corner(outline, area, backwards):
    for first in range(min(len(outline), 10)):
        turned = (outline[first:] + outline[:first])[:: -1 if backwards else 1]
        vertices, corners = in_space(turned, first), np.arange(len(outline))
        triangles, polygon = triangulate(vertices, corners, np.array([len(outline)]))
        assert (len(triangles), polygon.max()) == (len(outline) - 2, 0)
        assert areas(vertices, corners, triangles).sum() == pytest.approx(area or enclosed(outline), rel=1e-9)
        # All triangles are wound like the polygon: the sum of their directed areas is as long as that of their areas.
        a, b, c = (vertices[triangles[:, k]] for k in range(3))
        directed = np.linalg.norm(np.cross(b - a, c - a).sum(axis=0)) / 2
        assert directed == pytest.approx(area or enclosed(outline), rel=1e-9)


def test_mixed_polygons_keep_their_order():
    outlines = [U, [(0, 0), (1, 0), (0, 1)], [(0, 0)], U[:4], [], star(6), [(0, 0), (4, 0), (1, 1), (0, 4)], KEYHOLE]
    vertices = np.concatenate([in_space(outline or np.zeros((0, 2)), 5) for outline in outlines])
    order = np.random.default_rng(0).permutation(len(vertices))  # corners are not the vertices' order
    corners = np.argsort(order)
    triangles, polygon = triangulate(vertices[order], corners, np.array([len(outline) for outline in outlines]))
    assert polygon.tolist() == [0] * 6 + [1] + [3] * 2 + [5] * 4 + [6] * 2 + [7] * 8
    found = np.bincount(polygon, areas(vertices[order], corners, triangles), minlength=8)
    np.testing.assert_allclose(found, [7, 0.5, 0, 6, 0, enclosed(star(6)), 4, 12], rtol=1e-9)


def test_bad_polygons_end():
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(400, 3))  # crosses itself and is in no plane
    vertices[7], vertices[8] = np.nan, np.inf
    sizes = np.array([5, 0, 1, 2, 3, 4, 285, 100])
    triangles, polygon = triangulate(vertices, np.arange(400), sizes)
    assert np.bincount(polygon).tolist() == [3, 0, 0, 0, 1, 2, 283, 98]
    assert (triangles < 400).all()
    assert len(triangulate(np.zeros((1, 3)), np.zeros(50, int), np.array([50]))[0]) == 48
    assert len(triangulate(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int))[0]) == 0


def test_what_would_take_too_long_becomes_a_fan(monkeypatch):
    monkeypatch.setattr(polygons, "_BUDGET", 50 * polygons._ROUND)
    outline = [*star(200), *U]
    triangles, polygon = triangulate(in_space(outline, 0), np.arange(208), np.array([200, 8]))
    np.testing.assert_array_equal(triangles[:198, 0], 0)
    assert areas(in_space(outline, 0), np.arange(208), triangles[polygon == 1]).sum() == pytest.approx(7)  # small first


@pytest.mark.parametrize(("corners", "wrong"), [([0, 1, 4], 4), ([0, -1, 3], -1)])
def test_corners_that_name_no_vertex(corners, wrong):
    with pytest.raises(ObjectError, match=f"names vertex {wrong}, of which there are 4"):
        check_corners(np.array(corners), 4)
