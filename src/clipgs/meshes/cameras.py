"""Cameras around an object. OpenCV convention: x right, y down, z forward; world to camera."""

import json
import math

import numpy as np

from clipgs.config import Views
from clipgs.core.errors import ObjectError

Cameras = tuple[np.ndarray, np.ndarray]  # viewmats [V, 4, 4] and Ks [V, 3, 3] (pixels), float32

_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
SHOWING_DIRECTION = (0.62, 0.42, 0.66)  # shows an object best


def canonical(count: int = 36, fov_degrees: float = 40.0, distance: float = 2.54, pixels: int = 256) -> Cameras:
    """Cameras on a spiral over the sphere that look at the origin.

    Returns viewmats [V, 4, 4] and Ks [V, 3, 3] (pixels), float32. Heights are even and azimuths turn by the golden
    angle (the Fibonacci lattice; Swinbank and Purser 2006, "Fibonacci grids"), so directions are spread evenly over the
    sphere. At the default distance the half diagonal of a unit cube just fits into the field of view.
    """
    return _spiral(np.arange(count) + 0.5, count, fov_degrees, distance, pixels)


def canonical_cameras(views: Views, pixels: int) -> Cameras:
    """Viewmats [V, 4, 4] and Ks [V, 3, 3] of the canonical views that the section `views` describes."""
    return canonical(views.count, fov_degrees=views.fov_degrees, distance=views.distance, pixels=pixels)


def held_out(
    count: int = 4, fov_degrees: float = 40.0, distance: float = 2.54, pixels: int = 256, among: int = 36
) -> Cameras:
    """Cameras halfway between `among` canonical ones, spread over the length of the spiral; else as `canonical`."""
    steps = np.floor((np.arange(count) + 0.5) * among / count).clip(1, among - 1)
    return _spiral(steps, among, fov_degrees, distance, pixels)


def _spiral(steps: np.ndarray, count: int, fov_degrees: float, distance: float, pixels: int) -> Cameras:
    """Cameras at `steps` [V] of a spiral that has `count` steps."""
    height = 1 - 2 * steps / count
    radius = np.sqrt(1 - height**2)
    azimuth = steps * _GOLDEN_ANGLE
    eyes = distance * np.stack([radius * np.cos(azimuth), height, radius * np.sin(azimuth)], axis=1)
    viewmats = np.stack([look_at_origin(eye) for eye in eyes]).astype(np.float32)
    focal = pixels / 2 / math.tan(math.radians(fov_degrees) / 2)
    K = np.array([[focal, 0, pixels / 2], [0, focal, pixels / 2], [0, 0, 1]], np.float32)
    return viewmats, np.tile(K, (len(viewmats), 1, 1))


def look_at_origin(
    eye: np.ndarray,  # [3]
) -> np.ndarray:
    """World to camera [4, 4] (float64) of an upright camera at `eye`, Y up in the view.

    Straight above or below the origin, where Y gives no direction, -Z or Z is up in the view.
    """
    forward = -eye / np.linalg.norm(eye)
    up = np.array([0.0, 1.0, 0.0]) if abs(forward[1]) < 0.999 else np.array([0.0, 0.0, math.copysign(1, forward[1])])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    viewmat = np.eye(4)
    viewmat[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    viewmat[:3, 3] = -viewmat[:3, :3] @ eye
    return viewmat


def cameras_json(
    viewmats: np.ndarray,  # [V, 4, 4]
    Ks: np.ndarray,  # [V, 3, 3]
    pixels: int,
) -> bytes:
    """The cameras as a file; float32 values come back exactly."""
    described = {
        "convention": "opencv world-to-camera",
        "viewmats": np.asarray(viewmats, np.float32).astype(float).tolist(),
        "Ks": np.asarray(Ks, np.float32).astype(float).tolist(),
        "pixels": int(pixels),
    }
    return json.dumps(described).encode() + b"\n"


def parse_cameras(data: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Inverse of `cameras_json`: viewmats [V, 4, 4], Ks [V, 3, 3], float32, and pixels."""
    described = json.loads(data)
    if described.get("convention") != "opencv world-to-camera":
        raise ObjectError(f"the cameras have the unknown convention {described.get('convention')!r}")
    viewmats, Ks = (np.asarray(described[key], np.float32) for key in ("viewmats", "Ks"))
    if viewmats.shape[1:] != (4, 4) or Ks.shape[1:] != (3, 3) or len(viewmats) != len(Ks):
        raise ObjectError(f"the cameras have the shapes {viewmats.shape} and {Ks.shape}")
    return viewmats, Ks, int(described["pixels"])


def showing(
    viewmats: np.ndarray,  # [V, 4, 4], world to camera
    direction: tuple[float, float, float] = SHOWING_DIRECTION,
) -> int:
    """Index of the view from nearest to a direction, by default from the front, the right and slightly above."""
    positions = -np.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])
    directions = positions / np.linalg.norm(positions, axis=1, keepdims=True)
    return int((directions @ np.array(direction)).argmax())
