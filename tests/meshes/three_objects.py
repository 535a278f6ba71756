"""One model for every format: a textured box, a vertex-coloured tetrahedron and a plain box, moved, turned and scaled.

Readers of other formats must give what the glTF reader gives for it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES, Glb


@dataclass
class Object:
    name: str
    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3]
    matrix: np.ndarray  # [4, 4]
    uv: np.ndarray | None = None  # [V, 2], v downwards as in glTF
    colors: np.ndarray | None = None  # [V, 4] uint8, sRGB
    color: tuple[int, int, int] = (255, 255, 255)  # sRGB, of the whole


def _matrix(turn: float, axis: int, scale: tuple[float, float, float], move: tuple[float, float, float]) -> np.ndarray:
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.eye(4)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = cos, -sin, sin, cos
    matrix[:3, :3] *= scale
    matrix[:3, 3] = move
    return matrix


_RNG = np.random.default_rng(3)
PICTURE = _RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
_CORNERS = CUBE_CORNERS[CUBE_FACES.reshape(-1)]
OBJECTS = [
    Object(
        "textured",
        _CORNERS,
        np.arange(36).reshape(-1, 3),
        _matrix(0.4, 2, (1, 1, 1), (0, 0, 0)),
        uv=(_RNG.integers(0, 8, (36, 2)) / 8 + 1 / 16).astype(np.float32),
    ),
    Object(
        "coloured",
        np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
        _matrix(-1.1, 0, (2, 1, 1.5), (2, 0.5, 0)),
        colors=np.uint8([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [200, 120, 30, 255]]),
    ),
    Object("plain", CUBE_CORNERS, CUBE_FACES, _matrix(0.7, 1, (0.5, 0.25, 0.5), (-2, 1, 1)), color=(200, 120, 60)),
]


def write_glb(glb: Glb) -> Glb:
    for each in OBJECTS:
        material = None
        if each.uv is not None:
            material = glb.material(texture=glb.texture(PICTURE))
        elif each.colors is None:
            material = glb.material(factor=[*srgb_to_linear(np.array(each.color) / 255).tolist(), 1])
        linear = None if each.colors is None else srgb_to_linear(each.colors / 255).astype(np.float32)
        mesh = glb.mesh(
            each.vertices, each.faces.astype(np.uint16), material=material, TEXCOORD_0=each.uv, COLOR_0=linear
        )
        glb.node(mesh, matrix=each.matrix.T.reshape(-1).tolist())
    return glb


def _sampled(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Corners [N, 9] of all faces, each turned so that its least corner is first, and the colours there [N, 9]."""
    corners, colors = [], []
    for part in mesh.parts:
        faces = np.arange(len(part.faces))
        places = part.vertices[part.faces].astype(np.float64)
        # A little inside, so that a texel's neighbour does not count.
        inside = np.full((3, 3), 0.02) + np.eye(3) * 0.94
        rgb = np.stack([surface_rgba(part, faces, np.tile(row, (len(faces), 1)))[:, :3] for row in inside], axis=1)
        first = np.argmin((places * (1, 1e-3, 1e-6)).sum(axis=2).round(6), axis=1)
        order = (first[:, None] + np.arange(3)) % 3
        corners.append(np.take_along_axis(places, order[..., None], 1).reshape(-1, 9))
        colors.append(np.take_along_axis(rgb, order[..., None], 1).reshape(-1, 9))
    return np.concatenate(corners), np.concatenate(colors)


def check_same(mesh: Mesh, wanted: Mesh) -> None:
    """Vertices within 1e-5 of the size, winding kept, colours within 1 of 255."""
    assert mesh.face_count == wanted.face_count
    (corners, colors), (wanted_corners, wanted_colors) = _sampled(mesh), _sampled(wanted)
    distance, nearest = cKDTree(corners).query(wanted_corners)
    assert distance.max() < 1e-5
    assert len(np.unique(nearest)) == len(corners)
    assert np.abs(colors[nearest] - wanted_colors).max() * 255 < 1
