"""The two formats of early web viewers, .splat and .ksplat, which have no sign at their beginning.

Method: what the viewers antimatter15/splat and mkkellogg/GaussianSplats3D read.
"""

import struct

import numpy as np

from clipgs.splats.rows import Limit, SplatRows, f_dc_of, joined, logits_of, logs_of

SPLAT_ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])

_KSPLAT_HEADER, _SECTION_HEADER = 4096, 1024  # bytes
_KSPLAT_HARMONICS = (0, 9, 24, 45)
_FULL = [("position", "<f4", 3), ("scale", "<f4", 3), ("rotation", "<f4", 4), ("rgba", "u1", 4)]
_HALF = [("position", "<u2", 3), ("scale", "<f2", 3), ("rotation", "<f2", 4), ("rgba", "u1", 4)]
_LEVELS = ((_FULL, "<f4"), (_HALF, "<f2"), (_HALF, "u1"))  # of compression: a row, and the type of a harmonic


def read_splat(data: bytes, limit: Limit) -> SplatRows:
    """A .splat: 32 bytes a Gaussian and nothing else.

    Raises:
        ValueError: empty, cut short, something else, or of more Gaussians than the limit.
    """
    if len(data) % SPLAT_ROW.itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of Gaussians of 32: the .splat file is cut short")
    limit.check(len(data) // SPLAT_ROW.itemsize)
    table = np.frombuffer(data, SPLAT_ROW)
    quats = (table["rotation"].astype(np.float64) - 128) / 128
    # Any bytes can be read so. In a text or a picture few Gaussians have unit quaternions.
    if np.median(np.abs(np.linalg.norm(quats, axis=1) - 1)) > 0.1:
        raise ValueError("it is no .splat file: most of its rotations are no unit quaternions")
    return SplatRows(_of_bytes(table, table["position"], quats), [])


def _of_bytes(table: np.ndarray, means: np.ndarray, quats: np.ndarray) -> np.ndarray:  # [N, 14]
    fractions = table["rgba"] / 255
    return joined(means, f_dc_of(fractions[:, :3]), logits_of(fractions[:, 3]), logs_of(table["scale"]), quats)


def is_ksplat(data: bytes) -> bool:
    """Whether this is a .ksplat of version 0.1 or later, whose parts add up to the length of the file."""
    try:
        return len(data) >= _KSPLAT_HEADER and data[0] == 0 and data[1] >= 1 and bool(_sections(data))
    except (ValueError, struct.error):
        return False


class _Section:
    """A section's numbers, from its header, and where its parts are in the file."""

    def __init__(self, data: bytes, index: int, level: int, start: int) -> None:
        numbers = struct.unpack_from("<4IfHxxI4xIIH", data, _KSPLAT_HEADER + index * _SECTION_HEADER)
        self.count, rows, self.bucket_rows, self.buckets, self.block, bucket_bytes, steps, full, partial, degree = (
            numbers
        )
        if degree >= len(_KSPLAT_HARMONICS) or self.count > rows or (level and bucket_bytes != 12 and self.buckets):
            raise ValueError(f"section {index} of the .ksplat file is damaged")
        self.harmonics = _KSPLAT_HARMONICS[degree]
        self.steps, self.full, self.partial = steps or 32767, full, partial
        layout, harmonic = _LEVELS[level]
        self.row = np.dtype([*layout, ("harmonics", harmonic, self.harmonics)])
        self.sizes = start
        self.centres = start + 4 * partial
        self.rows = self.centres + bucket_bytes * self.buckets
        self.end = self.rows + self.row.itemsize * rows


def _sections(data: bytes) -> list[_Section]:
    """The sections of the file. Raises ValueError or struct.error where it is none, or is cut short."""
    most, level = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<H", data, 20)[0]
    start = _KSPLAT_HEADER + most * _SECTION_HEADER
    if level >= len(_LEVELS) or start > len(data):
        raise ValueError("no header of a .ksplat file")
    sections = []
    for index in range(most):
        section = _Section(data, index, level, start)
        start = section.end
        if start > len(data):
            raise ValueError(f"{start} bytes expected, {len(data)} found: the .ksplat file is cut short")
        sections.append(section)
    return sections


def read_ksplat(data: bytes, limit: Limit) -> SplatRows:
    """A .ksplat of any level of compression.

    Raises:
        ValueError: cut short, damaged, or of more Gaussians than the limit.
    """
    level = struct.unpack_from("<H", data, 20)[0]
    sections = [section for section in _sections(data) if section.count]
    limit.check(sum(section.count for section in sections))
    parts = [_of_section(data, section, level) for section in sections]
    return SplatRows(np.concatenate(parts), [], max(section.harmonics for section in sections))


def _of_section(data: bytes, section: _Section, level: int) -> np.ndarray:  # [n, 14]
    table = np.frombuffer(data, section.row, section.count, section.rows)
    means = table["position"].astype(np.float64)
    if level:
        centres = np.frombuffer(data, "<f4", 3 * section.buckets, section.centres).reshape(-1, 3)
        sizes = np.frombuffer(data, "<u4", section.partial, section.sizes).astype(np.int64)
        # Full buckets come first, then those of which the file tells the sizes.
        ends = np.cumsum(np.concatenate([np.full(section.full, section.bucket_rows, np.int64), sizes]))
        bucket = np.searchsorted(ends, np.arange(section.count), side="right")
        if len(bucket) and bucket[-1] >= len(centres):
            raise ValueError("the .ksplat file is damaged: its buckets do not hold all Gaussians")
        means = (means - section.steps) * (section.block / 2 / section.steps) + centres[bucket]
    return _of_bytes(table, means, table["rotation"])
