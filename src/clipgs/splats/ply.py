"""PLY files of splats, in the layout that splat viewers read: bytes from and to rows of 14 numbers.

Imports no torch.
"""

import io
import logging
import re
import tempfile
from typing import NamedTuple

import numpy as np
from plyfile import PlyData

from clipgs.core.ply_header import END, SPLAT_PROPERTIES, parse_ply_header, splat_lacks
from clipgs.splats.order import farthest_point_order

logger = logging.getLogger(__name__)

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, sqrt(1 / (4 pi))
COMMENT = "clipgs 1 order=fps frame=y-up"

MAX_HEADER_BYTES = 1 << 20
MAX_LOGIT = 30.0  # files may have infinite logits; at this one, sigmoids are already 0 or 1 and their gradient is 0
FLAT = 1e-6  # the scale of a flat Gaussian across its plane, as other programs read it
_FAR = 100  # sizes from the origin; there float32 still resolves a hundred-thousandth of the size


class PlySplat(NamedTuple):
    """What the PLY of a splat holds."""

    rows: np.ndarray  # [N, 14] float32, finite, in the order of SPLAT_PROPERTIES, in farthest-point order
    origin: np.ndarray  # [3] float64, was taken off the positions; zeros but for float64 positions far from the origin
    notes: list[str]  # what was dropped or replaced


def to_bytes(
    rows: np.ndarray,  # [N, 14] in the order of SPLAT_PROPERTIES
) -> bytes:
    """The PLY of one splat, its rows in farthest-point order.

    Binary little-endian float32, raw values; equal rows give equal bytes.

    Raises:
        ValueError: a value that is not finite.
    """
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        count = int(bad.any(axis=1).sum())
        raise ValueError(
            f"the Gaussians: {SPLAT_PROPERTIES[column]} of row {row} is not a finite number ({count} such rows)."
        )
    rows = rows[farthest_point_order(rows[:, :3])]
    return _header(len(rows)) + rows.astype("<f4").tobytes()


def read(data: bytes, name: str) -> PlySplat:
    """Any splat PLY; the errors begin with `name`.

    The properties may have any order and number type, the file may be text or binary of either byte order, and other
    properties are ignored. Spherical harmonics above degree 0 are dropped, and the log says so. Rows with a value that
    is not a number, or with a quaternion of zeros, are dropped. Infinite opacity logits and log-scales of -inf are
    values (opaque, transparent, flat), and become finite ones.

    Raises:
        ValueError: not a splat, cut short, empty, or without a row that can be used.
    """
    own = _own_rows(data)
    found, ordered = _foreign(data, name) if own is None else (PlySplat(own, np.zeros(3), []), True)
    rows, notes = _usable(found.rows, name)
    if not ordered or len(rows) < len(found.rows):
        rows = rows[farthest_point_order(rows[:, :3])]
    return PlySplat(rows, found.origin, found.notes + notes)


def _usable(
    rows: np.ndarray,  # [N, 14] float32
    name: str,
) -> tuple[np.ndarray, list[str]]:  # [n, 14]
    """The rows that are Gaussians, with finite values; and notes of what was dropped or replaced."""
    notes = []
    if not np.isfinite(rows).all():
        rows = rows.copy()
        logits, log_scales = rows[:, 6], rows[:, 7:10]
        infinite, flat = np.isinf(logits), np.isneginf(log_scales)
        logits[infinite] = np.copysign(np.float32(MAX_LOGIT), logits[infinite])
        log_scales[flat] = np.log(FLAT)
        if infinite.any():
            notes.append(f"{infinite.sum()} infinite opacity logits became {MAX_LOGIT:g} or -{MAX_LOGIT:g}")
        if flat.any():
            notes.append(f"{flat.sum()} scales of zero became {FLAT:g}")
    finite, turned = np.isfinite(rows).all(axis=1), np.abs(rows[:, 10:]).max(axis=1) != 0
    kept = finite & turned
    if kept.all():
        return rows, notes
    reasons = {"values that are not finite numbers": ~finite, "a quaternion of zeros": ~turned}
    listed = ", ".join(f"{bad.sum()} with {reason}" for reason, bad in reasons.items() if bad.any())
    if not kept.any():
        raise ValueError(f"{name}: none of its {len(rows)} Gaussians can be used: {listed}.")
    notes.append(f"{len(rows) - kept.sum()} of {len(rows)} Gaussians are dropped: {listed}")
    return rows[kept], notes


def _header(count: int) -> bytes:
    """The header that `to_bytes` writes."""
    lines = ["ply", "format binary_little_endian 1.0", f"comment {COMMENT}", f"element vertex {count}"]
    return "\n".join([*lines, *(f"property float {name}" for name in SPLAT_PROPERTIES), "end_header", ""]).encode()


def _own_rows(data: bytes) -> np.ndarray | None:  # [N, 14]
    """The rows of a file that `to_bytes` wrote; None if its header or its length differs in a byte.

    Parsing a header takes a millisecond and holds the GIL; this does not, so threads can read many splats at once.
    """
    found = re.search(rb"\nelement vertex ([1-9]\d*)\n", data[: len(_header(0)) + 20])
    header = _header(int(found[1])) if found else b""
    if not found or not data.startswith(header) or len(data) != len(header) + int(found[1]) * 4 * len(SPLAT_PROPERTIES):
        return None
    return np.frombuffer(data, "<f4", offset=len(header)).reshape(-1, len(SPLAT_PROPERTIES))


