"""The colour of a surface point, for sampled points and for views.

All numbers are linear light, except the texels of a texture, which are sRGB and are decoded before they are averaged
(glTF 3.9.2). Base colour factors and COLOR_0 of glTF
are linear by its standard; colours of PLY, OFF, OBJ and MTL files are sRGB by custom, and are converted when they are
loaded. Metalness, roughness and normal maps are ignored on purpose: exporters leave metalness at its default of 1,
which is black without surroundings to reflect, and Gaussians without spherical harmonics have the same colour in every
view.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]
Wrap = Literal["repeat", "mirror", "clamp"]
Filter = Literal["nearest", "linear", "mipmaps"]


@dataclass(frozen=True, eq=False)
class Texture:
    """An image on a surface; uv (0, 0) is the upper left corner, as in glTF."""

    pixels: np.ndarray  # [H, W, 3 or 4] uint8, sRGB and straight alpha
    wrap_u: Wrap = "repeat"
    wrap_v: Wrap = "repeat"
    magnify: Filter = "linear"  # where a texel is larger than a pixel; of pixel art "nearest"
    minify: Filter = "mipmaps"  # where it is smaller

    @property
    def mirror_scale(self) -> tuple[float, float]:
        """By what coordinates are multiplied where a mirrored picture stands beside the picture itself."""
        return (0.5 if self.wrap_u == "mirror" else 1.0), (0.5 if self.wrap_v == "mirror" else 1.0)


@dataclass(frozen=True, eq=False)
class Material:
    """The part of a glTF material that gives a surface its colour and its opacity.

    A surface shows the brighter of its lit colour and its emission. The standard adds them, but many files use the same
    image for both, and the sum would be too bright.
    """

    base_color_factor: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # linear, alpha
    base_color_texture: Texture | None = None
    emissive_factor: tuple[float, float, float] = (0.0, 0.0, 0.0)  # linear
    emissive_texture: Texture | None = None
    alpha_mode: AlphaMode = "OPAQUE"
    alpha_cutoff: float = 0.5
    unlit: bool = False  # the colour itself, without light
    single_sided: bool = False  # its back is seen only where no front lies on the ray


@dataclass(frozen=True, eq=False)
class Part:
    """Triangles that share a material."""

    vertices: np.ndarray  # [V, 3] float32
    faces: np.ndarray  # [F, 3] int32
    normals: np.ndarray | None = None  # [V, 3] float32, unit; None: flat faces
    uv: np.ndarray | None = None  # [V, 2] float32
    colors: np.ndarray | None = None  # [V, 4] float32, linear, alpha
    material: Material = field(default_factory=Material)
    glow_uv: np.ndarray | None = None  # [V, 2] float32, of the emissive texture; None: those of the colour

    @property
    def glow_coordinates(self) -> np.ndarray | None:
        """Texture coordinates [V, 2] of the emissive texture."""
        return self.uv if self.glow_uv is None else self.glow_uv

    @property
    def alpha_mode(self) -> AlphaMode:
        """The material's mode, but OPAQUE instead of BLEND if nothing is transparent.

        Many exporters write BLEND for opaque surfaces, and blended triangles cannot be drawn in the right order.
        """
        material = self.material
        if material.alpha_mode != "BLEND":
            return material.alpha_mode
        texture = material.base_color_texture if self.uv is not None else None
        solid = (
            material.base_color_factor[3] >= 1
            and (texture is None or texture.pixels.shape[2] == 3 or texture.pixels[..., 3].min() == 255)
            and (self.colors is None or self.colors[:, 3].min() >= 1)
        )
        return "OPAQUE" if solid else "BLEND"


def srgb_to_linear(srgb: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1, any shape, values in [0, 1]."""
    srgb = np.asarray(srgb)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


LINEAR = srgb_to_linear(np.arange(256) / 255)  # of each byte


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Inverse of `srgb_to_linear`; values outside [0, 1] are clipped."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def with_alpha(
    pixels: np.ndarray,  # [H, W, 3 or 4] uint8
) -> np.ndarray:
    """The picture with an alpha, which is solid where it had none: [H, W, 4] uint8."""
    return pixels if pixels.shape[2] == 4 else np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])


