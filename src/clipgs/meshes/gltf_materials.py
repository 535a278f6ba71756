"""Materials and textures of glTF 2.0: what gives a surface its colour and its opacity.

Method: Khronos glTF 2.0 specification, sections 3.8 (textures) and 3.9 (materials), and its KHR_materials extensions.
What gloss, refraction and cloth show is not drawn, so their colours are moved into the base colour where it has none.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import decode_image
from clipgs.meshes.materials import LINEAR, Filter, Material, Texture, Wrap, linear_to_srgb, srgb_to_linear, with_alpha

_WRAPS: dict[Any, Wrap] = {10497: "repeat", 33648: "mirror", 33071: "clamp"}
_MAGNIFY: dict[Any, Filter] = {9728: "nearest", 9729: "linear"}
_MINIFY: dict[Any, Filter] = {9728: "nearest", 9729: "linear"}  # all others have mip levels
# assumed: glass keeps a quarter of its opacity. Its reflections are not drawn, and nothing else would be seen of it.
_GLASS = 0.75
_DEEPEST = 2.0  # assumed, in attenuation distances: a thickness is that of the thickest place
_BLACK = 0.02  # linear; a diffuse colour below it is that of a metal if the specular colour is over _METAL
_METAL = 0.15  # of a specular picture
_METAL_FACTOR = 0.4  # of a specular factor alone: the duller metals have 0.5, paint at most 0.2
_DARK_CLOTH = 0.05  # linear; a base colour below it gives way to its sheen
_SAME_COLOR = 0.002


class Layout(NamedTuple):
    """Where a texture's coordinates come from: the set, and the affine map of KHR_texture_transform."""

    uv_set: int = 0
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


class Described(NamedTuple):
    """A material, and the layouts of its textures."""

    material: Material
    base: Layout | None = None
    glow: Layout | None = None


class _Picture(NamedTuple):
    """A colour: a factor times a texture, if there is one."""

    factor: tuple[float, ...]
    texture: Texture | None
    layout: Layout | None

    @property
    def linear(self) -> np.ndarray:
        """Linear colour of the texels, with the factor: [H, W, 3], or [1, 1, 3] without a texture."""
        factor = np.array(self.factor[:3])
        return factor.reshape(1, 1, 3) if self.texture is None else LINEAR[self.texture.pixels[..., :3]] * factor

    @property
    def mean(self) -> np.ndarray:
        """Linear colour [3] of all texels together."""
        return self.linear.mean(axis=(0, 1))


