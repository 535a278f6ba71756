"""Triangles of polygons, and parts of them, for the formats whose faces have any number of corners and own values."""

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.materials import Material, Part

IS_SPLAT = "it is a Gaussian splat and no mesh; a run reads splats with catalog.source: splats"

_STRAIGHT = 1e-6  # the sine of a turn below which a corner counts as straight
_ROUNDING = 1e-12  # the same within the plane of the polygon, where only rounding makes straight corners turn
# Ear clipping is quadratic. What has not been clipped after so many tests of points becomes a fan, in some seconds.
_BUDGET = 300_000_000
_ROUND = 6_000  # a round costs as much as so many tests, however few it makes


def check_face_count(count: int, limit: int) -> None:
    """Raises ObjectError if there are more triangles than the limit."""
    if count > limit:
        raise ObjectError(f"it has {count} triangles, more than the limit of {limit}")


def check_corners(
    corners: np.ndarray,  # [C] int
    count: int,
) -> None:
    """Raises ObjectError if a corner names a vertex that is none of `count`."""
    if len(corners) and (corners.min() < 0 or corners.max() >= count):
        wrong = corners.max() if corners.max() >= count else corners.min()
        raise ObjectError(f"a face names vertex {int(wrong)}, of which there are {count}")


def part_of(
    vertices: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [T, 3]
    normals: np.ndarray | None,  # [V, 3]
    uv: tuple[np.ndarray | None, np.ndarray | None],  # of vertices [V, 2], of corners [3T, 2]
    colors: tuple[np.ndarray | None, np.ndarray | None],  # of vertices [V, 4], of corners [3T, 4]
    material: Material,
) -> Part:
    """A part whose vertices are the corners of its triangles if these have values of their own."""
    if uv[1] is None and colors[1] is None:
        return Part(vertices, faces, normals, uv[0], colors[0], material)
    order = faces.reshape(-1)

    def of_corners(values: np.ndarray | None, own: np.ndarray | None = None) -> np.ndarray | None:
        return own if values is None else values[order]

    apart = np.arange(len(order)).reshape(-1, 3)
    return Part(vertices[order], apart, of_corners(normals), of_corners(*uv), of_corners(*colors), material)


def triangulate(
    vertices: np.ndarray,  # [V, 3] float64
    corners: np.ndarray,  # [C] int: the vertex of each corner, polygon after polygon
    sizes: np.ndarray,  # [P] int: corners of each polygon
) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [T, 3] as positions in `corners`, and the polygon [T] of each, both in the order of the polygons.

    A polygon of n corners has n - 2 triangles, wound like itself; one of under three corners has none. Convex polygons
    are fans about their first corner. Concave ones are cut along diagonals that lie inside. Polygons that cross
    themselves, or are too large to be cut in time, are covered roughly. Every corner must name a vertex.
    """
    sizes = np.asarray(sizes, np.int64)
    if (sizes == 3).all():
        return np.arange(3 * len(sizes)).reshape(-1, 3), np.arange(len(sizes))
    starts = np.cumsum(sizes) - sizes
    counts = (sizes - 2).clip(0)
    polygon = np.repeat(np.arange(len(sizes)), counts)
    firsts = np.cumsum(counts) - counts  # of each polygon's triangles
    along = np.arange(len(polygon)) - firsts[polygon]
    triangles = starts[polygon, None] + np.stack([np.zeros_like(along), along + 1, along + 2], axis=1)
    with np.errstate(all="ignore"):  # coordinates may be nan or inf, which the caller refuses later
        quads = np.flatnonzero(sizes == 4)
        bent = quads[_other_diagonal(vertices[corners[starts[quads, None] + np.arange(4)]])]
        triangles[firsts[bent]] = starts[bent, None] + (0, 1, 3)
        triangles[firsts[bent] + 1] = starts[bent, None] + (1, 2, 3)
        concave = np.flatnonzero(sizes > 4)
        concave = concave[_concave(vertices, corners, starts[concave], sizes[concave])]
        budget = _BUDGET
        # Polygons of about the same size are clipped together, the small ones first.
        size_class = np.ceil(np.log2(sizes[concave]))
        for each in np.unique(size_class):
            chosen = concave[size_class == each]
            points = _flattened(vertices, corners, starts[chosen], sizes[chosen])
            clipped, done, budget = _clipped(points, sizes[chosen], budget)
            for row, number in zip(clipped[done], chosen[done], strict=True):
                count = counts[number]
                triangles[firsts[number] : firsts[number] + count] = starts[number] + row[:count]
    return triangles, polygon


def _other_diagonal(
    quads: np.ndarray,  # [Q, 4, 3]
) -> np.ndarray:
    """Numbers of the quads in which the diagonal of corners 0 and 2 lies outside, and that of 1 and 3 does not."""
    b, c, d = (quads[:, k] - quads[:, 0] for k in (1, 2, 3))
    first, second = _product(b, c), _product(c, d)
    usual = np.einsum("qi,qi->q", first, second)
    outside = np.flatnonzero(usual < 0)
    b, c, d = b[outside], c[outside], d[outside]
    other = np.einsum("qi,qi->q", _product(b, d), _product(c - b, d - b))
    return outside[other > usual[outside]]


def _product(
    a: np.ndarray,  # [N, 3]
    b: np.ndarray,  # [N, 3]
) -> np.ndarray:
    """The cross product [N, 3], in half of numpy's time."""
    x, y, z = a.T
    u, v, w = b.T
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=1)


