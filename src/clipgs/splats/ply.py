"""PLY files of splats, in the layout that splat viewers read: bytes from and to rows of 14 numbers.

Imports no torch.
"""

import io
import logging
import re
import tempfile

import numpy as np
from plyfile import PlyData

from clipgs.core.ply_header import END, parse_ply_header
from clipgs.splats.order import farthest_point_order

logger = logging.getLogger(__name__)

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, sqrt(1 / (4 pi))
COMMENT = "clipgs 1 order=fps frame=y-up"

PROPERTIES = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
MAX_HEADER_BYTES = 1 << 20


def to_bytes(
    rows: np.ndarray,  # [N, 14] in the order of PROPERTIES
) -> bytes:
    """The PLY of one splat, its rows in farthest-point order.

    Binary little-endian float32, raw values; equal rows give equal bytes.

    Raises:
        ValueError: a value that is not finite.
    """
    rows = _finite_float32(rows, "the Gaussians")
    rows = rows[farthest_point_order(rows[:, :3])]
    return _header(len(rows)) + rows.astype("<f4").tobytes()


def from_bytes(data: bytes, name: str) -> np.ndarray:  # [N, 14] float32 in the order of PROPERTIES
    """The rows of any splat PLY, in farthest-point order; the errors begin with `name`.

    The properties may have any order and number type, the file may be text or binary of either byte order, and other
    properties are ignored. Spherical harmonics above degree 0 are dropped, and the log says so.

    Raises:
        ValueError: not a splat, cut short, empty, or with a value that is not finite.
    """
    own = _own_rows(data)
    rows, ordered = (own, True) if own is not None else _foreign_rows(data, name)
    rows = _finite_float32(rows, name)
    if not np.abs(rows[:, -4:]).max(axis=1).min() > 0:
        raise ValueError(f"{name}: the quaternion of a Gaussian is all zeros.")
    return rows if ordered else rows[farthest_point_order(rows[:, :3])]


def _header(count: int) -> bytes:
    """The header that `to_bytes` writes."""
    lines = ["ply", "format binary_little_endian 1.0", f"comment {COMMENT}", f"element vertex {count}"]
    return "\n".join([*lines, *(f"property float {name}" for name in PROPERTIES), "end_header", ""]).encode()


def _own_rows(data: bytes) -> np.ndarray | None:  # [N, 14]
    """The rows of a file that `to_bytes` wrote; None if its header or its length differs in a byte.

    Parsing a header takes a millisecond and holds the GIL; this does not, so threads can read many splats at once.
    """
    found = re.search(rb"\nelement vertex ([1-9]\d*)\n", data[: len(_header(0)) + 20])
    header = _header(int(found[1])) if found else b""
    if not found or not data.startswith(header) or len(data) != len(header) + int(found[1]) * 4 * len(PROPERTIES):
        return None
    return np.frombuffer(data, "<f4", offset=len(header)).reshape(-1, len(PROPERTIES))


def _foreign_rows(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    """The rows [N, 14] of any splat PLY, and whether they are in farthest-point order."""
    columns, text = _check_header(data, name)
    try:
        # plyfile reads the rows one by one from memory (a quarter of a second), but all at once from a file.
        with io.BytesIO() if text else tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            ply = PlyData.read(file)
    except OSError:
        raise
    except Exception as error:  # of plyfile and, where plyfile does not check, of numpy
        raise ValueError(f"{name}: the PLY cannot be read ({error}).") from error
    vertices = ply["vertex"].data
    with np.errstate(over="ignore"):  # a double too large for float32 becomes infinite and is refused
        rows = np.stack([vertices[column].astype(np.float32) for column in PROPERTIES], axis=1)
    higher = sum(column.startswith("f_rest_") for column in columns)
    if higher:
        logger.info("%s: %d spherical harmonics above degree 0 are dropped.", name, higher)
    return rows, any(comment.startswith("clipgs 1 ") and "order=fps" in comment for comment in ply.comments)


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
        header = parse_ply_header(head.decode("ascii"))
        row_bytes = [element.row_bytes for element in header.elements]
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{name}: the PLY header cannot be read ({error}).") from error
    vertex = header.element("vertex")
    columns = vertex.properties if vertex else []
    missing = [column for column in PROPERTIES if column not in columns]
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


def _finite_float32(
    rows: np.ndarray,  # [N, 14]
    name: str,
) -> np.ndarray:
    with np.errstate(over="ignore"):
        rows = rows.astype(np.float32)
    bad = ~np.isfinite(rows)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        count = int(bad.any(axis=1).sum())
        raise ValueError(f"{name}: {PROPERTIES[column]} of row {row} is not a finite number ({count} such rows).")
    return rows