class Materials:
    """The materials of a document, read at first use.

    `item` gives an element of one of the header's lists, `image_data` the bytes of an image and its name.
    """

    def __init__(
        self,
        item: Callable[[str, Any], dict[str, Any]],
        image_data: Callable[[int], tuple[bytes, str]],
        neutral: Material,
        max_texture_pixels: int,
    ) -> None:
        self.item, self.image_data, self.max_texture_pixels = item, image_data, max_texture_pixels
        self.default = Described(replace(neutral, single_sided=True))
        self.images: dict[tuple[int, bool], np.ndarray] = {}
        self.read: dict[int, Described] = {}

    def get(self, index: int | None) -> Described:
        """The material of this number; the neutral one without a number.

        Raises:
            ObjectError: it has a colour or an alpha mode that is none, or a texture that cannot be read.
        """
        if index is None:
            return self.default
        if index not in self.read:
            self.read[index] = self._material(self.item("materials", index))
        return self.read[index]

    def _material(self, described: dict[str, Any]) -> Described:
        extensions = described.get("extensions", {})
        mode = described.get("alphaMode", "OPAQUE")
        if mode not in ("OPAQUE", "MASK", "BLEND"):
            raise ObjectError(f"a material has the unknown alpha mode {mode!r}")
        base = self._sheen(self._base(described), extensions.get("KHR_materials_sheen", {}))
        clearer = self._glass(base, extensions)
        unlit = "KHR_materials_unlit" in extensions
        glow = _Picture((0, 0, 0), None, None) if unlit else self._glow(described, base)
        material = Material(
            base_color_factor=(*clearer.factor,),  # type: ignore[arg-type]
            base_color_texture=clearer.texture,
            emissive_factor=(*glow.factor,),  # type: ignore[arg-type]
            emissive_texture=glow.texture,
            alpha_mode=mode if clearer is base else "BLEND",
            alpha_cutoff=float(described.get("alphaCutoff", 0.5)),
            unlit=unlit,
            single_sided=not described.get("doubleSided", False),
        )
        return Described(material, clearer.layout, glow.layout)

    def _base(self, described: dict[str, Any]) -> _Picture:
        """Colour and opacity of the core material, or of KHR_materials_pbrSpecularGlossiness."""
        core = described.get("pbrMetallicRoughness", {})
        glossy = described.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness", {})
        # Some converters use the extension for its gloss alone, and pbrMetallicRoughness still holds the colour.
        if "diffuseFactor" not in glossy and "diffuseTexture" not in glossy:
            return self._picture(core.get("baseColorFactor"), core.get("baseColorTexture"))
        factor, texture = glossy.get("diffuseFactor"), glossy.get("diffuseTexture")
        if factor is not None and "baseColorFactor" in core and texture == core.get("baseColorTexture"):
            # Some exporters write the same colour twice: linear, as the standard says, and here in sRGB.
            linear = srgb_to_linear(np.array(_floats(factor, 4)[:3]))
            if np.abs(linear - _floats(core["baseColorFactor"], 4)[:3]).max() < _SAME_COLOR:
                factor = core["baseColorFactor"]
        diffuse = self._picture(factor, texture)
        specular = self._picture((*glossy.get("specularFactor", (1, 1, 1)), 1), glossy.get("specularGlossinessTexture"))
        return _with_metal(diffuse, specular)

    def _sheen(self, base: _Picture, sheen: dict[str, Any]) -> _Picture:
        """Cloth whose base is nearly black shows the colour of its fibres."""
        if "sheenColorFactor" not in sheen or (own := base.mean.max()) > _DARK_CLOTH:
            return base
        fibres = self._picture((*sheen["sheenColorFactor"], 1), sheen.get("sheenColorTexture"))
        return fibres if fibres.mean.max() > own else base

    def _glass(self, base: _Picture, extensions: dict[str, Any]) -> _Picture:
        """What KHR_materials_transmission lets through: less opacity, and the colour of the volume."""
        transmission = extensions.get("KHR_materials_transmission", {})
        through = float(np.clip(transmission.get("transmissionFactor", 0.0), 0, 1))
        if through <= 0:
            return base
        volume = extensions.get("KHR_materials_volume", {})
        depth = float(volume.get("thicknessFactor", 0)) / (float(volume.get("attenuationDistance", 0)) or np.inf)
        tint = np.array(_floats(volume.get("attenuationColor", (1, 1, 1)), 3)) ** min(max(depth, 0.0), _DEEPEST)
        *color, alpha = base.factor
        color = (np.array(color) * (1 - through + through * tint)).tolist()
        clear = _GLASS * through * float((base.mean * tint).mean())  # dark glass takes light away
        described = transmission.get("transmissionTexture")
        if described is None:
            return base._replace(factor=(*color, alpha * (1 - clear)))
        mask, layout = self._texture(described)
        share = mask.pixels[..., 0] / 255
        if base.texture is not None and layout != base.layout:  # the texels of one do not lie on those of the other
            return base._replace(factor=(*color, alpha * (1 - clear * float(share.mean()))))
        pixels = np.full((*share.shape, 4), 255, np.uint8) if base.texture is None else with_alpha(base.texture.pixels)
        share = _resized(share, pixels.shape)
        pixels = np.dstack([pixels[..., :3], np.rint(pixels[..., 3] * (1 - clear * share)).astype(np.uint8)])
        return _Picture((*color, alpha), replace(base.texture or mask, pixels=pixels), layout)

    def _glow(self, described: dict[str, Any], base: _Picture) -> _Picture:
        extensions = described.get("extensions", {})
        strength = float(extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1.0))
        factor = np.asarray(described.get("emissiveFactor", (0, 0, 0)), np.float64) * strength
        texture = described.get("emissiveTexture")
        red, green, blue = _floats(factor, 3)
        # A glow without texture counts only where the colour is black: converters store ambient light in it.
        if max(red, green, blue) <= 0 or (texture is None and max(base.factor[:3]) > 0):
            return _Picture((0.0, 0.0, 0.0), None, None)
        return _Picture((red, green, blue), *((None, None) if texture is None else self._texture(texture)))

    def _picture(self, factor: Any, texture: dict[str, Any] | None) -> _Picture:
        values = _floats((1, 1, 1, 1) if factor is None else factor, 4)
        return _Picture(values, *((None, None) if texture is None else self._texture(texture)))

    def _texture(self, described: dict[str, Any]) -> tuple[Texture, Layout]:
        texture = self.item("textures", described["index"])
        extensions = texture.get("extensions", {})
        webp, basis = (extensions.get(name, {}) for name in ("EXT_texture_webp", "KHR_texture_basisu"))
        source = webp.get("source", texture.get("source", basis.get("source")))
        if source is None:
            names = ", ".join(sorted(extensions)) or "no source"
            raise ObjectError(f"a texture needs the glTF extension {names}, which is not read")
        sampler = self.item("samplers", texture["sampler"]) if "sampler" in texture else {}
        magnify = _MAGNIFY.get(sampler.get("magFilter"), "linear")
        key = (source, magnify == "nearest")
        if key not in self.images:
            self.images[key] = decode_image(*self.image_data(source), self.max_texture_pixels, nearest=key[1])
        made = Texture(
            self.images[key],
            _WRAPS[sampler.get("wrapS", 10497)],
            _WRAPS[sampler.get("wrapT", 10497)],
            magnify,
            _MINIFY.get(sampler.get("minFilter"), "mipmaps"),
        )
        transform = described.get("extensions", {}).get("KHR_texture_transform", {})
        uv_set = transform.get("texCoord", described.get("texCoord", 0))
        return made, Layout(uv_set, _transform(transform))


