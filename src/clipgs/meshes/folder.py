"""Reads the files that an object's file names. It never reads outside the object's folder or from a network."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from clipgs.catalog.named_files import NamedFiles, shown
from clipgs.core.errors import ObjectError
from clipgs.meshes import ktx2
from clipgs.meshes.materials import LINEAR, linear_to_srgb

# The formats that meshes use for textures. Pillow knows more, and some of them start programs or read other files.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "GIF", "TIFF")
# A view has at most 2,048 pixels a side, so a larger texture costs memory and adds nothing.
_MAX_TEXTURE_SIDE = 2048


class Folder(NamedFiles):
    """The files that a mesh may open, and its pictures.

    Attributes:
        notes: what was read in another way than the file says, as whole phrases.
    """

    def __init__(
        self, path: Path, max_texture_pixels: int, root: Path | None = None, *, needs_materials: bool = True
    ) -> None:
        super().__init__(path, root)
        self.max_texture_pixels = max_texture_pixels
        self.needs_materials = needs_materials
        self.notes: list[str] = []

    def image(self, *names: str, beside: Path | None = None) -> np.ndarray:
        """The texture in the file that `find` finds, as `decode_image` returns it."""
        data = self.get(*names, beside=beside, picture=True)
        return decode_image(data, names[0].strip(), self.max_texture_pixels)


def decode_image(data: bytes, name: str, max_pixels: int, *, nearest: bool = False) -> np.ndarray:
    """Decodes a texture, after its header has been checked.

    Returns uint8 [H, W, 3] or, with transparency, [H, W, 4]; sides over 2,048 are reduced by a whole factor, by the
    mean of their light or, if its texels must not be mixed (`nearest`), by leaving texels out.

    Raises:
        ObjectError: it is not an image of a known format, is damaged, or has more than `max_pixels` pixels.
    """
    if data.startswith(ktx2.MAGIC):
        return _reduced(ktx2.ktx2_image(data, name, max_pixels), nearest)
    label = shown(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about large images and odd metadata
            with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    size = f"{width} x {height} pixels"
                    raise ObjectError(f"its texture {label} has {size}, more than the limit of {max_pixels}")
                image.load()
                return _reduced(np.asarray(_eight_bit(image)), nearest)
    except Image.DecompressionBombError as error:
        raise ObjectError(f"its texture {label} has more pixels than the limit of {max_pixels}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        reason = "is not an image that can be read" if "cannot identify" in str(error) else f"is damaged ({error})"
        raise ObjectError(f"its texture {label} {reason}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip; mode I is wider, and may hold bytes
        values = np.asarray(image).astype(np.int64)
        wide = image.mode != "I" or values.max(initial=0) > 255
        image = Image.fromarray((values >> 8 if wide else values).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _reduced(
    pixels: np.ndarray,  # [H, W, C] uint8
    nearest: bool,
) -> np.ndarray:
    height, width, channels = pixels.shape
    factor = -(-max(height, width) // _MAX_TEXTURE_SIDE)
    if factor == 1:
        return pixels
    down, along = min(factor, height), min(factor, width)
    if nearest:
        return np.ascontiguousarray(pixels[down // 2 :: down, along // 2 :: along])
    rows = []
    for top in range(0, height, down * 64):  # in strips, since light takes eight times the memory
        strip = pixels[top : top + down * 64]
        light = np.concatenate([LINEAR[strip[..., :3]], strip[..., 3:] / 255], axis=-1)
        for axis, size in ((0, down), (1, along)):
            starts = np.arange(0, light.shape[axis], size)
            counts = np.diff(starts, append=light.shape[axis])
            light = np.add.reduceat(light, starts, axis) / np.expand_dims(counts, [1 - axis, 2])
        rows.append(np.rint(255 * np.concatenate([linear_to_srgb(light[..., :3]), light[..., 3:]], axis=-1)))
    return np.concatenate(rows).astype(np.uint8).reshape(-1, -(-width // along), channels)
