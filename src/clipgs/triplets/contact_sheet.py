"""The contact sheet: of each object the mesh beside its splat, with the caption under them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PICTURE_PIXELS = 168
GAP_PIXELS = 6  # between mesh and splat
MARGIN_PIXELS = 22
COLUMNS = 4
TEXT_LINES = 3

GROUND = (255, 255, 255)
FRAME = (222, 225, 230)
TEXT = (32, 36, 44)
FAINT = (118, 124, 134)


@dataclass(frozen=True)
class Sample:
    """One object of the sheet."""

    mesh: np.ndarray  # [H, W, 3] uint8
    splat: np.ndarray  # [H, W, 3] uint8
    caption: str
    psnr: float  # dB


def contact_sheet(samples: Sequence[Sample], title: str) -> Image.Image:
    """Draw the samples, `COLUMNS` in a row; equal samples give equal pixels on every machine."""
    cell_width = 2 * PICTURE_PIXELS + GAP_PIXELS
    small, line_height = _font(13), 17
    cell_height = PICTURE_PIXELS + 8 + (TEXT_LINES + 1) * line_height
    columns = max(1, min(COLUMNS, len(samples)))
    rows = -(-len(samples) // columns)
    width = MARGIN_PIXELS + columns * (cell_width + MARGIN_PIXELS)
    top = 78
    sheet = Image.new("RGB", (width, top + rows * (cell_height + MARGIN_PIXELS)), GROUND)
    draw = ImageDraw.Draw(sheet)
    heading = _wrap(title, _font(22, bold=True), width - 2 * MARGIN_PIXELS, 1)
    draw.text((MARGIN_PIXELS, 16), "".join(heading), TEXT, _font(22, bold=True))
    draw.text((MARGIN_PIXELS, 48), "Left the mesh, right its splat, from the same camera.", FAINT, small)
    for i, sample in enumerate(samples):
        left = MARGIN_PIXELS + (i % columns) * (cell_width + MARGIN_PIXELS)
        upper = top + (i // columns) * (cell_height + MARGIN_PIXELS)
        for picture, x in ((sample.mesh, left), (sample.splat, left + PICTURE_PIXELS + GAP_PIXELS)):
            size = (PICTURE_PIXELS, PICTURE_PIXELS)
            sheet.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), (x, upper))
            edge = (x, upper, x + PICTURE_PIXELS - 1, upper + PICTURE_PIXELS - 1)
            draw.rectangle(edge, outline=FRAME)
        y = upper + PICTURE_PIXELS + 6
        for line in _wrap(sample.caption, small, cell_width, TEXT_LINES):
            draw.text((left, y), line, TEXT, small)
            y += line_height
        draw.text((left, y), f"{sample.psnr:.1f} dB", FAINT, small)
    return sheet


def _font(pixels: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib brings DejaVu with it: no font of the system is needed, and every machine draws the same.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Lines that fit into `width` pixels, at most `lines`; what is left over becomes an ellipsis."""

    def fitting(text: str, suffix: str = "") -> int:
        """How many characters fit, one at least."""
        ends = range(1, len(text) + 1)
        return max(1, bisect_right(ends, width, key=lambda end: font.getlength(text[:end] + suffix)))

    wrapped = []
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
