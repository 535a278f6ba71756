"""PLY files of splats, in the layout that splat viewers read: bytes from and to rows of 14 numbers.

Imports no torch.
"""

import io
import re
import tempfile

import numpy as np
from plyfile import PlyData

from clipgs.core.ply_header import SPLAT_PROPERTIES, PlyHeader, parse_ply_header, splat_lacks, split_ply
from clipgs.splats.formats import compressed_ply
from clipgs.splats.order import farthest_point_order
from clipgs.splats.rows import ANTIALIASED, FLAT, Limit, SplatRows, f_dc_of, usable
from clipgs.splats.rows import MAX_LOGIT as MAX_LOGIT  # the encoder takes it from here

COMMENT = "clipgs 1 order=fps frame=y-up"

MAX_HEADER_BYTES = 1 << 20
_FAR = 100  # sizes from the origin; there float32 still resolves a hundred-thousandth of the size
_MODE = re.compile(r"(?:SplatRenderMode:\s*(default|mip|2dgs)|antialiased\s+([01]))\s*", re.IGNORECASE)


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


def read(data: bytes, limit: Limit = Limit()) -> SplatRows:  # noqa: B008 (a tuple)
    """Any splat PLY, compressed ones too, its rows finite and in farthest-point order.

    The properties may have any order and number type, the file may be text or binary of either byte order, and other
    properties are ignored. `usable` says which values are replaced and which rows are dropped. From float64 positions
    far from the origin, an origin of their own is taken off.

    Raises:
        ValueError: not a splat, cut short, empty, of more Gaussians than the limit, or without a row that can be used.
    """
    own = _own_rows(data)
    if own is not None:
        limit.check(len(own))
        return usable(SplatRows(own, []), ordered=_starts_ordered(own))
    found, says_ordered = _foreign(data, limit)
    return usable(found, ordered=says_ordered and _starts_ordered(found.rows))


def is_splat(head: bytes) -> bool:
    """Whether this is the beginning of a PLY of a splat, by its header; it must hold the header as a whole."""
    split = split_ply(head)
    try:
        vertex = parse_ply_header(split[0]).element("vertex") if split else None
    except (ValueError, IndexError):
        return False
    return vertex is not None and ("packed_position" in vertex.properties or not splat_lacks(vertex.properties))


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


def _starts_ordered(
    rows: np.ndarray,  # [N, 14]
) -> bool:
    """Whether row 1 is the farthest from row 0, without which the order is another, whatever the comment says.

    Scripts that shuffle or sort the rows keep the comment.
    """
    if len(rows) < 2 or not np.isfinite(rows[:, :3]).all():
        return len(rows) < 2
    distances = np.square(rows[:, :3] - rows[0, :3]).sum(axis=1)
    return bool(distances[1] >= distances.max() * (1 - 1e-5))


def _foreign(data: bytes, limit: Limit) -> tuple[SplatRows, bool]:
    """Any splat PLY, its values as they are in the file, and whether it says that it is in farthest-point order."""
    header, head, start = _checked_header(data, limit)
    vertex = header.element("vertex")
    columns = vertex.properties if vertex else []
    notes = [] if drawn_as(header.comments) != "mip" else [ANTIALIASED]
    ordered = any(comment.startswith("clipgs 1 ") and "order=fps" in comment for comment in header.comments)
    # plyfile wants lines that end as Unix has them, and reads comments as ASCII only.
    plain = re.sub(b"\r\n|\r", b"\n", head).rstrip(b"\n").decode("ascii", "replace").encode("ascii", "replace")
    try:
        # plyfile reads the rows one by one from memory (a quarter of a second), but all at once from a file.
        with io.BytesIO() if header.text else tempfile.TemporaryFile() as file:
            file.writelines([plain, b"\nend_header\n", memoryview(data)[start:]])
            file.seek(0)
            ply = PlyData.read(file)
        vertices = ply["vertex"].data
        if "packed_position" in columns:
            rows = compressed_ply.unpacked(ply["chunk"].data, vertices)
            harmonics = len(ply["sh"].properties) if "sh" in ply else 0
            return SplatRows(rows, notes, harmonics), ordered
        with np.errstate(over="ignore", invalid="ignore"):  # a double too large for float32 becomes infinite
            xyz, origin = _near_origin(np.stack([vertices[axis] for axis in "xyz"], axis=1))
            rows = np.empty((len(xyz), len(SPLAT_PROPERTIES)), np.float32)
            rows[:, :3] = xyz
            for i, column in enumerate(SPLAT_PROPERTIES[3:], 3):
                rows[:, i] = vertices[column] if column in columns else np.log(FLAT)
            if "f_dc_0" not in columns:
                colors = np.stack([vertices[channel] for channel in ("red", "green", "blue")], axis=1)
                rows[:, 3:6] = f_dc_of(_fractions(colors))
    except OSError:
        raise
    except Exception as error:  # of plyfile and, where plyfile does not check, of numpy
        raise ValueError(f"the PLY cannot be read ({error})") from error
    if "scale_2" not in columns:
        notes.append(f"flat Gaussians without scale_2, which became {FLAT:g}")
    if "f_dc_0" not in columns:
        notes.append("the colours are those of red, green and blue")
    return SplatRows(rows, notes, sum(column.startswith("f_rest_") for column in columns), origin), ordered


def drawn_as(comments: list[str]) -> str:
    """How the file says that it is to be drawn: `default`, `mip` (antialiased) or `2dgs`.

    Brush and SuperSplat write `SplatRenderMode: mip`, Postshot `antialiased 1`; the last comment counts.
    """
    mode = "default"
    for comment in comments:
        if found := _MODE.fullmatch(comment):
            mode = found[1].lower() if found[1] else ("default", "mip")[int(found[2])]
    return mode


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


def _checked_header(data: bytes, limit: Limit) -> tuple[PlyHeader, bytes, int]:
    """The header, its bytes, and where the rows begin; refuses what is no splat, is cut short or too large."""
    if not data:
        raise ValueError("the file is empty")
    if data[:3] != b"ply":
        raise ValueError("not a PLY file")
    split = split_ply(data[:MAX_HEADER_BYTES])
    if split is None:
        raise ValueError("the PLY header does not end; the file is cut short")
    head, start = split
    body_bytes = len(data) - start
    try:
        header = parse_ply_header(head)
        row_bytes = [element.row_bytes for element in header.elements]
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"the PLY header cannot be read ({error})") from error
    vertex = header.element("vertex")
    columns = vertex.properties if vertex else []
    missing = compressed_ply.lacks(header) if "packed_position" in columns else splat_lacks(columns)
    if missing:
        what = ", ".join(missing)
        raise ValueError(f"not a Gaussian splat, its vertices have no {what} (a mesh or a point cloud?)")
    for element, binary in zip(header.elements, row_bytes, strict=True):
        least = 2 * len(element.properties) - 1 if header.text else binary  # text: a digit and a space each
        if element.count < 0 or element.count * least > body_bytes:
            raise ValueError(
                f"the header claims {element.count} rows of {element.name}, but only {max(body_bytes, 0)} bytes"
                " follow: the file is cut short or damaged"
            )
        if element.name == "vertex":
            limit.check(element.count)
    return header, head, start