def _with_metal(diffuse: _Picture, specular: _Picture) -> _Picture:
    """A metal's colour is its specular one, and its diffuse one is black.

    A full conversion to metalness would whiten painted surfaces: many files leave the specular factor at its default of
    white.
    """
    if specular.texture is None:
        factor = specular.factor[:3]
        metal = max(factor) > _METAL_FACTOR and factor != (1, 1, 1)
        if not metal or diffuse.texture is not None or max(diffuse.factor[:3]) >= _BLACK:
            return diffuse
        return diffuse._replace(factor=(*factor, diffuse.factor[3]))
    if diffuse.texture is not None and diffuse.layout != specular.layout:
        return diffuse
    black, shining = diffuse.linear, specular.linear
    size = shining.shape if diffuse.texture is None else black.shape
    shining = _resized(shining, size)
    metal = (black.max(axis=-1) < _BLACK) & (shining.max(axis=-1) > _METAL)
    if not metal.any():
        return diffuse
    color = np.rint(255 * linear_to_srgb(np.where(metal[..., None], shining, black))).astype(np.uint8)
    if diffuse.texture is not None:
        color = np.dstack([color, diffuse.texture.pixels[..., 3:]])
    texture = replace(diffuse.texture or specular.texture, pixels=color)
    return _Picture((1.0, 1.0, 1.0, diffuse.factor[3]), texture, specular.layout)


def _resized(
    values: np.ndarray,  # [H, W] or [H, W, C]
    shape: tuple[int, ...],
) -> np.ndarray:
    """The values at the texels of a picture of another size."""
    height, width = shape[:2]
    if values.shape[:2] == (height, width):
        return values
    layers = values.reshape(*values.shape[:2], -1).astype(np.float32)
    resized = [Image.fromarray(layers[..., i]).resize((width, height), Image.Resampling.BILINEAR)
               for i in range(layers.shape[2])]  # fmt: skip
    return np.stack([np.asarray(layer) for layer in resized], axis=-1).reshape(height, width, *values.shape[2:])


def _floats(values: Any, count: int) -> tuple[float, ...]:
    array = np.asarray(values, np.float64)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ObjectError(f"a material has a colour of {values!r} where {count} numbers are needed")
    return tuple(array.clip(0, 1).tolist())


def _transform(transform: dict[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """KHR_texture_transform: translation * rotation * scale."""
    (x, y), (u, v) = transform.get("offset", (0, 0)), transform.get("scale", (1, 1))
    cos, sin = np.cos(transform.get("rotation", 0.0)), np.sin(transform.get("rotation", 0.0))
    return (float(cos * u), float(sin * v), float(x)), (float(-sin * u), float(cos * v), float(y))
