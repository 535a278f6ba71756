"""Reads the files that an object's file names. It never reads outside the object's folder or from a network."""

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes import ktx2
from clipgs.meshes.materials import LINEAR, linear_to_srgb

# The formats that meshes use for textures. Pillow knows more, and some of them start programs or read other files.
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TGA", "GIF", "TIFF")
# A view has at most 2,048 pixels a side, so a larger texture costs memory and adds nothing.
_MAX_TEXTURE_SIDE = 2048
# Where pictures lie beside an object, in ShapeNetCore.v2, Google Scanned Objects and others.
_NEAR = (
    *("textures", "texture", "images", "materials", "maps", "materials/textures"),
    *("..", "../textures", "../texture", "../images", "../materials", "../maps", "../materials/textures"),
)


class Folder:
    """Opens files in the folder of an object's file, or below it; or anywhere below `root`, a folder of the user's.

    Whatever a name says, a file is opened only if its path, with links resolved, lies there. A file that is not where
    its name says is looked for:

    - with a name that differs in case, if there is one only;
    - of a path with a drive or a root (another machine's) and of a path that leads nowhere: by its last part, beside;
    - of a picture: by the last part in the folders where data sets keep them, such as `../materials/textures`.
    """

    def __init__(self, path: Path, max_texture_pixels: int, root: Path | None = None) -> None:
        self.home = path.parent.resolve()
        self.root = self.home if root is None else root.resolve()
        self.max_texture_pixels = max_texture_pixels

    def find(self, *names: str, beside: Path | None = None, picture: bool = False) -> Path | None:
        """The file of the first of the names that leads to one; None if none does.

        Args:
            names: spellings of one name, the likeliest first.
            beside: the folder of the file that has the name; by default that of the object.
            picture: it is one, so it is also looked for in the folders that pictures have.
        """
        folders = list(dict.fromkeys([beside or self.home, self.home]))
        paths = [path for name in names if (path := _relative(name)) is not None]
        paths = list(dict.fromkeys([*paths, *(path.strip() for path in paths)]))  # a name may begin with a blank
        tries = [(folder, path) for path in paths for folder in folders if not path.startswith("/")]
        lasts = list(dict.fromkeys(path.rpartition("/")[2] for path in paths))
        tries += [(folder, last) for last in lasts for folder in folders]
        if picture:
            tries += [(folder, f"{near}/{last}") for last in lasts for folder in folders for near in _NEAR]
        for exact in (True, False):
            for folder, relative in tries:
                found = self._at(folder, relative, exact=exact)
                if found is not None:
                    return found
        return None

    def _at(self, folder: Path, relative: str, *, exact: bool) -> Path | None:
        """The file at a relative path, if it may be opened."""
        try:
            path = (folder / relative).resolve() if exact else self._in_other_case(folder.resolve(), relative)
            return path if path is not None and self._allowed(path) and path.is_file() else None
        except (OSError, RuntimeError, ValueError):  # a name that is too long, a loop of links, no permission, a NUL
            return None

    def _allowed(self, path: Path) -> bool:
        return path.is_relative_to(self.root) or path.is_relative_to(self.home)

    def _in_other_case(self, path: Path, relative: str) -> Path | None:
        """As `folder / relative`, where the one entry of a folder with the same letters in another case will do."""
        for part in relative.split("/"):
            if not self._allowed(path):  # no other folder is listed
                return None
            following = path / part
            if part not in ("", ".", "..") and not following.exists():
                alike = [name for name in os.listdir(path) if name.casefold() == part.casefold()]
                if len(alike) != 1:
                    return None
                following = path / alike[0]
            path = following.resolve()
        return path

    def get(self, *names: str, beside: Path | None = None, picture: bool = False) -> bytes:
        """Bytes of the file that `find` finds.

        Raises:
            ObjectError: there is no such file, or it may not be opened.
        """
        path = self.find(*names, beside=beside, picture=picture)
        if path is None:
            raise ObjectError(self._reason(names[0], beside or self.home))
        return self.bytes_of(path)

    def bytes_of(self, path: Path) -> bytes:
        """Bytes of a file that `find` has found."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise ObjectError(f"it names {_shown(path.name)}, which could not be read: {error}") from error

    def _reason(self, name: str, beside: Path) -> str:
        shown, relative = _shown(name.strip()), _relative(name)
        if relative is None or relative.startswith("/"):
            return f"it names {shown}, which is not a file in its own folder, so it was not opened"
        try:
            path = (beside / relative).resolve()
            if not self._allowed(path):
                how = "which" if ".." in relative.split("/") else "a link that"
                return f"it names {shown}, {how} leads out of {self._place()}, so it was not opened"
        except (OSError, RuntimeError) as error:
            return f"it names {shown}, which could not be read: {error}"
        return f"it names {shown}, which is missing from its folder"

    def _place(self) -> str:
        return "its own folder" if self.root == self.home else f"the folder {self.root.name}"

    def image(self, *names: str, beside: Path | None = None) -> np.ndarray:
        """The texture in the file that `find` finds, as `decode_image` returns it."""
        data = self.get(*names, beside=beside, picture=True)
        return decode_image(data, names[0].strip(), self.max_texture_pixels)


def _relative(name: str) -> str | None:
    """A name with forward slashes; with one in front if it is a path of another machine. None if it is a URL."""
    path = name.replace("\\", "/")
    if re.match(r"\s*[A-Za-z]:", path):
        return "/" + path.strip()[2:].lstrip("/")
    if "\0" in path or not path.strip() or re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:", path):
        return None
    return path


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:97] + "...")


def decode_image(data: bytes, name: str, max_pixels: int, *, nearest: bool = False) -> np.ndarray:
    """Decodes a texture, after its header has been checked.

    Returns uint8 [H, W, 3] or, with transparency, [H, W, 4]; sides over 2,048 are reduced by a whole factor, by the
    mean of their light or, if its texels must not be mixed (`nearest`), by leaving texels out.

    Raises:
        ObjectError: it is not an image of a known format, is damaged, or has more than `max_pixels` pixels.
    """
    if data.startswith(ktx2.MAGIC):
        return _reduced(ktx2.ktx2_image(data, name, max_pixels), nearest)
    shown = _shown(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about large images and odd metadata
            with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    size = f"{width} x {height} pixels"
                    raise ObjectError(f"its texture {shown} has {size}, more than the limit of {max_pixels}")
                image.load()
                return _reduced(np.asarray(_eight_bit(image)), nearest)
    except Image.DecompressionBombError as error:
        raise ObjectError(f"its texture {shown} has more pixels than the limit of {max_pixels}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as error:
        reason = "is not an image that can be read" if "cannot identify" in str(error) else f"is damaged ({error})"
        raise ObjectError(f"its texture {shown} {reason}") from error


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
