"""Closed meshes from a few constructions: rings, lathe, extrude, tube, rounded boxes. Y is up, in metres.

What leaves is rounded (`Mesh.corners`), so that a last bit between two machines' sines does not reach a file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Profile = Sequence[tuple[float, float]]
Path = Sequence[Sequence[float] | np.ndarray] | np.ndarray  # [K, D]
CREASE_DEGREES = 42.0  # faces that meet flatter than this are shaded as one surface


@dataclass(frozen=True)
class Mesh:
    """Triangles whose winding faces outward; each face has its own texture coordinates."""

    points: np.ndarray  # [V, 3] float64
    faces: np.ndarray  # [F, 3] int64
    uv: np.ndarray  # [F, 3, 2] float64, v upward
    colors: np.ndarray | None = None  # [V, 3] sRGB in [0, 1]

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Mesh":
        return replace(self, points=self.points + np.array([x, y, z]))

    def turn(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> "Mesh":
        """Rotates about the world's axes by degrees: about x, then y, then z."""
        points = self.points
        for axis, degrees in enumerate((x, y, z)):
            if degrees:
                cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
                one, two = (axis + 1) % 3, (axis + 2) % 3
                turned = points.copy()
                turned[:, one] = cos * points[:, one] - sin * points[:, two]
                turned[:, two] = sin * points[:, one] + cos * points[:, two]
                points = turned
        return replace(self, points=points)

    def scale(self, x: float = 1.0, y: float = 1.0, z: float = 1.0) -> "Mesh":
        """Stretches by positive factors."""
        return replace(self, points=self.points * np.array([x, y, z]))

    def mirror(self) -> "Mesh":
        """The reflection in the plane x = 0, winding turned round so that it still faces outward."""
        return replace(
            self,
            points=self.points * np.array([-1.0, 1.0, 1.0]),
            faces=self.faces[:, ::-1],
            uv=self.uv[:, ::-1],
        )

    def warp(self, change: Callable[[np.ndarray], np.ndarray]) -> "Mesh":
        """Moves every point: `change` takes and gives [V, 3], and must not turn the mesh inside out."""
        return replace(self, points=change(self.points.copy()))

    def tint(self, color_at: Callable[[np.ndarray], np.ndarray]) -> "Mesh":
        """Colours every point: `color_at` takes points [V, 3] and gives sRGB [V, 3] in [0, 1]."""
        return replace(self, colors=np.clip(color_at(self.points), 0.0, 1.0))

    def tile(self, u: float, v: float) -> "Mesh":
        """Repeats the texture u times round and v times along."""
        return replace(self, uv=self.uv * np.array([u, v]))

    def project(self, size: float, grain: str = "y") -> "Mesh":
        """Texture coordinates from positions, one repeat in `size` metres, v along the axis `grain` if it can."""
        corners = self.points[self.faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        away = np.argmax(np.abs(normals).round(9), axis=1)
        # For each axis that a face looks along: the axes that become u and v.
        along = "xyz".index(grain)
        across = [[axis for axis in range(3) if axis != facing] for facing in range(3)]
        pairs = np.array([sorted(pair, key=lambda axis: axis == along) for pair in across])[away]
        uv = np.take_along_axis(corners, pairs[:, None, :].repeat(3, axis=1), axis=2)
        return replace(self, uv=uv / size)

    def corners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
        """What a file holds: points [N, 3], unit normals [N, 3], uv [N, 2], colours [N, 3] or None, faces [F, 3].

        Points are split where normals or texture coordinates part; faces without area are left out.
        """
        points = self.points.round(5) + 0.0  # no negative zeros
        first, welded = unique_rows(np.rint(points * 1e5))
        faces = welded[self.faces]
        real = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
        faces, uv = faces[real], self.uv[real].reshape(-1, 2).round(4) + 0.0
        normals = corner_normals(points[first], faces).round(3) + 0.0
        kept, corner = unique_rows(
            np.concatenate([faces.reshape(-1, 1), np.rint(normals * 1e3), np.rint(uv * 1e4)], axis=1)
        )
        vertex = first[faces.reshape(-1)[kept]]
        colors = None if self.colors is None else self.colors[vertex].round(4)
        normals = normals[kept] / np.sqrt((normals[kept] ** 2).sum(axis=1, keepdims=True))
        return points[vertex], normals, uv[kept], colors, corner.reshape(-1, 3)

    def volume(self) -> float:
        """The signed volume: positive where a closed mesh faces outward."""
        a, b, c = (self.points[self.faces[:, corner]] for corner in range(3))
        return float((a * np.cross(b, c)).sum() / 6)


def unique_rows(
    rows: np.ndarray,  # [N, C]
) -> tuple[np.ndarray, np.ndarray]:  # [U], [N]
    """Where each different row first stands, in sorted order, and which of them each row is."""
    order = np.lexsort(rows.T)
    ordered = rows[order]
    fresh = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    which = np.empty(len(rows), dtype=np.int64)
    which[order] = np.cumsum(fresh) - 1
    return order[fresh], which


def corner_normals(
    points: np.ndarray,  # [V, 3]
    faces: np.ndarray,  # [F, 3]
) -> np.ndarray:  # [3 F, 3]
    """Unit normals of the faces' corners: the mean by area over the faces round the point without a crease."""
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    area = np.cross(b - a, c - a)
    unit = area / np.maximum(np.sqrt((area**2).sum(axis=1, keepdims=True)), 1e-12)
    vertex = faces.reshape(-1)
    face = np.arange(len(faces)).repeat(3)
    by_vertex = np.argsort(vertex, kind="stable")
    count = np.bincount(vertex, minlength=len(points))
    start = np.cumsum(count) - count
    # Every pair of corners at one point: `one` gathers the face of `other`.
    pairs = count[vertex]
    one = np.arange(len(vertex)).repeat(pairs)
    step = np.arange(len(one)) - (np.cumsum(pairs) - pairs).repeat(pairs)
    other = face[by_vertex[start[vertex[one]] + step]]
    smooth = (unit[face[one]] * unit[other]).sum(axis=1).round(6) >= np.cos(np.radians(CREASE_DEGREES))
    summed = np.stack(
        [np.bincount(one[smooth], area[other[smooth], axis], minlength=len(vertex)) for axis in range(3)],
        axis=1,
    )
    length = np.sqrt((summed**2).sum(axis=1, keepdims=True))
    return np.where(length > 1e-12, summed / np.maximum(length, 1e-12), unit[face])


def join(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of several: all with colours or all without."""
    offsets = np.cumsum([0] + [len(mesh.points) for mesh in meshes])
    return Mesh(
        np.concatenate([mesh.points for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets[:-1], strict=True)]),
        np.concatenate([mesh.uv for mesh in meshes]),
        None if meshes[0].colors is None else np.concatenate([mesh.colors for mesh in meshes]),
    )


def rings(
    points: np.ndarray,  # [R, S, 3]
    caps: np.ndarray | None = None,  # [T, 3], triangles over the S points of a ring; none: a fan from the middle
    loop: bool = False,
) -> Mesh:
    """A skin over R closed rings of S points, closed by caps, or by the last ring's joining the first (`loop`).

    u runs once round a ring, v once along the rings by mean length. Winding is set by the signed volume.
    """
    count, sides = points.shape[:2]
    rows = np.arange(count if loop else count - 1)[:, None]
    column = np.arange(sides)[None]
    below, above = rows * sides, (rows + 1) % count * sides
    after = (column + 1) % sides
    quad = np.stack([below + column, below + after, above + after, above + column], axis=-1).reshape(-1, 4)
    length = np.sqrt(((np.roll(points, -1, axis=0) - points) ** 2).sum(axis=2)).mean(axis=1)
    along = np.concatenate([[0.0], np.cumsum(length if loop else length[:-1])])
    along /= max(along[-1], 1e-12)
    u0, u1 = np.broadcast_arrays(column / sides, (column + 1) / sides)
    u0, u1 = (np.tile(u, (len(rows), 1)).reshape(-1) for u in (u0, u1))
    v0, v1 = along[:-1].repeat(sides), along[1:].repeat(sides)
    uv = np.stack([np.stack(pair, axis=-1) for pair in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))], axis=1)
    faces = [quad[:, [0, 1, 2]], quad[:, [0, 2, 3]]]
    uvs = [uv[:, [0, 1, 2]], uv[:, [0, 2, 3]]]
    flat = points.reshape(-1, 3)
    if not loop:
        for ring, flip in ((0, True), (count - 1, False)):
            if caps is None:
                middle = np.full(sides, len(flat))
                flat = np.concatenate([flat, points[ring].mean(axis=0, keepdims=True)])
                cap = np.stack([middle, ring * sides + np.arange(sides), ring * sides + after[0]], axis=1)
            else:
                cap = caps + ring * sides
            faces.append(cap[:, ::-1] if flip else cap)
            uvs.append(np.full((len(cap), 3, 2), (0.5, float(ring > 0))))
    mesh = Mesh(flat, np.concatenate(faces), np.concatenate(uvs))
    if mesh.volume() < 0:
        mesh = replace(mesh, faces=mesh.faces[:, ::-1], uv=mesh.uv[:, ::-1])
    return mesh


def circle(sides: int, turn: float = 0.0) -> np.ndarray:  # [S, 2]
    angle = 2 * np.pi * (np.arange(sides) + turn) / sides
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def curve(points: Path, steps: int) -> np.ndarray:  # [steps + 1, D]
    """A smooth line through the points: Catmull and Rom's spline, `steps` pieces in all."""
    knots = np.asarray(points, dtype=float)
    knots = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0, len(points) - 1, steps + 1)
    piece = np.minimum(t.astype(int), len(points) - 2)
    s = (t - piece)[:, None]
    a, b, c, d = (knots[piece + offset] for offset in range(4))
    return 0.5 * (2 * b + (c - a) * s + (2 * a - 5 * b + 4 * c - d) * s**2 + (3 * b - a - 3 * c + d) * s**3)


def smooth(profile: Profile, steps: int) -> list[tuple[float, float]]:
    """A profile for `lathe` through the given (radius, height) points, never left of the axis."""
    return [(max(float(r), 0.0), float(y)) for r, y in curve(profile, steps)]


def lathe(profile: Profile, sides: int = 28, loop: bool = False) -> Mesh:
    """Turns (radius, height) about the Y axis: a body from the axis to the axis, or a ring if the profile loops.

    A profile that comes back (a cup's inside) makes a wall; an end off the axis gets a flat cap.
    """
    radius, height = np.asarray(profile, dtype=float).T
    around = circle(sides)
    shape = (len(radius), sides)
    return rings(
        np.stack(
            [
                -radius[:, None] * around[:, 0],
                np.broadcast_to(height[:, None], shape),
                radius[:, None] * around[:, 1],
            ],
            axis=-1,
        ),
        loop=loop,
    )


def shell(profile: Profile, thickness: float, sides: int = 28) -> Mesh:
    """A lathed sheet of a thickness, open at both ends: lampshades, canopies."""
    outer = np.asarray(profile, dtype=float)
    along = np.gradient(outer, axis=0)
    along /= np.sqrt((along**2).sum(axis=1, keepdims=True))
    inner = outer + thickness * np.stack([-along[:, 1], along[:, 0]], axis=1)
    line = np.concatenate([outer, inner[::-1]])
    line[:, 0] = np.maximum(line[:, 0], 0.0)
    around = circle(sides)
    points = np.stack(
        [-line[:, :1] * around[:, 0], np.tile(line[:, 1:], (1, sides)), line[:, :1] * around[:, 1]], axis=-1
    )
    return rings(points, loop=True).tile(1, 2)  # v reaches 1 at the outer side's end


def box(x: float, y: float, z: float, bevel: float = 0.0) -> Mesh:
    """A box of these sides with rounded edges, its middle at the origin. Each face shows the texture once."""
    half = np.array([x, y, z]) / 2
    bevel = min(bevel, 0.45 * min(x, y, z)) or 0.04 * min(x, y, z)
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=float)
    # A corner has three points, one in each of its faces.
    points = np.concatenate([signs * (half - bevel * (np.arange(3) != axis)) for axis in range(3)])

    def corner(axis: int, *sign: float) -> int:
        i, j, k = sign
        return axis * 8 + 4 * (i > 0) + 2 * (j > 0) + (k > 0)

    polygons = []
    for axis in range(3):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        for side in (-1, 1):
            square = []
            for p, q in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                sign = [0.0] * 3
                sign[axis], sign[one], sign[two] = side, p, q
                square.append(corner(axis, *sign))
            polygons.append(square)
        for p, q in ((-1, -1), (-1, 1), (1, -1), (1, 1)):  # the edges along `axis`
            low, high = [0.0] * 3, [0.0] * 3
            low[one] = high[one] = p
            low[two] = high[two] = q
            low[axis], high[axis] = -1, 1
            polygons.append([corner(one, *low), corner(one, *high), corner(two, *high), corner(two, *low)])
    polygons += [[corner(axis, *sign) for axis in range(3)] for sign in signs]
    faces = np.array([[p[0], p[i], p[i + 1]] for p in polygons for i in range(1, len(p) - 1)])
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * (a + b + c)).sum(axis=1) < 0
    faces[inward] = faces[inward][:, ::-1]
    # The texture upright on the four walls, seen from the front on the top and the bottom.
    corners = points[faces]
    facing = np.argmax(np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])), axis=1)
    outward = np.sign(corners.mean(axis=1)[np.arange(len(faces)), facing])[:, None]
    unit = corners / (2 * half) + 0.5
    u = np.choose(
        facing[:, None],
        [
            0.5 - outward * (unit[:, :, 2] - 0.5),
            unit[:, :, 0],
            0.5 + outward * (unit[:, :, 0] - 0.5),
        ],
    )
    v = np.where((facing == 1)[:, None], 0.5 - outward * (unit[:, :, 2] - 0.5), unit[:, :, 1])
    return Mesh(points, faces, np.stack([u, v], axis=-1))