def _concave(
    vertices: np.ndarray,  # [V, 3]
    corners: np.ndarray,  # [C]
    starts: np.ndarray,  # [P]
    sizes: np.ndarray,  # [P]
) -> np.ndarray:
    """Bool [P]: polygons that are not certainly convex, but have an area."""
    if not len(sizes):
        return np.zeros(0, bool)
    ends = np.cumsum(sizes)
    begins = ends - sizes
    polygon = np.repeat(np.arange(len(sizes)), sizes)
    points = vertices[corners[np.arange(ends[-1]) + (starts - begins)[polygon]]]
    points = points - points[begins][polygon]
    following = np.arange(1, ends[-1] + 1)
    following[ends - 1] = begins
    normals = np.add.reduceat(_product(points, points[following]), begins)
    edges = points[following] - points
    lengths = np.linalg.norm(edges, axis=1)
    turns = _product(edges, edges[following])
    turned = np.einsum("ci,ci->c", turns, normals[polygon])
    scale = lengths * lengths[following] * np.linalg.norm(normals, axis=1)[polygon]
    # A spike that turns right round has no area, and a fan would give it one.
    spikes = (turned <= scale * _STRAIGHT) & (np.einsum("ci,ci->c", edges, edges[following]) < 0)
    bad = (turned < -scale * _STRAIGHT) | spikes
    return np.logical_or.reduceat(bad, begins) & (np.abs(normals).max(axis=1) > 0)


def _flattened(
    vertices: np.ndarray,  # [V, 3]
    corners: np.ndarray,  # [C]
    starts: np.ndarray,  # [P]
    sizes: np.ndarray,  # [P]
) -> np.ndarray:
    """The polygons in their planes: [P, N, 2], anticlockwise, the rest filled with their first corner.

    The axis that is most across the polygon is left out, which keeps what lies inside of what.
    """
    columns = np.arange(sizes.max())
    places = starts[:, None] + np.where(columns < sizes[:, None], columns, 0)
    points = vertices[corners[places]]
    points = points - points[:, :1]
    normals = np.cross(points, np.roll(points, -1, axis=1)).sum(axis=1)
    axis = np.abs(normals).argmax(axis=1)
    rows = np.arange(len(sizes))
    turned = normals[rows, axis] < 0
    first = np.where(turned, (axis + 2) % 3, (axis + 1) % 3)
    second = np.where(turned, (axis + 1) % 3, (axis + 2) % 3)
    return np.stack([points[rows, :, first], points[rows, :, second]], axis=2)


def _cross(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Twice the area [...] of the triangles abc, [..., 2] each; positive if anticlockwise."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _straight(
    bends: np.ndarray,  # [...], twice the areas of the corners' triangles
    one: np.ndarray,  # [..., 2], a side
    other: np.ndarray,  # [..., 2], the other side
) -> np.ndarray:
    """Bool [...]: corners that do not turn, or turn right round."""
    return np.abs(bends) <= _ROUNDING * np.abs(one).max(axis=-1) * np.abs(other).max(axis=-1)


