"""Posed views of a mesh, drawn by pyrender through EGL."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.headless import import_pyrender
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import Part, render_material

# Light on a matt surface, as a fraction of white. The lights are fixed in the world, because Gaussians without view
# dependence cannot have colours that follow the camera. Their sum is at most 1 in every direction, so that white never
# clips. The darkest side gets AMBIENT, which sRGB encodes as 0.76 of white.
AMBIENT = 0.54
LIGHTS: tuple[tuple[tuple[float, float, float], float], ...] = (  # direction to the light, strength
    ((1.0, 1.5, 1.0), 0.41),
    ((-1.0, 0.8, -1.2), 0.34),
    ((0.0, -1.0, 0.3), 0.22),
)

_SHADERS = Path(__file__).parent / "shaders"
_OPENGL_CAMERA = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV to OpenGL: y up, z backward
_CORNER_PIXELS = 4  # along one edge of the frame
_VISIBLE_ALPHA = 26  # of 255; an object with less alpha everywhere is invisible


def render(
    mesh: Mesh,
    viewmats: np.ndarray,  # [V, 4, 4], world to camera, OpenCV
    Ks: np.ndarray,  # [V, 3, 3], pixels
    pixels: int,
    *,
    supersample: int = 1,
    ambient: float = AMBIENT,
    lights: Sequence[tuple[tuple[float, float, float], float]] = LIGHTS,
) -> np.ndarray:
    """Draws the mesh from every camera: uint8 [V, H, W, 4], sRGB with straight alpha, H = W = `pixels`.

    Each view is drawn `supersample` times as wide and as high, with four samples a pixel, and averaged. The background
    is transparent black, so an edge pixel is colour times coverage; divided by its alpha, it is right over any
    background. For translucent meshes pyrender's blending gives a wrong alpha, so they are drawn over black and over
    white, and the difference gives alpha (Smith and Blinn 1996, "Blue screen matting"). Faces are drawn and lit from
    both sides. Each call makes its own renderer, because a renderer grows with every scene.

    Raises:
        ObjectError: the mesh reaches beyond the frame of a view.
    """
    viewmats, Ks = np.asarray(viewmats, np.float64), np.asarray(Ks, np.float64)
    _check_inside(mesh, viewmats, Ks, pixels)
    Ks = Ks * np.array([supersample, supersample, 1])[:, None]
    pyrender = import_pyrender()
    scene = pyrender.Scene(ambient_light=[ambient] * 3)
    for part in mesh.parts:
        _add_part(pyrender, scene, part)
    for direction, strength in lights:
        scene.add(pyrender.DirectionalLight(color=np.ones(3), intensity=strength), pose=_shining_from(direction))
    nodes = []
    for viewmat, K in zip(viewmats, Ks, strict=True):
        distance = np.linalg.norm(viewmat[:3, 3])
        near = max(distance - 1.0, 0.01)  # the mesh is within 0.87 of the origin
        camera = pyrender.IntrinsicsCamera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], znear=near, zfar=distance + 1.0)
        nodes.append(scene.add(camera, pose=np.linalg.inv(viewmat) @ _OPENGL_CAMERA))

    translucent = any(part.alpha_mode == "BLEND" for part in mesh.parts)
    renderer = pyrender.OffscreenRenderer(supersample * pixels, supersample * pixels)
    try:
        renderer._renderer._program_cache = _programs(pyrender, mesh)
        views = []
        for node in nodes:
            scene.main_camera_node = node
            over_black = _draw(pyrender, renderer, scene, 0.0, supersample)
            if translucent:
                over_white = _draw(pyrender, renderer, scene, 1.0, supersample)
                alpha = 255 - (over_white[..., :3] - over_black[..., :3]).max(axis=-1).clip(0, 255)
            else:
                alpha = over_black[..., 3]
            views.append(_straight(over_black[..., :3], alpha))
    finally:
        renderer.delete()
    return np.stack(views)


def check(
    rgba: np.ndarray,  # [V, H, W, 4] uint8
) -> None:
    """Checks that a fit can learn from the views.

    A corner of the object may touch the edge of the frame, as a cube's does at the canonical distance. A longer run of
    pixels along the edge means that the object is cut off.

    Raises:
        ObjectError: the object is invisible in all views, or a view is blank or cut off by the frame.
    """
    alpha = rgba[..., 3]
    if alpha.max(initial=0) < _VISIBLE_ALPHA:
        raise ObjectError("it is invisible in every view: all its surfaces are transparent")
    for index, view in enumerate(alpha):
        if view.max() < _VISIBLE_ALPHA:
            raise ObjectError(f"view {index} is blank")
        edges = (view[0], view[-1], view[:, 0], view[:, -1])
        if max((edge >= 128).sum() for edge in edges) > _CORNER_PIXELS:
            raise ObjectError(f"view {index} is cut off by the edge of the frame")


def _check_inside(mesh: Mesh, viewmats: np.ndarray, Ks: np.ndarray, pixels: int) -> None:
    vertices = np.concatenate([part.vertices for part in mesh.parts]).astype(np.float64)
    box = np.stack([vertices.min(axis=0), vertices.max(axis=0)])
    corners = np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, 3)
    for index, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        # The corners of the box first: they nearly always fit.
        if not (_inside(corners, viewmat, K, pixels) or _inside(vertices, viewmat, K, pixels)):
            raise ObjectError(f"view {index} is cut off by the edge of the frame")


def _inside(points: np.ndarray, viewmat: np.ndarray, K: np.ndarray, pixels: int) -> bool:
    in_camera = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    if in_camera[:, 2].min() <= 0:
        return False
    in_frame = (in_camera @ K.T)[:, :2] / in_camera[:, 2:]
    return bool(in_frame.min() >= 0 and in_frame.max() <= pixels)


def _add_part(pyrender: ModuleType, scene: Any, part: Part) -> None:
    # pyrender draws translucent parts from far to near by the positions of their nodes.
    middle = (part.vertices.min(axis=0) + part.vertices.max(axis=0)) / 2
    primitive = pyrender.Primitive(
        positions=part.vertices - middle,
        normals=part.normals,
        texcoord_0=None if part.uv is None else part.uv * (1, -1) + (0, 1),  # pyrender has uv (0, 0) at the lower left
        color_0=part.colors,
        indices=part.faces,
        material=render_material(pyrender, part),
        mode=4,
    )
    pose = np.eye(4)
    pose[:3, 3] = middle
    scene.add(pyrender.Mesh([primitive]), pose=pose)


def _programs(pyrender: ModuleType, mesh: Mesh) -> Any:
    """A cache of this package's shader, which replaces pyrender's own."""
    cache = pyrender.shader_program.ShaderProgramCache(str(_SHADERS))
    if any(part.alpha_mode != "OPAQUE" for part in mesh.parts):
        plain = cache.get_program

        def get_program(*, defines: dict[str, int], **shaders: str | None) -> Any:
            return plain(defines=defines | {"CUTS_ALPHA": 1}, **shaders)

        cache.get_program = get_program
    return cache


def _shining_from(direction: Sequence[float]) -> np.ndarray:
    """Pose of a light, which shines along its -Z."""
    backward = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    right = np.cross([0.0, 0.0, 1.0] if abs(backward[1]) > 0.9 else [0.0, 1.0, 0.0], backward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
    return pose


def _draw(pyrender: ModuleType, renderer: Any, scene: Any, background: float, supersample: int) -> np.ndarray:
    """The scene over a grey background, colour times coverage: float32 [H, W, 4] in 0..255."""
    scene.bg_color = np.array([background, background, background, 0.0])
    drawn = renderer.render(scene, flags=pyrender.RenderFlags.RGBA)[0]
    height, width = (side // supersample for side in drawn.shape[:2])
    total = np.zeros((height, width, 4), np.uint16)
    for row in range(supersample):
        for column in range(supersample):
            total += drawn[row::supersample, column::supersample]
    return total.astype(np.float32) / supersample**2


def _straight(
    premultiplied: np.ndarray,  # [H, W, 3] float32 in 0..255
    alpha: np.ndarray,  # [H, W] float32 in 0..255
) -> np.ndarray:
    """Colour with straight alpha, uint8 [H, W, 4]; black where alpha is 0."""
    rounded = np.rint(alpha)
    color = premultiplied * (255 / np.maximum(alpha, 1e-3))[..., None]
    color = np.rint(color).clip(0, 255) * (rounded > 0)[..., None]
    return np.concatenate([color, rounded[..., None]], axis=-1).astype(np.uint8)
