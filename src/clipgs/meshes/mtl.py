"""Reads the material libraries (MTL) that an OBJ file names.

What programs write decides where the format is vague:

- Kd and Ke are display colours (sRGB), but linear light in a library by Blender, whose first line says so.
- A picture (map_Kd) replaces Kd, because exporters write any value beside it. Of its options -s, -o and -clamp count.
- The opacity is d, or 1 - Tr where there is no d. Only a number between 0 and 1 counts: programs write either of both
  ends for an opaque material, and Tr both ways round.
- map_d cuts holes. It is the picture's alpha or, if it has none, its grey; it lies as map_Kd does.
- Ke without a picture (map_Ke) glows only where the colour is black: converters store ambient light in it.
- The first definition of a material counts.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from clipgs.catalog.named_files import (
    NUMBER,
    PLAIN,
    Layout,
    PictureStatement,
    bare,
    decoded,
    picture_statement,
    spellings,
)
from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import AlphaMode, Material, Texture, Wrap, srgb_to_linear

_EMPTY, _SOLID = 25, 230  # alphas between them are of a surface that is seen through, or of a hole's edge
_BLACK, _WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Surface:
    """A material, and how its pictures lie."""

    material: Material
    layout: Layout = PLAIN
    glow_layout: Layout = PLAIN
    without_uv: Material | None = None  # of faces without texture coordinates; None: the same


class Library:
    """The materials of an OBJ file, by name.

    Pictures are read where a material is asked for, but none without `pictures`: no face has texture coordinates.
    """

    def __init__(self, folder: Folder, neutral: Material, *, pictures: bool) -> None:
        self._folder, self._neutral, self._has_pictures = folder, neutral, pictures
        self._described: dict[str, tuple[dict[str, str], Path, bool]] = {}  # statements, the library's folder, linear
        self._bare: dict[str, str] = {}  # a name without its comment to the name
        self._pictures: dict[tuple[str, Path], np.ndarray] = {}

    def add(self, path: Path) -> None:
        """Adds the materials of the library in `path`."""
        text = decoded(self._folder.bytes_of(path)).replace("\r", "\n")
        # Blender writes "# Blender 4.2.0 MTL File: 'a.blend'", older versions "# Blender MTL File: 'None'". Versions
        # before 2.50 name themselves Blender3D: their colours are those of the display.
        linear = text.lstrip().startswith("# Blender ")
        statements: dict[str, str] = {}  # those before the first material belong to none
        for line in text.split("\n"):
            key, _, rest = line.strip().replace("\t", " ").partition(" ")
            if key.lower() == "newmtl":
                statements = {}
                self._described.setdefault(rest.strip(), (statements, path.parent, linear))
                self._bare.setdefault(bare(rest), rest.strip())
            elif key and key[0] != "#":
                statements[key.lower()] = rest.strip()

    def find(self, name: str) -> str | None:
        """The name as its library writes it, where either may have a comment behind it; None if none has it."""
        return name if name in self._described else self._bare.get(name, self._bare.get(bare(name)))

    def only(self) -> str | None:
        """The material of faces that name none, where there is no doubt: the only one, or the only one with a picture.

        Raises:
            ObjectError: several materials have a picture.
        """
        if len(self._described) == 1:
            return next(iter(self._described))
        described = {name: statements for name, (statements, _, _) in self._described.items()}
        textured = [name for name, own in described.items() if picture_statement(own.get("map_kd", ""))]
        if len(textured) > 1:
            raise ObjectError(
                f"its material library has {len(self._described)} materials, and no usemtl says which its faces have"
            )
        return textured[0] if textured else None

    def surface(self, name: str) -> Surface:
        """The material `name`; the neutral one if it has no colour or is not defined."""
        if name not in self._described:
            return Surface(self._neutral)
        statements, beside, linear = self._described[name]
        opacity = _opacity(statements)
        diffuse, glow = (_color(statements.get(key, ""), linear=linear) for key in ("kd", "ke"))
        color, cut, glowing = (picture_statement(statements.get(key, "")) for key in ("map_kd", "map_d", "map_ke"))
        glow = None if glow == _BLACK else glow
        if diffuse is None:
            diffuse = self._neutral.base_color_factor[:3] if glow is None else _BLACK
        without_uv = Material(
            (*diffuse, opacity),
            emissive_factor=glow if glow is not None and diffuse == _BLACK and color is None else _BLACK,
            alpha_mode="BLEND" if opacity < 1 else "OPAQUE",
        )
        if not self._has_pictures or (color is None and cut is None and glowing is None):
            return Surface(without_uv)

        material = replace(without_uv, base_color_factor=(1.0, 1.0, 1.0, opacity)) if color else without_uv
        if base := color or cut:
            pixels, holes = self._with_holes(color, cut, beside)
            texture = Texture(pixels, *_wraps(base))
            material = replace(material, base_color_texture=texture, alpha_mode="BLEND" if opacity < 1 else holes)
        if glowing:
            emitted = Texture(self._picture(glowing, beside)[..., :3], *_wraps(glowing))
            material = replace(material, emissive_factor=glow or _WHITE, emissive_texture=emitted)
        layout = (base or glowing or PictureStatement("")).layout
        return Surface(material, layout, glowing.layout if glowing else layout, without_uv)

    def _picture(self, described: PictureStatement, beside: Path) -> np.ndarray:
        key = described.name, beside
        if key not in self._pictures:
            self._pictures[key] = self._folder.image(*spellings(described.name), beside=beside)
        return self._pictures[key]

    def _with_holes(
        self, color: PictureStatement | None, cut: PictureStatement | None, beside: Path
    ) -> tuple[np.ndarray, AlphaMode]:
        """The picture of map_Kd with the alpha of map_d, uint8 [H, W, 3 or 4], and how the alpha counts."""
        pixels = None if color is None else self._picture(color, beside)
        if cut is None or (color is not None and cut.name == color.name):  # a photograph is not its own holes
            assert pixels is not None
            return pixels, "MASK" if _has_alpha(pixels) else "OPAQUE"
        mask = self._picture(cut, beside)
        alpha = mask[..., 3] if _has_alpha(mask) else np.asarray(Image.fromarray(mask[..., :3]).convert("L"))
        if pixels is None:
            pixels = np.full((*alpha.shape, 3), 255, np.uint8)
        elif alpha.shape != pixels.shape[:2]:
            alpha = np.asarray(Image.fromarray(alpha).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR))
        clear = int((alpha < _SOLID).sum())
        thin = clear - int((alpha <= _EMPTY).sum())
        mode: AlphaMode = "OPAQUE" if not clear else "BLEND" if thin > clear / 2 else "MASK"
        return np.dstack([pixels[..., :3], alpha]), mode


def _has_alpha(
    pixels: np.ndarray,  # [H, W, 3 or 4] uint8
) -> bool:
    return pixels.shape[2] == 4 and bool(pixels[..., 3].min() < 255)


def _wraps(described: PictureStatement) -> tuple[Wrap, Wrap]:
    return ("clamp", "clamp") if described.clamped else ("repeat", "repeat")


def _words(text: str) -> list[float]:
    """The numbers at the beginning of a statement."""
    numbers = []
    for word in text.split():
        if not re.fullmatch(NUMBER, word):
            break
        numbers.append(float(word))
    return numbers


def _color(text: str, *, linear: bool) -> tuple[float, float, float] | None:
    """A linear colour of one number or three; None if there is none, as in `spectral` and `xyz`."""
    numbers = _words(text)
    if not numbers:
        return None
    color = np.clip(numbers[:3] if len(numbers) >= 3 else numbers[:1] * 3, 0, 1)
    red, green, blue = (color if linear else srgb_to_linear(color)).tolist()
    return red, green, blue


def _opacity(statements: dict[str, str]) -> float:
    numbers = _words(statements["d"].removeprefix("-halo")) if "d" in statements else []
    if not numbers:
        numbers = [1 - number for number in _words(statements.get("tr", ""))]
    return numbers[0] if numbers and 0 < numbers[0] < 1 else 1.0
