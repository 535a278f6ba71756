"""Image files. Imports no torch, so that worker processes that only decode start fast."""

import io

import numpy as np
from PIL import Image

from clipgs.core.bundles import Members

WEBP_METHOD = 4  # libwebp's effort, 0 to 6: above 4, encoding takes twice as long and saves 1 % of the bytes


def to_webp(
    image: np.ndarray,  # [H, W, 3] uint8
    quality: int,
) -> bytes:
    """The image as lossy WebP of `quality` 0 to 100; equal images give equal bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=WEBP_METHOD)
    return buffer.getvalue()


def from_image(data: bytes) -> np.ndarray:
    """The image in a WebP or PNG, [H, W, 3] uint8, over white where it is transparent."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode == "RGB":
            return np.asarray(image)
        rgba = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def read_all(members: Members) -> np.ndarray:
    """One object's images in a tar, all of one size, as [V, H, W, 3] uint8."""
    return np.stack([from_image(data) for data in members.read().values()])


def read_resized(task: tuple[list[bytes], int]) -> np.ndarray:
    """Images in V files as [V, pixels, pixels, 3] uint8, resized by Pillow (bicubic)."""
    files, pixels = task
    pictures = [Image.fromarray(from_image(data)) for data in files]
    return np.stack([np.asarray(picture.resize((pixels, pixels), Image.Resampling.BICUBIC)) for picture in pictures])
