"""SPZ 1 to 4: packed bytes an attribute, in one gzip stream or (4) in a zstd stream an attribute.

Method: the description and the reader of its authors, github.com/nianticlabs/spz.
"""

import gzip
import io
import struct
import zlib

import numpy as np

from clipgs.splats.rows import ANTIALIASED, Limit, SplatRows, joined, logits_of, moved, smallest_three

MAGIC, GZIP = b"NGSP", b"\x1f\x8b"
_HEADER = struct.Struct("<4sIIBBBBI")  # magic, version, Gaussians, degree, fractional bits, flags, streams, their table
_OLD_HEADER_BYTES, _HEADER_BYTES = 16, 32
_HARMONICS = (0, 9, 24, 45, 72)  # coefficients of each degree
_ANTIALIASED, _EXTENDED = 1, 2  # flags
_COLOR_SCALE = 0.15
_AXES_EXTENSION = 0xADBE0003
_AXES = (
    "",
    *["LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF", "LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU"],
)
_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "U": (0, 1, 0), "D": (0, -1, 0), "B": (0, 0, 1), "F": (0, 0, -1)}


def read(data: bytes, limit: Limit) -> SplatRows:
    """The splat, with the axes right, up and back if the file says which ones it has, else with the file's own.

    Raises:
        ValueError: not SPZ, cut short, damaged, of another version, or of more Gaussians than the limit.
    """
    try:
        return _read(data, limit)
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error, OSError) as error:
        raise ValueError(f"the SPZ file is cut short or damaged ({error})") from error


def _read(data: bytes, limit: Limit) -> SplatRows:
    stream: io.BufferedIOBase = io.BytesIO(data)
    if data.startswith(GZIP):
        stream = gzip.GzipFile(fileobj=stream)
    head = stream.read(_OLD_HEADER_BYTES)
    if not head.startswith(MAGIC):
        raise ValueError("a gzip file, but no SPZ in it")
    head = head.ljust(_HEADER.size, b"\0")
    _, version, count, degree, fractional_bits, flags, streams, _ = _HEADER.unpack(head)
    if not 1 <= version <= 4:
        raise ValueError(f"its version of SPZ is {version}; 1 to 4 are read")
    if degree >= len(_HARMONICS):
        raise ValueError(f"it has harmonics of degree {degree}, and SPZ has none above 4")
    limit.check(count)
    sizes = [6 if version == 1 else 9, 1, 3, 3, 3 if version < 3 else 4, _HARMONICS[degree]]
    if version < 4:
        parts = [_exactly(stream, size * count) for size in sizes]
        stream.read(1)  # at the end of the stream its checksum is compared
        axes = ""
    else:
        parts = _streams(data, [size * count for size in sizes if size], streams)
        axes = _axes(data) if flags & _EXTENDED else ""
    positions, alphas, colors, scales, rotations = (np.frombuffer(part, np.uint8) for part in parts[:5])
    if version == 1:
        means = positions.view("<f2").astype(np.float64)
    else:
        wide = np.zeros((3 * count, 4), np.uint8)
        wide[:, 1:] = positions.reshape(-1, 3)
        means = (wide.view("<i4")[:, 0] >> 8) * 2.0**-fractional_bits
    rows = joined(
        means.reshape(-1, 3),
        (colors.reshape(-1, 3) / 255 - 0.5) / _COLOR_SCALE,
        logits_of(alphas / 255),
        scales.reshape(-1, 3) / 16 - 10,
        _quaternions(rotations.reshape(count, -1)),
    )
    notes = [ANTIALIASED] if flags & _ANTIALIASED else []
    if axes not in ("", "RUB"):
        turn = np.eye(4)
        turn[:3, :3] = np.array([_DIRECTIONS[letter] for letter in axes]).T
        rows = moved(rows, turn)
        notes.append(f"its axes are {axes}, turned to RUB")
    return SplatRows(rows, notes, _HARMONICS[degree])


def _exactly(stream: io.BufferedIOBase, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"{size} bytes expected, {len(data)} found")
    return data


def _streams(data: bytes, sizes: list[int], count: int) -> list[bytes]:
    """The attributes of version 4, each of the size that the number of Gaussians demands."""
    import pyarrow as pa

    (table,) = struct.unpack_from("<I", data, 16)
    start = table + 16 * count
    if count < len(sizes) or table < _HEADER_BYTES or start > len(data):
        raise EOFError(f"a table of {count} streams at byte {table}")
    parts = []
    for index, size in enumerate(sizes):
        packed, unpacked = struct.unpack_from("<QQ", data, table + 16 * index)
        if unpacked != size or start + packed > len(data):
            raise EOFError(f"stream {index} has {unpacked} bytes instead of {size}, in {packed} of the file")
        parts.append(pa.Codec("zstd").decompress(data[start : start + packed], size, asbytes=True))
        if len(parts[-1]) != size:
            raise EOFError(f"stream {index} ends early")
        start += packed
    return parts


def _axes(data: bytes) -> str:
    """The directions of x, y and z where an extension tells them: `RDF` is right, down, front."""
    (end,) = struct.unpack_from("<I", data, 16)
    offset = _HEADER_BYTES
    while offset + 8 <= min(end, len(data)):
        kind, size = struct.unpack_from("<II", data, offset)
        if kind == _AXES_EXTENSION and size >= 4:
            (system,) = struct.unpack_from("<I", data, offset + 8)
            return _AXES[system] if 0 < system < len(_AXES) else ""
        offset += 8 + size
    return ""


def _quaternions(
    packed: np.ndarray,  # [N, 3 or 4] uint8
) -> np.ndarray:  # [N, 4], w x y z
    if packed.shape[1] == 3:
        xyz = packed / 127.5 - 1
        return np.column_stack([np.sqrt(np.maximum(0, 1 - np.square(xyz).sum(axis=1))), xyz])
    bits = np.ascontiguousarray(packed).view("<u4")[:, 0]
    fields = np.stack([(bits >> shift) & 1023 for shift in (20, 10, 0)], axis=1).astype(np.int64)
    others = np.where(fields & 512, -1, 1) * (fields & 511) / 511 * np.sqrt(0.5)
    return smallest_three(bits >> 30, others)[:, [3, 0, 1, 2]]  # the file has x, y, z, w