def _foreign(data: bytes, name: str) -> tuple[PlySplat, bool]:
    """Any splat PLY, its values as they are in the file, and whether its rows are in farthest-point order."""
    columns, text = _check_header(data, name)
    head, end, body = data.partition(END)
    notes: list[str] = []
    try:
        # plyfile reads the rows one by one from memory (a quarter of a second), but all at once from a file.
        with io.BytesIO() if text else tempfile.TemporaryFile() as file:
            # plyfile reads comments as ASCII only.
            file.writelines([head.decode("ascii", "replace").encode("ascii", "replace"), end, body])
            file.seek(0)
            ply = PlyData.read(file)
        vertices = ply["vertex"].data
        with np.errstate(over="ignore", invalid="ignore"):  # a double too large for float32 becomes infinite
            xyz, origin = _near_origin(np.stack([vertices[axis] for axis in "xyz"], axis=1))
            rows = np.empty((len(xyz), len(SPLAT_PROPERTIES)), np.float32)
            rows[:, :3] = xyz
            for i, column in enumerate(SPLAT_PROPERTIES[3:], 3):
                rows[:, i] = vertices[column] if column in columns else np.log(FLAT)
            if "f_dc_0" not in columns:
                colors = np.stack([vertices[channel] for channel in ("red", "green", "blue")], axis=1)
                rows[:, 3:6] = (_fractions(colors) - 0.5) / SH_C0
    except OSError:
        raise
    except Exception as error:  # of plyfile and, where plyfile does not check, of numpy
        raise ValueError(f"{name}: the PLY cannot be read ({error}).") from error
    if "scale_2" not in columns:
        notes.append(f"flat Gaussians without scale_2, which became {FLAT:g}")
    if "f_dc_0" not in columns:
        notes.append("the colours are those of red, green and blue")
    higher = sum(column.startswith("f_rest_") for column in columns)
    if higher:
        logger.info("%s: %d spherical harmonics above degree 0 are dropped.", name, higher)
    ordered = any(comment.startswith("clipgs 1 ") and "order=fps" in comment for comment in ply.comments)
    return PlySplat(rows, origin, notes), ordered


def _near_origin(
    xyz: np.ndarray,  # [N, 3]
) -> tuple[np.ndarray, np.ndarray]:  # [N, 3], [3] float64
    """Positions less the origin of their own that float64 positions get where float32 would lose their digits."""
    if xyz.dtype == np.float64:
        finite = xyz[np.isfinite(xyz).all(axis=1)]
        middle = np.median(finite, axis=0) if len(finite) else np.zeros(3)
        size = np.median(np.abs(finite - middle).max(axis=1)) if len(finite) else 0.0
        if np.abs(middle).max() > _FAR * size:
            return xyz - middle, middle
    return xyz, np.zeros(3)


def _fractions(
    colors: np.ndarray,  # [N, 3]
) -> np.ndarray:  # [N, 3] float64 in [0, 1]
    """Colours of 0 to 255, as shares of it; also of 0 to 65535 in 16 bits, or of 0 to 1 in floating point."""
    if colors.dtype.kind == "f" and not np.nanmax(colors, initial=0) > 1:
        return colors.astype(np.float64)
    return colors / (65535 if colors.dtype.itemsize == 2 else 255)


def _check_header(data: bytes, name: str) -> tuple[list[str], bool]:
    """Names of the vertex properties, and whether the file is text; refuses what is no splat or is cut short."""
    if not data:
        raise ValueError(f"{name}: the file is empty.")
    if data[:3] != b"ply":
        raise ValueError(f"{name}: not a PLY file.")
    head, end, _ = data[:MAX_HEADER_BYTES].partition(END)
    if not end:
        raise ValueError(f"{name}: the PLY header does not end; the file is cut short.")
    body_bytes = len(data) - len(head) - len(end) - 1
    try:
        header = parse_ply_header(head)
        row_bytes = [element.row_bytes for element in header.elements]
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{name}: the PLY header cannot be read ({error}).") from error
    vertex = header.element("vertex")
    columns = vertex.properties if vertex else []
    missing = splat_lacks(columns)
    if "packed_position" in columns:
        raise ValueError(f"{name}: a compressed splat PLY; export it as an uncompressed PLY.")
    if missing:
        raise ValueError(
            f"{name}: not a Gaussian splat, its vertices have no {', '.join(missing)} (a mesh or a point cloud?)."
        )
    for element, binary in zip(header.elements, row_bytes, strict=True):
        least = 2 * len(element.properties) - 1 if header.text else binary  # text: a digit and a space each
        if element.count < 0 or element.count * least > body_bytes:
            raise ValueError(
                f"{name}: the header claims {element.count} rows of {element.name}, but only {max(body_bytes, 0)} bytes"
                " follow: the file is cut short or damaged."
            )
        if element.name == "vertex" and element.count == 0:
            raise ValueError(f"{name}: the splat has no Gaussians.")
    return columns, header.text
