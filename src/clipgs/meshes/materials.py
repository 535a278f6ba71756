"""The colour of a surface point, for sampled points and for views.

All numbers are linear light, except the texels of a texture, which are sRGB. Base colour factors and COLOR_0 of glTF
are linear by its standard; colours of PLY, OFF, OBJ and MTL files are sRGB by custom, and are converted when they are
loaded. Metalness, roughness and normal maps are ignored on purpose: exporters leave metalness at its default of 1,
which is black without surroundings to reflect, and Gaussians without spherical harmonics have the same colour in every
view.
"""

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

AlphaMode = Literal["OPAQUE", "MASK", "BLEND"]
Wrap = Literal["repeat", "mirror", "clamp"]
Filter = Literal["nearest", "linear", "mipmaps"]

_GL_WRAP = {"repeat": 10497, "mirror": 33648, "clamp": 33071}


@dataclass(frozen=True, eq=False)
class Texture:
    """An image on a surface; uv (0, 0) is the upper left corner, as in glTF."""

    pixels: np.ndarray  # [H, W, 3 or 4] uint8, sRGB and straight alpha
    wrap_u: Wrap = "repeat"
    wrap_v: Wrap = "repeat"
    magnify: Filter = "linear"  # where a texel is larger than a pixel; of pixel art "nearest"
    minify: Filter = "mipmaps"  # where it is smaller


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


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    """Inverse of `srgb_to_linear`; values outside [0, 1] are clipped."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


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
    if part.uv is not None:
        uv = np.einsum("pcd,pc->pd", part.uv[corners].astype(np.float64), barycentric)
        if material.base_color_texture is not None:
            texel = sample_texture(material.base_color_texture, uv)
            rgba[:, :3] *= srgb_to_linear(texel[:, :3])
            rgba[:, 3] *= texel[:, 3]
        if material.emissive_texture is not None:
            emitted *= srgb_to_linear(sample_texture(material.emissive_texture, uv)[:, :3])
    if part.colors is not None:
        rgba *= np.einsum("pcd,pc->pd", part.colors[corners].astype(np.float64), barycentric)
    mode = part.alpha_mode
    if mode == "OPAQUE":
        rgba[:, 3] = 1
    elif mode == "MASK":
        rgba[:, 3] = rgba[:, 3] >= material.alpha_cutoff
    rgba[:, :3] = linear_to_srgb(np.maximum(rgba[:, :3], emitted))
    return rgba.clip(0, 1).astype(np.float32)


def sample_texture(
    texture: Texture,
    uv: np.ndarray,  # [P, 2]
) -> np.ndarray:
    """Bilinear lookup with wrapping: [P, 4] in [0, 1]. It filters in sRGB, as GPUs filter an 8-bit texture."""
    height, width, channels = texture.pixels.shape
    column, column_next, along = _texels(uv[:, 0], width, texture.wrap_u)
    row, row_next, down = _texels(uv[:, 1], height, texture.wrap_v)
    pixels = texture.pixels
    upper = pixels[row, column] * (1 - along) + pixels[row, column_next] * along
    lower = pixels[row_next, column] * (1 - along) + pixels[row_next, column_next] * along
    values = np.ones((len(uv), 4))
    values[:, :channels] = (upper * (1 - down) + lower * down) / 255
    return values


def _texels(coordinate: np.ndarray, size: int, wrap: Wrap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two neighbouring texels and the weight of the second, for coordinates [P] along an axis of `size` texels."""
    # Texel centres are at half texels. Wrapping comes first, so that a large coordinate keeps its precision.
    if wrap == "repeat":
        coordinate = coordinate - np.floor(coordinate)
    elif wrap == "mirror":
        coordinate = coordinate - 2 * np.floor(coordinate / 2)
        coordinate = np.where(coordinate > 1, 2 - coordinate, coordinate)
    position = coordinate.clip(0, 1) * size - 0.5
    low = np.floor(position).astype(np.int64)
    fraction = (position - low)[:, None]
    if wrap == "repeat":
        return low % size, (low + 1) % size, fraction
    return low.clip(0, size - 1), (low + 1).clip(0, size - 1), fraction


def render_material(pyrender: ModuleType, part: Part) -> Any:
    """The part's `pyrender.MetallicRoughnessMaterial` for this package's shader (shaders/mesh.frag).

    pyrender sets only its own uniforms, so two that are not needed without gloss hold the alpha mode: `metallic_factor`
    is 1 if alpha is written, `roughness_factor` is the alpha below which nothing is drawn. The texture of an opaque
    material loses its alpha, because pyrender would write it into the frame.
    """
    material, mode = part.material, part.alpha_mode

    def texture(source: Texture | None, *, with_alpha: bool) -> Any:
        if source is None or part.uv is None:
            return None
        # Always four bytes a texel: OpenGL would misread rows of three-byte texels that do not fill whole words.
        pixels = np.full((*source.pixels.shape[:2], 4), 255, np.uint8)
        channels = source.pixels.shape[2] if with_alpha else 3
        pixels[..., :channels] = source.pixels[..., :channels]
        sampler = pyrender.Sampler(wrapS=_GL_WRAP[source.wrap_u], wrapT=_GL_WRAP[source.wrap_v])
        return pyrender.Texture(source=pixels, source_channels="RGBA", sampler=sampler)

    return pyrender.MetallicRoughnessMaterial(
        baseColorFactor=np.asarray(material.base_color_factor, np.float32),
        baseColorTexture=texture(material.base_color_texture, with_alpha=mode != "OPAQUE"),
        emissiveFactor=np.asarray(material.emissive_factor, np.float32),
        emissiveTexture=texture(material.emissive_texture, with_alpha=False),
        alphaMode="BLEND" if mode == "BLEND" else "OPAQUE",
        metallicFactor=1.0 if mode == "BLEND" else 0.0,
        roughnessFactor={"OPAQUE": 0.0, "MASK": material.alpha_cutoff, "BLEND": 1 / 255}[mode],
        doubleSided=True,
    )