def blob(x: float, y: float, z: float, roundness: float = 1.0, sides: int = 20, rows: int = 12) -> Mesh:
    """A superellipsoid of these sizes: roundness 1 is an ellipsoid, towards 0 a cushion and then a box."""

    def power(value: np.ndarray) -> np.ndarray:
        return np.sign(value) * np.abs(value) ** roundness

    latitude = np.linspace(-np.pi / 2, np.pi / 2, rows + 1)
    around = power(circle(sides, 0.5))
    ring, height = power(np.cos(latitude).round(12)), power(np.sin(latitude).round(12))
    points = np.stack(
        [
            -ring[:, None] * around[:, 0] * x / 2,
            np.tile(height[:, None] * y / 2, (1, sides)),
            ring[:, None] * around[:, 1] * z / 2,
        ],
        axis=-1,
    )
    return rings(points)


def tube(path: Path, radius: float | Sequence[float] | np.ndarray, sides: int = 12) -> Mesh:
    """A pipe along a path of points [K, 3] with one radius, or one for each point."""
    line = np.asarray(path, dtype=float)
    along = np.gradient(line, axis=0)
    along /= np.sqrt((along**2).sum(axis=1, keepdims=True))
    start = np.eye(3)[np.argmin(np.abs(along[0]).round(6))]
    frames = []
    for direction in along:
        start = start - (start * direction).sum() * direction
        start = start / np.sqrt((start**2).sum())
        frames.append(np.stack([start, np.cross(direction, start)]))
    reach = np.broadcast_to(np.asarray(radius, dtype=float), len(line))
    around = circle(sides)
    ring = (around[None, :, :, None] * np.stack(frames)[:, None]).sum(axis=2)
    return rings(line[:, None] + reach[:, None, None] * ring)


