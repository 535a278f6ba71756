"""Reads KTX2 textures of KHR_texture_basisu, if the extra `ktx2` is installed."""

import struct

import numpy as np

from clipgs.core.errors import ObjectError

MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"


def ktx2_image(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    """The largest level of a texture: uint8 [H, W, 3] or, with alpha, [H, W, 4].

    Raises:
        ObjectError: the extra is not installed, or the texture is damaged, of another kind than the extension's, or has
            more than `max_pixels` pixels.
    """
    if len(data) < 80:
        raise ObjectError(f"its texture {name[:100]!r} ends within its header")
    width, height = struct.unpack_from("<II", data, 20)
    if width * height > max_pixels:
        size = f"{width} x {height} pixels"
        raise ObjectError(f"its texture {name[:100]!r} has {size}, more than the limit of {max_pixels}")
    try:
        import opengl_basisu
    except ImportError as error:
        how = "pip install 'clipgs[ktx2]' adds what reads it"
        raise ObjectError(f"its texture {name[:100]!r} is KTX2 (KHR_texture_basisu): {how}") from error
    try:
        texture = opengl_basisu.open(data)
        pixels = texture.transcode("rgba8").data
    except (opengl_basisu.BasisuError, MemoryError) as error:
        raise ObjectError(f"its texture {name[:100]!r} could not be decoded: {error}") from error
    return np.ascontiguousarray(pixels[..., : 4 if texture.has_alpha else 3])