def _clipped(
    points: np.ndarray,  # [K, N, 2], anticlockwise
    sizes: np.ndarray,  # [K]
    budget: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Ear clipping of K polygons at once: in each round every polygon looks at one of its corners.

    Returns the triangles [K, N - 2, 3] as numbers of corners, which polygons [K] were finished, and the budget left.
    """
    count, width = points.shape[:2]
    triangles = np.zeros((count, width - 2, 3), np.int64)
    after = np.tile(np.arange(1, width + 1), (count, 1))
    before = after - 2
    everyone = np.arange(count)
    after[everyone, sizes - 1], before[:, 0] = 0, sizes - 1

    def turn(rows: np.ndarray, middle: np.ndarray) -> np.ndarray:
        return _cross(points[rows, before[rows, middle]], points[rows, middle], points[rows, after[rows, middle]])

    own = np.arange(width) < sizes[:, None]
    behind = points[everyone[:, None], np.where(own, before, 0)] - points
    ahead = points[everyone[:, None], np.where(own, after, 0)] - points
    bends = ahead[..., 0] * behind[..., 1] - ahead[..., 1] * behind[..., 0]
    # Only a corner that is not convex can lie in an ear. It leaves this list by becoming nan when it gets convex.
    blocking = (bends <= 0) & own
    slots = np.cumsum(blocking, axis=1) - 1
    blockers = np.full((count, max(int(blocking.sum(axis=1).max()), 1), 2), np.nan)
    rows, columns = np.nonzero(blocking)
    blockers[rows, slots[rows, columns]] = points[rows, columns]

    left = sizes.copy()
    here = np.zeros(count, np.int64)
    # Spikes are removed in a lap of their own, since an ear that is cut beside one may cover what is outside.
    spikes = own & _straight(bends, ahead, behind) & ((ahead * behind).sum(axis=2) > 0)
    misses = np.where(spikes.any(axis=1), -sizes, 0)  # since the last ear; negative in that lap
    active, rounds = everyone, 0
    while len(active) and budget > 0:
        rounds += 1
        b = here[active]
        a, c = before[active, b], after[active, b]
        pa, pb, pc = points[active, a], points[active, b], points[active, c]
        bend = _cross(pa, pb, pc)
        # A straight corner can always go. If no corner is an ear, the polygon crosses itself, and any may go; if that
        # happens again and again, all go.
        ear = (
            _straight(bend, pb - pa, pc - pb)
            | (left[active] == 3)
            | (misses[active] > left[active])
            | (rounds > 8 * width)
        )
        maybe = np.flatnonzero((bend > 0) & (misses[active] >= 0) & ~ear)
        if len(maybe):
            tested = blockers[active[maybe]]
            ta, tb, tc = pa[maybe, None], pb[maybe, None], pc[maybe, None]
            # A point that touches a side of the polygon does no harm; one on the new diagonal does.
            inside = (_cross(ta, tb, tested) > 0) & (_cross(tb, tc, tested) > 0) & (_cross(tc, ta, tested) >= 0)
            ear[maybe] = ~inside.any(axis=1)
            budget -= tested[..., 0].size
        budget -= _ROUND
        here[active], misses[active] = (
            np.where(ear, a, c),
            np.where(ear, np.minimum(misses[active], 0), misses[active] + 1),
        )
        cut, a, b, c = active[ear], a[ear], b[ear], c[ear]
        triangles[cut, sizes[cut] - left[cut]] = np.stack([a, b, c], axis=1)
        after[cut, a], before[cut, c] = c, a
        left[cut] -= 1
        blockers[cut[blocking[cut, b]], slots[cut, b][blocking[cut, b]]] = np.nan
        for corner in (a, c):
            freed = blocking[cut, corner] & (turn(cut, corner) > 0)
            blocking[cut[freed], corner[freed]] = False
            blockers[cut[freed], slots[cut, corner][freed]] = np.nan
        active = active[left[active] > 2]
    return triangles, left == 2, budget