def surface_rgba(
    part: Part,
    face_indices: np.ndarray,  # [P] int
    barycentric: np.ndarray,  # [P, 3], weights of the face's corners
) -> np.ndarray:
    """Colour and opacity of surface points, without lighting.

    Returns float32 [P, 4]: sRGB in [0, 1], and alpha by the material's mode: 1 if OPAQUE, 0 or 1 if MASK.
    """
    corners = part.faces[face_indices]  # [P, 3]
    material = part.material
    rgba = np.tile(np.asarray(material.base_color_factor, np.float64), (len(corners), 1))
    emitted = np.tile(np.asarray(material.emissive_factor, np.float64), (len(corners), 1))
    if material.base_color_texture is not None and part.uv is not None:
        rgba *= sample_texture(material.base_color_texture, _interpolated(part.uv, corners, barycentric))
    glow_uv = part.glow_coordinates
    if material.emissive_texture is not None and glow_uv is not None:
        emitted *= sample_texture(material.emissive_texture, _interpolated(glow_uv, corners, barycentric))[:, :3]
    if part.colors is not None:
        rgba *= _interpolated(part.colors, corners, barycentric)
    mode = part.alpha_mode
    if mode == "OPAQUE":
        rgba[:, 3] = 1
    elif mode == "MASK":
        rgba[:, 3] = rgba[:, 3] >= material.alpha_cutoff
    rgba[:, :3] = linear_to_srgb(np.maximum(rgba[:, :3], emitted))
    return rgba.clip(0, 1).astype(np.float32)


def _interpolated(values: np.ndarray, corners: np.ndarray, barycentric: np.ndarray) -> np.ndarray:
    return np.einsum("pcd,pc->pd", values[corners].astype(np.float64), barycentric)


def sample_texture(
    texture: Texture,
    uv: np.ndarray,  # [P, 2]
) -> np.ndarray:
    """Lookup with wrapping: [P, 4], linear light and alpha in [0, 1].

    Texels are decoded before they are interpolated (glTF 3.9.2), and not interpolated where `magnify` is "nearest".
    """
    height, width, channels = texture.pixels.shape
    nearest = texture.magnify == "nearest"
    column, column_next, along = _texels(uv[:, 0], width, texture.wrap_u, nearest)
    row, row_next, down = _texels(uv[:, 1], height, texture.wrap_v, nearest)

    def decoded(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        texels = texture.pixels[rows, columns]
        values = np.ones((len(uv), 4))
        values[:, :3] = LINEAR[texels[:, :3]]
        values[:, 3:channels] = texels[:, 3:] / 255
        return values

    if nearest:
        return decoded(row, column)
    upper = decoded(row, column) * (1 - along) + decoded(row, column_next) * along
    lower = decoded(row_next, column) * (1 - along) + decoded(row_next, column_next) * along
    return upper * (1 - down) + lower * down


def _texels(
    coordinate: np.ndarray,  # [P]
    size: int,
    wrap: Wrap,
    nearest: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two neighbouring texels along an axis of `size` texels, and the weight of the second; the first is the nearest
    one if asked for.
    """
    # Texel centres are at half texels. Wrapping comes first, so that a large coordinate keeps its precision.
    if wrap == "repeat":
        coordinate = coordinate - np.floor(coordinate)
    elif wrap == "mirror":
        coordinate = coordinate - 2 * np.floor(coordinate / 2)
        coordinate = np.where(coordinate > 1, 2 - coordinate, coordinate)
    position = coordinate.clip(0, 1) * size - (0 if nearest else 0.5)
    low = np.floor(position).astype(np.int64)
    fraction = (position - low)[:, None]
    if wrap == "repeat":
        return low % size, (low + 1) % size, fraction
    return low.clip(0, size - 1), (low + 1).clip(0, size - 1), fraction
