"""Points on the surface of a mesh."""

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import surface_rgba

_GRID = 1e5  # steps over a mesh's size within which corners are at one place
_MIXED = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_SHEET = 1e-3  # from the middle of a body to a face of a sheet, of the mesh's size
_ROUNDS = 20  # of redrawing rejected points; a surface that still rejects points is nearly transparent


def sample(mesh: Mesh, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points drawn uniformly by area, in the mesh's frame.

    Returns xyz [P, 3], rgb [P, 3] (sRGB in [0, 1], without lighting) and normals [P, 3], float32; P is `count`. Each
    normal is that of the point's triangle (unit, by the winding in the file): Gaussians start as discs in the surface,
    and smoothed normals would tilt them. Of two faces at one place that are wound opposite ways, the one that looks
    outward has the points: the other is a lining that is not seen. A point on a surface of opacity alpha is kept with
    probability alpha. The same mesh, count and seed give the same bytes.

    Raises:
        ObjectError: the surface is fully transparent.
    """
    rng = np.random.default_rng(seed)
    corners = [part.vertices[part.faces].astype(np.float64) for part in mesh.parts]
    crosses = np.concatenate([np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]) for c in corners])
    doubled_areas = np.linalg.norm(crosses, axis=1)
    counts = [len(part.faces) for part in mesh.parts]
    lining = _linings(np.concatenate(corners), crosses, np.repeat(np.arange(len(counts)), counts))
    edges = np.cumsum(np.where(lining, 0, doubled_areas))
    first_faces = np.cumsum([0, *counts])
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


def _linings(
    corners: np.ndarray,  # [F, 3, 3]
    crosses: np.ndarray,  # [F, 3], normals of any length
    part: np.ndarray,  # [F], number of the part
) -> np.ndarray:
    """Which faces [F] lie at the place of another one, are wound the other way, and look inward.

    Faces that hang together are a body, and those of a body in one part look outward together: the volume that they
    enclose, seen from the body's middle, has a sign. Where it has none, each face is asked by itself. Sheets have no
    inside, and keep both their faces.
    """
    places = np.rint(corners * _GRID).astype(np.int64) @ np.array([1, 1 << 20, 1 << 40])  # [F, 3], one number a corner
    order = np.argsort(places, axis=1)
    places_of_face = np.take_along_axis(places, order, axis=1)
    turned = np.isin(order @ (1, 3, 9), (5, 15, 19))  # an odd order of the corners: 2 1 0, 0 2 1, 1 0 2
    # A number a face that does not depend on its winding; that of three corners in order would take 180 bits.
    number = (places_of_face.astype(np.uint64) * _MIXED).sum(axis=1, dtype=np.uint64)
    group = np.unique(number, return_inverse=True)[1]
    wound = [np.bincount(group[way], minlength=group.max(initial=0) + 1) > 0 for way in (turned, ~turned)]
    twins = (wound[0] & wound[1])[group]
    if not twins.any():
        return twins
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    vertices, index = np.unique(places, return_inverse=True)
    index = index.reshape(places.shape)
    first, second = index[:, [0, 1]].ravel(), index[:, [1, 2]].ravel()
    graph = coo_array((np.ones(len(first), bool), (first, second)), (len(vertices), len(vertices)))
    body = connected_components(graph, directed=False)[1][index[:, 0]]  # [F]
    middles = corners.mean(axis=1)
    low, high = (np.full((body.max() + 1, 3), fill) for fill in (np.inf, -np.inf))
    np.minimum.at(low, body, corners.min(axis=1))
    np.maximum.at(high, body, corners.max(axis=1))
    lengths = np.linalg.norm(crosses, axis=1)
    outward = (crosses * (middles - (low + high)[body] / 2)).sum(axis=1)
    together = np.unique(body * (part.max() + 1) + part, return_inverse=True)[1]
    volumes, areas = (np.bincount(together, np.where(twins, values, 0)) for values in (outward, lengths))
    means = (volumes / np.maximum(areas, 1e-30))[together]
    alone = outward / np.maximum(lengths, 1e-30)
    return twins & (np.where(np.abs(means) > _SHEET, means, alone) < -_SHEET)


def _uniform_in_triangle(rng: np.random.Generator, count: int) -> np.ndarray:
    """Barycentric coordinates [P, 3], uniform by area: the half of the square beyond the diagonal is folded back."""
    u, v = rng.random((2, count))
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    return np.stack([1 - u - v, u, v], axis=1)
