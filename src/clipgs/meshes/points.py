"""Points on the surface of a mesh."""

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import Part, surface_rgba

# A point is left out with the chance that light goes through; after this many rounds the surface is as good
# as nothing.
_ROUNDS = 20


def sample(
    mesh: Mesh,
    count: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points drawn evenly by area, in the mesh's frame.

    Returns xyz [P, 3], rgb [P, 3] (sRGB in [0, 1], without lighting) and normals [P, 3] of the triangles they
    lie in (unit, as the file winds them: Gaussians started as discs must lie in the surface, which a smoothed
    normal leaves), float32. P is `count`. Points of a surface of opacity alpha are kept with probability
    alpha: what is invisible has no points. The same mesh, count and seed give the same bytes.

    Raises:
        ObjectError: the surface is fully transparent.
    """
    rng = np.random.default_rng(seed)
    corners = [part.vertices[part.faces].astype(np.float64) for part in mesh.parts]
    crosses = np.concatenate([np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in corners])
    doubled_areas = np.linalg.norm(crosses, axis=1)
    edges = np.cumsum(doubled_areas)
    first_faces = np.cumsum([0, *(len(part.faces) for part in mesh.parts)])
    drawn: list[tuple[np.ndarray, ...]] = []  # xyz, rgb, normals
    missing = count
    for _ in range(_ROUNDS):
        # `right` skips triangles without area, which hold no interval.
        faces = np.searchsorted(edges, rng.random(missing) * edges[-1], side="right").clip(max=len(edges) - 1)
        barycentric = _uniform_in_triangle(rng, missing)
        xyz, rgba = np.empty((missing, 3)), np.empty((missing, 4), np.float32)
        for index, part in enumerate(mesh.parts):
            inside = (faces >= first_faces[index]) & (faces < first_faces[index + 1])
            xyz[inside], rgba[inside] = _points_of(part, faces[inside] - first_faces[index], barycentric[inside])
        seen = rng.random(missing) < rgba[:, 3]
        normals = crosses[faces[seen]] / doubled_areas[faces[seen], None]
        drawn.append((xyz[seen], rgba[seen, :3], normals))
        missing -= int(seen.sum())
        if missing == 0:
            break
    else:
        drawn = _repeated(drawn, count)
    all_xyz, all_rgb, all_normals = (np.concatenate(values).astype(np.float32) for values in zip(*drawn, strict=True))
    return all_xyz, all_rgb, all_normals


def _repeated(drawn: list[tuple[np.ndarray, ...]], count: int) -> list[tuple[np.ndarray, ...]]:
    """A nearly transparent surface: the points that were found, as often as needed."""
    found = [np.concatenate(values) for values in zip(*drawn, strict=True)]
    if len(found[0]) == 0:
        raise ObjectError("it is invisible: every surface is transparent")
    return [tuple(values[np.arange(count) % len(values)] for values in found)]


def _uniform_in_triangle(rng: np.random.Generator, count: int) -> np.ndarray:
    """Barycentric coordinates [P, 3], even by area: the square's half beyond the diagonal is folded back."""
    u, v = rng.random((2, count))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    return np.stack([1 - u - v, u, v], axis=1)


def _points_of(part: Part, faces: np.ndarray, barycentric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    corners = part.vertices[part.faces[faces]].astype(np.float64)
    return np.einsum("pcd,pc->pd", corners, barycentric), surface_rgba(part, faces, barycentric)
