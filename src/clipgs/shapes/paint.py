"""What a surface looks like: named colours, and small pictures that repeat (stripes, wood, bricks, ...)."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]
Picture = np.ndarray  # [H, W, 3] uint8 sRGB, first row on top

COLORS: dict[str, Color] = {
    "red": (200, 38, 38),
    "dark red": (128, 24, 32),
    "orange": (236, 122, 28),
    "yellow": (244, 196, 48),
    "green": (52, 142, 70),
    "dark green": (28, 84, 48),
    "light green": (142, 196, 92),
    "teal": (24, 136, 136),
    "turquoise": (66, 190, 190),
    "blue": (40, 92, 190),
    "light blue": (122, 178, 226),
    "navy blue": (26, 42, 92),
    "purple": (118, 62, 160),
    "pink": (236, 130, 164),
    "white": (240, 238, 232),
    "cream": (238, 222, 186),
    "beige": (212, 188, 150),
    "brown": (122, 76, 44),
    "dark brown": (74, 46, 30),
    "gray": (132, 136, 142),
    "light gray": (188, 192, 196),
    "dark gray": (66, 70, 76),
    "black": (32, 32, 36),
    "gold": (206, 160, 58),
    "silver": (178, 184, 192),
}
BRIGHT = ("red", "orange", "yellow", "green", "teal", "blue", "light blue", "purple", "pink")
WOODS: dict[str, tuple[Color, Color]] = {
    "oak": ((198, 152, 96), (164, 116, 66)),
    "pine": ((226, 188, 132), (200, 152, 94)),
    "walnut": ((116, 76, 48), (84, 52, 32)),
    "cherry": ((160, 84, 52), (126, 60, 36)),
}


@dataclass(frozen=True)
class Paint:
    """A material: a colour, or a picture, or (both absent) the colours of the mesh's own points."""

    color: Color | None = None
    png: bytes | None = None
    roughness: float = 0.9


def plain(name: str, roughness: float = 0.9) -> Paint:
    return Paint(color=COLORS[name], roughness=roughness)


def shaded(color: Color, factor: float) -> Color:
    """Darker (factor under 1) or lighter (over 1: towards white)."""
    red, green, blue = (
        round(channel * factor if factor <= 1 else channel + (255 - channel) * (factor - 1)) for channel in color
    )
    return red, green, blue


def linear(color: np.ndarray) -> np.ndarray:  # sRGB in [0, 1], any shape
    """IEC 61966-2-1's curve: glTF's factors and vertex colours are linear light."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def picture(pixels: Picture) -> Paint:
    return Paint(png=png(pixels))


def png(pixels: Picture) -> bytes:
    """A PNG of stored blocks, not deflated ones: zlib's libraries differ in how they pack the same pixels."""
    height, width, _ = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))
    blocks = [raw[at : at + 65535] for at in range(0, len(raw), 65535)]
    stream = b"\x78\x01" + b"".join(
        struct.pack("<BHH", at == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for at, block in enumerate(blocks)
    )
    stream += struct.pack(">I", zlib.adler32(raw))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in [0, 1): x rightward, y downward, [size, size] each."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    return x, y


def mix(amount: np.ndarray, one: Color, two: Color) -> Picture:
    """`one` where the amount is 0, `two` where it is 1; amount [H, W]."""
    amount = np.clip(amount, 0, 1)[..., None]
    return np.rint(np.array(one) * (1 - amount) + np.array(two) * amount).astype(np.uint8)


def stripes(one: Color, two: Color, upright: bool = True, size: int = 64) -> Paint:
    """One pair of bands a repeat: upright, or lying."""
    x, y = grid(size)
    return picture(mix((x if upright else y) >= 0.5, one, two))


def checks(one: Color, two: Color, size: int = 64) -> Paint:
    """Two by two squares a repeat."""
    x, y = grid(size)
    return picture(mix((x >= 0.5) ^ (y >= 0.5), one, two))


def dots(ground: Color, spot: Color, size: int = 64) -> Paint:
    """Two spots a repeat, in quincunx."""
    x, y = grid(size)
    near = np.minimum(np.hypot(x - 0.25, y - 0.25), np.hypot(x - 0.75, y - 0.75))
    return picture(mix((0.17 - near) * size + 0.5, ground, spot))


def plaid(ground: Color, line: Color, thin: Color, size: int = 96) -> Paint:
    """A tartan: broad bands both ways, darker where they cross, and a thin line between them."""
    x, y = grid(size)
    band = 0.45 * ((np.abs(x - 0.3) < 0.18).astype(float) + (np.abs(y - 0.3) < 0.18))
    pixels = mix(band, ground, line)
    pixels[(np.abs(x - 0.8) < 0.03) | (np.abs(y - 0.8) < 0.03)] = thin
    return picture(pixels)


def wood(kind: str, size: int = 128) -> Paint:
    """Grain along v, repeating both ways."""
    light, dark = WOODS[kind]
    x, y = grid(size)
    tau = 2 * np.pi
    bend = 0.05 * np.sin(tau * y) + 0.02 * np.sin(tau * (2 * y + x))
    grain = 0.5 + 0.5 * np.sin(tau * (5 * x + 2.2 * bend) + 1.4 * np.sin(tau * (2 * x + bend)))
    fine = 0.5 + 0.5 * np.sin(tau * (17 * x + 3 * bend + 0.3 * np.sin(tau * 3 * y)))
    return picture(mix(0.75 * grain**2 + 0.25 * fine, light, dark))


def planks(kind: str, rows: int = 4, size: int = 128) -> Paint:
    """Boards lying one above another, each of its own shade, with dark joints."""
    light, dark = WOODS[kind]
    return boards(light, dark, rows, size)


def boards(light: Color, dark: Color, rows: int = 4, size: int = 128) -> Paint:
    x, y = grid(size)
    row = np.floor(y * rows)
    shade = (row * 0.37) % 1
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (y * rows * 3 + 0.4 * np.sin(2 * np.pi * (x + shade))))
    pixels = mix(0.2 + 0.45 * shade + 0.2 * grain, light, dark)
    pixels[(y * rows) % 1 < 0.09] = shaded(dark, 0.55)
    return picture(pixels)


