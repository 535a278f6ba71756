"""The contact sheet: the mesh and the splat of each object side by side, with the caption below."""

from bisect import bisect_right
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURE_PIXELS = 168
GAP_PIXELS = 6  # between mesh and splat, and above the caption
MARGIN_PIXELS = 22
COLUMNS = 4
TEXT_LINES = 3
LINE_PIXELS = 17
HEADING_PIXELS = 78
MAX_ZOOM = 2  # single pixels show beyond this

BACKGROUND = (255, 255, 255)
FRAME = (222, 225, 230)
TEXT = (32, 36, 44)
FAINT = (118, 124, 134)

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


class Sample(NamedTuple):
    """One object of the sheet."""

    mesh: np.ndarray  # [H, W, 3] uint8
    splat: np.ndarray  # [H, W, 3] uint8
    caption: str
    psnr: float | None  # dB; None for a ready splat


def contact_sheet(samples: Sequence[Sample], title: str) -> Image.Image:
    """Draws the samples, `COLUMNS` in a row. Equal samples give equal pixels on every machine."""
    small, large = font(13), font(22, bold=True)
    cell_width = 2 * PICTURE_PIXELS + GAP_PIXELS
    columns = max(1, min(COLUMNS, len(samples)))
    width = MARGIN_PIXELS + columns * (cell_width + MARGIN_PIXELS)
    captions = [wrap(sample.caption, small, cell_width, TEXT_LINES) for sample in samples]
    tops = [HEADING_PIXELS]
    for first in range(0, len(samples), columns):
        lines = max(map(len, captions[first : first + columns])) + 1
        tops.append(tops[-1] + PICTURE_PIXELS + GAP_PIXELS + lines * LINE_PIXELS + MARGIN_PIXELS)

    sheet = Image.new("RGB", (width, tops[-1]), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PIXELS, 16), "".join(wrap(title, large, width - 2 * MARGIN_PIXELS, 1)), TEXT, large)
    draw.text((MARGIN_PIXELS, 48), "Left the mesh, right its splat.", FAINT, small)
    for i, (sample, caption) in enumerate(zip(samples, captions, strict=True)):
        left = MARGIN_PIXELS + (i % columns) * (cell_width + MARGIN_PIXELS)
        top = tops[i // columns]
        common = max(len(sample.mesh), len(sample.splat))
        pair = [_resized(Image.fromarray(picture), common) for picture in (sample.mesh, sample.splat)]
        box = box_of(*map(np.asarray, pair))
        for picture, x in zip(pair, (left, left + PICTURE_PIXELS + GAP_PIXELS), strict=True):
            sheet.paste(_resized(picture, PICTURE_PIXELS, box), (x, top))
            draw.rectangle((x, top, x + PICTURE_PIXELS - 1, top + PICTURE_PIXELS - 1), outline=FRAME)
        y = top + PICTURE_PIXELS + GAP_PIXELS
        for line in caption:
            draw.text((left, y), line, TEXT, small)
            y += LINE_PIXELS
        draw.text((left, y), "ready splat" if sample.psnr is None else f"{sample.psnr:.1f} dB", FAINT, small)
    return sheet


def _resized(picture: Image.Image, pixels: int, box: Box | None = None) -> Image.Image:
    return picture.resize((pixels, pixels), Image.Resampling.BICUBIC, box)


def box_of(
    mesh: np.ndarray,  # [S, S, 3] uint8
    splat: np.ndarray,  # [S, S, 3] uint8
) -> Box:
    """The square that holds the object in both pictures, with a margin."""
    size = len(mesh)
    seen = (np.minimum(mesh, splat) < 245).any(axis=-1)
    if not seen.any():
        return (0, 0, size, size)
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    extent = 1.12 * max(np.ptp(rows), np.ptp(columns)) + 2
    side = float(np.clip(extent, size / MAX_ZOOM, size))
    left, upper = (float(np.clip((edges[0] + edges[-1] + 1 - side) / 2, 0, size - side)) for edges in (columns, rows))
    return (left, upper, left + side, upper + side)


def font(pixels: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of all drawn text."""
    # Every machine has the DejaVu that matplotlib brings, and draws the same pixels. matplotlib itself loads slowly.
    (folder,) = find_spec("matplotlib").submodule_search_locations  # type: ignore[union-attr, misc]
    path = Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Text in at most `lines` lines of `width` pixels; an ellipsis replaces the rest."""

    def fitting(text: str, suffix: str = "") -> int:
        """How many characters fit; at least one."""
        ends = range(1, len(text) + 1)
        return max(1, bisect_right(ends, float(width), key=lambda end: font.getlength(text[:end] + suffix)))

    wrapped: list[str] = []
    rest = text
    while rest and len(wrapped) < lines:
        end, suffix = fitting(rest), ""
        if end < len(rest) and len(wrapped) == lines - 1:
            suffix = "\N{HORIZONTAL ELLIPSIS}"
            end = fitting(rest, suffix)
        if end < len(rest) and not rest[end].isspace() and " " in rest[:end]:
            end = rest.rindex(" ", 0, end)
        wrapped.append(rest[:end].rstrip() + suffix)
        rest = rest[end:].lstrip()
    return wrapped