def rod(start: Sequence[float], end: Sequence[float], radius: float, tip: float | None = None, sides: int = 12) -> Mesh:
    """A straight pipe, narrowing to `tip`."""
    return tube([start, end], [radius, radius if tip is None else tip], sides)


def sphere(radius: float, sides: int = 20) -> Mesh:
    return blob(2 * radius, 2 * radius, 2 * radius, sides=sides, rows=max(sides // 2, 4))


def extrude(outline: Profile | np.ndarray, depth: float, bevel: float = 0.0) -> Mesh:
    """A simple polygon in x and y drawn out along z, the middle at z = 0, its rims rounded by `bevel`."""
    shape = np.asarray(outline, dtype=float)
    if cross(shape, np.roll(shape, -1, axis=0)).sum() < 0:
        shape = shape[::-1]
    caps = triangulate(shape)
    half = depth / 2
    if bevel:
        angle = np.radians([0.0, 45.0, 90.0])
        inset, at = bevel * (1 - np.sin(angle)), half - bevel + bevel * np.cos(angle)
        levels = [(i, -z) for i, z in zip(inset, at, strict=True)]
        levels += [(i, z) for i, z in zip(inset[::-1], at[::-1], strict=True)]
    else:
        levels = [(0.0, -half), (0.0, half)]
    before, after = shape - np.roll(shape, 1, axis=0), np.roll(shape, -1, axis=0) - shape
    before, after = (side / np.sqrt((side**2).sum(axis=1, keepdims=True)) for side in (before, after))
    normal = np.stack([-(before + after)[:, 1], (before + after)[:, 0]], axis=1)
    normal /= np.maximum((normal**2).sum(axis=1, keepdims=True) / 2, 0.5)  # the mitre, bounded at sharp corners
    layers = [np.column_stack([shape + inset * normal, np.full(len(shape), z)]) for inset, z in levels]
    return rings(np.stack(layers), caps)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def triangulate(shape: np.ndarray) -> np.ndarray:  # [S, 2] counter-clockwise -> [S - 2, 3]
    """Ear clipping (Meisters 1975), going round, so that few slivers share a point."""
    left = list(range(len(shape)))
    triangles = []
    at, tried = 0, 0
    while len(left) > 3:
        at %= len(left)
        i, j, k = left[at - 1], left[at], left[(at + 1) % len(left)]
        a, b, c = shape[i], shape[j], shape[k]
        rest = shape[[v for v in left if v not in (i, j, k)]]
        inside = (cross(b - a, rest - a) > 0) & (cross(c - b, rest - b) > 0) & (cross(a - c, rest - c) > 0)
        # After a whole round without an ear only points in one line are left: any three will do.
        if (cross(b - a, c - a) > 1e-12 and not inside.any()) or tried > len(left):
            triangles.append((i, j, k))
            del left[at]
            tried = 0
        else:
            tried += 1
        at += 1
    return np.array([*triangles, tuple(left)])
