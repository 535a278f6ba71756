"""Points on the surface of a mesh."""

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import surface_rgba

_ROUNDS = 20  # of redrawing rejected points; a surface that still rejects points is nearly transparent


def sample(mesh: Mesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points drawn uniformly by area, in the mesh's frame.

    Returns xyz [P, 3], rgb [P, 3] (sRGB in [0, 1], without lighting) and normals [P, 3], float32; P is `count`. Each
    normal is that of the point's triangle (unit, by the winding in the file): Gaussians start as discs in the surface,
    and smoothed normals would tilt them. A point on a surface of opacity alpha is kept with probability alpha. The same
    mesh, count and seed give the same bytes.

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
        # `right` skips triangles without area.
        faces = np.searchsorted(edges, rng.random(missing) * edges[-1], side="right").clip(max=len(edges) - 1)
        barycentric = _uniform_in_triangle(rng, missing)
        xyz, rgba = np.empty((missing, 3)), np.empty((missing, 4), np.float32)
        for index, part in enumerate(mesh.parts):
            inside = (faces >= first_faces[index]) & (faces < first_faces[index + 1])
            own_faces, weights = faces[inside] - first_faces[index], barycentric[inside]
            xyz[inside] = np.einsum("pcd,pc->pd", corners[index][own_faces], weights)
            rgba[inside] = surface_rgba(part, own_faces, weights)
        seen = rng.random(missing) < rgba[:, 3]
        normals = crosses[faces[seen]] / doubled_areas[faces[seen], None]
        drawn.append((xyz[seen], rgba[seen, :3], normals))
        missing -= int(seen.sum())
        if missing == 0:
            break
    all_xyz, all_rgb, all_normals = (np.concatenate(values).astype(np.float32) for values in zip(*drawn, strict=True))
    if len(all_xyz) == 0:
        raise ObjectError("it is invisible: every surface is transparent")
    repeated = np.arange(count) % len(all_xyz)  # of a nearly transparent surface too few points are kept
    return all_xyz[repeated], all_rgb[repeated], all_normals[repeated]


def _uniform_in_triangle(rng: np.random.Generator, count: int) -> np.ndarray:
    """Barycentric coordinates [P, 3], uniform by area: the half of the square beyond the diagonal is folded back."""
    u, v = rng.random((2, count))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    return np.stack([1 - u - v, u, v], axis=1)