def bricks(brick: Color, mortar: Color, rows: int = 6, size: int = 128) -> Paint:
    """Running bond: every second row is set off by half a brick, each brick of its own shade."""
    x, y = grid(size)
    row = np.floor(y * rows)
    at = x * rows / 2 + 0.5 * (row % 2)
    number = np.floor(at) % (rows // 2)
    shade = (number * 0.41 + row * 0.29) % 1
    pixels = mix(shade, shaded(brick, 0.82), shaded(brick, 1.12))
    pixels[(at % 1 < 0.06) | (y * rows % 1 < 0.13)] = mortar
    return picture(pixels)


def tiles(color: Color, rows: int = 6, size: int = 128) -> Paint:
    """Roof tiles: rounded lower edges in offset rows, with a shadow under each."""
    x, y = grid(size)
    row = np.floor(y * rows)
    across = (x * rows + 0.5 * (row % 2)) % 1
    down = y * rows % 1
    rim = 0.92 - 0.5 * np.abs(across - 0.5) ** 2 * 2
    amount = 0.25 + 0.45 * (1 - down) + 0.5 * (down > rim)
    amount[(across < 0.05) & (down < rim)] = 0.85
    return picture(mix(amount, shaded(color, 1.1), shaded(color, 0.55)))


def label(ground: Color, band: Color, ink: Color, size: int = 128) -> Paint:
    """A printed label: bands on the rims, a disc with a ring, and lines of text too small to read."""
    x, y = grid(size)
    pixels = mix(np.zeros_like(x), ground, ground)
    pixels[(y < 0.12) | (y > 0.88)] = band
    middle = np.hypot((x * 2 % 1 - 0.5) * 1.5, y - 0.42)
    pixels[middle < 0.2] = band
    pixels[(middle > 0.23) & (middle < 0.26)] = ink
    near = np.abs(x * 2 % 1 - 0.5)
    pixels[(near < 0.28) & (np.abs(y - 0.73) < 0.022)] = ink
    pixels[(near < 0.2) & (np.abs(y - 0.8) < 0.016)] = ink
    return picture(pixels)


def sides(count: int, one: Color, two: Color, size: int = 128) -> Paint:
    """Bands by turns, `count` across one repeat."""
    x, _ = grid(size)
    return picture(mix(np.floor(x * count) % 2, one, two))


def gradient(low: Color, high: Color, start: float, end: float) -> Callable[[np.ndarray], np.ndarray]:
    """Colours by height for `Mesh.tint`: `low` up to y = start, `high` from y = end."""

    def color_at(points: np.ndarray) -> np.ndarray:
        amount = np.clip((points[:, 1:2] - start) / (end - start), 0, 1)
        return (np.array(low) * (1 - amount) + np.array(high) * amount) / 255

    return color_at


def mottled(color: Color, size: float, strength: float = 0.22) -> Callable[[np.ndarray], np.ndarray]:
    """Soft patches lighter and darker for `Mesh.tint`, a patch every `size` metres or so."""

    def color_at(points: np.ndarray) -> np.ndarray:
        x, y, z = (points * (6.0 / size)).T
        wave = np.sin(x + 1.7 * np.sin(0.8 * y)) + np.sin(1.3 * y + 1.1 * np.sin(z)) + np.sin(0.9 * z + x * 0.7)
        return np.array(color) / 255 * (1 + strength * wave[:, None] / 2)

    return color_at
