"""Reads STL, binary and text, with the colours that two programs write into the two spare bytes of a triangle."""

import re
from pathlib import Path

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.meshes.colors import linear_rgba
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part
from clipgs.meshes.polygons import check_face_count, triangulate
from clipgs.meshes.texts import numbers

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER_BYTES = 84  # with the count of the triangles
_TEXT = re.compile(rb"(?i)(?:\xef\xbb\xbf)?(?:\s+|#[^\r\n]*)*(?:solid|facet)\b")
# A name may hold any word, such as `vertex`.
_NAMES = re.compile(rb"(?:#|solid\b)(?:(?!\bfacet\b)[^\n])*")
_LINE = re.compile(rb"vertex([^\n]*)")
_VERTEX = re.compile(rb"vertex([^a-z]*(?:(?:e[-+]?[0-9]|nan|inf)[^a-z]*)*)")


def read(path: Path, _: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """One part, of all solids of the file.

    Raises:
        ObjectError: the file is damaged or cut short, or has more than `max_faces` triangles.
    """
    data = path.read_bytes()
    claimed = int.from_bytes(data[80:_HEADER_BYTES], "little")
    exact = len(data) == _HEADER_BYTES + _TRIANGLE.itemsize * claimed
    # The header of a binary file may begin like a text.
    if not exact and _TEXT.match(data) and b"\0" not in data[:4096]:
        return [_text(data, neutral, max_faces)]
    if len(data) < _HEADER_BYTES:
        raise ObjectError(f"the STL file has {len(data)} bytes, fewer than the header of a binary one, and is no text")
    if len(data) < _HEADER_BYTES + _TRIANGLE.itemsize * claimed:
        raise ObjectError(f"the STL file claims {claimed} triangles, which do not fit its {len(data)} bytes")
    if not claimed and not exact:
        raise ObjectError(f"the STL file claims 0 triangles, and {len(data) - _HEADER_BYTES} bytes follow")
    check_face_count(claimed, max_faces)
    rows = np.frombuffer(data, _TRIANGLE, claimed, _HEADER_BYTES)
    colors = _colors(data[:80], rows["attribute"], neutral)
    return [_part(rows["corners"].reshape(-1, 3), colors, neutral)]


def _part(
    corners: np.ndarray,  # [3T, 3]
    colors: np.ndarray | None,  # [T, 4]
    neutral: Material,
) -> Part:
    own = None if colors is None else np.repeat(colors, 3, axis=0)
    faces = np.arange(len(corners)).reshape(-1, 3)
    return Part(corners, faces, colors=own, material=neutral if own is None else Material())


def _colors(
    header: bytes,
    attributes: np.ndarray,  # [T] uint16
    neutral: Material,
) -> np.ndarray | None:
    """Linear [T, 4] by the convention of Materialise Magics or, without its header, of VisCAM and SolidView."""
    own = attributes & 0x8000 != 0
    fields = np.stack([attributes >> 10, attributes >> 5, attributes], axis=1) & 31
    place = header.find(b"COLOR=")
    if place >= 0 and len(header) >= place + 9:
        # The bit says that the triangle has the header's colour; red is the lowest field. Files whose attributes were
        # never written are not black.
        whole = linear_rgba(np.frombuffer(header[place + 6 : place + 9], np.uint8)[None] / 255)
        shared = own if attributes.any() else np.ones_like(own)
        return np.where(shared[:, None], whole, linear_rgba(fields[:, ::-1] / 31))
    if not own.any():
        return None
    return np.where(own[:, None], linear_rgba(fields / 31), (*neutral.base_color_factor[:3], 1.0))


def _text(data: bytes, neutral: Material, max_faces: int) -> Part:
    text = _NAMES.sub(b"", data.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n").lower())
    count, ends = text.count(b"vertex"), text.count(b"endloop")
    check_face_count(count // 3, max_faces)
    try:
        corners = numbers(b" ".join(_LINE.findall(text)), "STL")
    except ObjectError:  # a line has more than a vertex, which takes longer to tell apart
        corners = numbers(b" ".join(_VERTEX.findall(text)), "STL")
    if len(corners) != 3 * count or text.count(b"loop") != 2 * ends:
        raise ObjectError("the STL file ends within a triangle, or has a vertex without three coordinates")
    corners = corners.reshape(-1, 3)
    if count != 3 * ends:  # some loops are polygons
        sizes = np.array([loop.count(b"vertex") for loop in text.split(b"endloop")], np.int64)
        corners = corners[triangulate(corners, np.arange(len(corners)), sizes)[0].reshape(-1)]
    return _part(corners, None, neutral)
