"""Reads OFF as text: Geomview's format and what CGAL, MeshLab and ModelNet write.

Method: Geomview manual, object file formats, OFF.
"""

import re
from pathlib import Path

import numpy as np

from clipgs.catalog.named_files import decoded
from clipgs.core.errors import ObjectError
from clipgs.meshes.colors import fractions, linear_rgba
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part
from clipgs.meshes.polygons import check_corners, check_face_count, part_of, triangulate
from clipgs.meshes.texts import numbers, whole

# Some files, such as ModelNet's, have the counts on the first line, even without a space.
_HEAD = re.compile(rb"((?:ST|C|N)*)(4?)OFF(.*)", re.IGNORECASE)


def read(path: Path, _: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """One part. Vertex colours (COFF, or three or four more columns) stand for those of faces.

    Raises:
        ObjectError: the file is damaged or cut short, is binary, or has more than `max_faces` triangles.
    """
    text = decoded(path.read_bytes()).encode()
    if b"#" in text:
        text = re.sub(rb"#[^\r\n]*", b"", text)
    lines = [line for line in text.splitlines() if line.strip()]
    keyword = lines[0].strip() if lines else b""
    head = _HEAD.fullmatch(keyword)
    if head is None or keyword[: head.start(3)].endswith((b"4OFF", b"nOFF")):
        if keyword[-4:].endswith(b"nOFF") or head is not None:
            raise ObjectError(
                f"the OFF file is {keyword[:20].decode()!r}: it has points of other than three dimensions"
            )
        raise ObjectError("the OFF file does not begin with OFF")
    kinds, rest = head[1].upper(), head[3]
    if rest.strip().upper().startswith(b"BINARY"):
        raise ObjectError("the OFF file is binary, which is not read; save it as text")
    counts = rest.split() or (lines[1].split() if len(lines) > 1 else [])
    lines = lines[1 if rest.strip() else 2 :]
    if len(counts) < 2 or not all(re.fullmatch(rb"[-+]?[0-9]{1,18}", word) for word in counts[:2]):
        raise ObjectError("the OFF file is malformed: it does not begin with the counts of its vertices and faces")
    vertex_count, face_count = int(counts[0]), int(counts[1])
    if vertex_count < 0 or face_count < 0 or vertex_count + face_count > len(lines):
        raise ObjectError(
            f"the OFF file claims {vertex_count} vertices and {face_count} faces, and has {len(lines)} lines"
        )
    check_face_count(face_count, max_faces)
    vertices, more = _vertices(lines[:vertex_count])
    normals = None
    if b"ST" in kinds:
        more = more[:, :-2]
    if b"N" in kinds and more.shape[1] >= 3:
        # VCGLIB writes NC before OFF, and the normals behind the colours.
        behind = more.shape[1] - 3 if b"NC" in kinds else 0
        normals, more = more[:, behind : behind + 3], np.delete(more, np.s_[behind : behind + 3], axis=1)
    corners, sizes, colored, rgb = _faces(lines[vertex_count : vertex_count + face_count])
    check_corners(corners, vertex_count)
    check_face_count(int((sizes - 2).clip(0).sum()), max_faces)
    triangles, polygon = triangulate(vertices, corners, sizes)
    colors, own = None, None
    if more.shape[1] in (3, 4):
        colors = linear_rgba(fractions(more[:, :3]))
    elif len(rgb):
        of_polygon = np.tile((*neutral.base_color_factor[:3], 1.0), (face_count, 1))
        of_polygon[colored] = linear_rgba(fractions(rgb))
        own = np.repeat(of_polygon[polygon], 3, axis=0)
    material = neutral if colors is None and own is None else Material()
    return [part_of(vertices, corners[triangles], normals, (None, None), (colors, own), material)]


def _vertices(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [V, 3], and the further columns [V, C] that all vertices have."""
    values, starts, widths = _table(lines, counted=False)
    least = int(widths.min(initial=widths[0] if len(widths) else 3))
    if least < 3:
        raise ObjectError("the OFF file has a vertex of fewer than three coordinates: it is damaged")
    table = values[starts[:, None] + np.arange(least)]
    same = bool((widths == least).all())
    return table[:, :3], table[:, 3 if same else least :]


def _faces(lines: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Corners [C], the size of each polygon [P], which polygons have a colour [P], and these [K, 3] as written."""
    values, starts, widths = _table(lines, counted=True)
    sizes = whole(values[starts], "the number of a face's vertices in the OFF file")
    if (sizes < 0).any() or (sizes + 1 > widths).any():
        raise ObjectError("the OFF file has a face that names fewer vertices than it says: it is damaged")
    along = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    corners = whole(values[np.repeat(starts + 1, sizes) + along], "the number of a vertex in the OFF file")
    colored = np.isin(widths - 1 - sizes, (3, 4))  # one more number is a place in a colour map that is not in the file
    return corners, sizes, colored, values[(starts + 1 + sizes)[colored, None] + np.arange(3)]


def _table(lines: list[bytes], *, counted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All numbers of the lines, where each line begins among them, and how many it has.

    Usually all lines have as many as the first, and the same first number if that is `counted`.
    """
    values = numbers(b"\n".join(lines), "OFF")
    width = len(lines[0].split()) if lines else 0
    widths = np.full(len(lines), width)
    if len(values) != len(lines) * width or (counted and width and (values[::width] != values[0]).any()):
        widths = np.array([len(line.split()) for line in lines], np.int64)
    return values, np.cumsum(widths) - widths, widths
