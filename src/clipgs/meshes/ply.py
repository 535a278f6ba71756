"""Reads PLY, text and binary: polygons and strips, with the colours and textures of vertices, faces and corners.

Method: G. Turk, The PLY Polygon File Format (1994), and what MeshLab, Blender and scanners write beyond it.
"""

import itertools
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipgs.core.errors import ObjectError
from clipgs.core.ply_header import NUMPY_TYPES, Element, PlyHeader, parse_ply_header, splat_lacks, split_ply
from clipgs.meshes.colors import fractions, linear_rgba
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part, Texture
from clipgs.meshes.polygons import IS_SPLAT, check_corners, check_face_count, part_of, triangulate
from clipgs.meshes.texts import numbers, whole

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_ALPHAS = ("alpha", "a", "diffuse_alpha")
_COORDINATES = (("s", "t"), ("u", "v"), ("texture_u", "texture_v"), ("texture_s", "texture_t"))
_CORNERS = ("vertex_indices", "vertex_index", "vertex_indexes")
_FULL = {"i1": 255, "u1": 255, "u2": 65535}  # what is 1 in colours of these types
_COMMENTS = (b"comment", b"obj_info", b"#")
_PICTURE = re.compile(r"(?i)\.(png|jpe?g|webp|bmp|tga|gif|tiff?)$")


class _Column(NamedTuple):
    values: np.ndarray  # [N], of a list the items of all rows
    lengths: np.ndarray | None  # [N] int, of a list
    type: str  # a key of _FULL, or another of numpy's


_Columns = dict[str, _Column]


class _Faces(NamedTuple):
    corners: np.ndarray  # [C] int, polygon after polygon
    sizes: np.ndarray  # [P]
    columns: _Columns


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """One part for each texture, and one for the faces without.

    A texture stands for the colours of vertices and faces, since exporters write colours of the same picture beside it.
    Vertex colours stand for those of faces.

    Raises:
        ObjectError: the file is damaged or cut short, has no faces, or has more than `max_faces` triangles.
    """
    data = path.read_bytes()
    split = split_ply(data)
    if split is None:
        raise ObjectError("the PLY file has no header")
    header = _header(split[0], len(data) - split[1], max_faces)
    elements = _elements(data, split[1], header)
    vertices = elements.get("vertex", {})
    points = _stacked(vertices, ("x", "y", "z"))
    if points is None:
        raise ObjectError("the PLY file has no vertices with x, y and z")
    groups = [group for group in (_polygons(elements), _strips(elements)) if group is not None]
    total = sum(int((faces.sizes - 2).clip(0).sum()) for faces in groups)
    if not total:
        raise ObjectError(f"it has no faces, only {len(points)} points")
    check_face_count(total, max_faces)
    textures = _Textures([name for name in map(_texture_name, header.comments) if name], folder)
    return [part for faces in groups for part in _parts(points, vertices, faces, textures, neutral)]


def _header(head: bytes, body_bytes: int, max_faces: int) -> PlyHeader:
    """The header, with its counts checked against the bytes that follow."""
    try:
        header = parse_ply_header(head)
    except ValueError:
        raise ObjectError("the PLY file's header is malformed: the count of an element is no whole number") from None
    except IndexError:
        raise ObjectError("the PLY file's header is malformed: a property comes before the first element") from None
    if header.format not in _FORMATS:
        raise ObjectError(f"the PLY file has the format {header.format!r}; known are {', '.join(_FORMATS)}")
    needed = 0
    for element in header.elements:
        if element.count < 0:
            raise ObjectError(f"the PLY file claims {element.count} rows of {element.name}")
        for name in (*element.types, *filter(None, element.items)):
            if name not in NUMPY_TYPES:
                raise ObjectError(f"the PLY file has a property of the type {name!r}, which PLY does not know")
        # A list needs at least its length; in text a number needs a digit and what divides it from the next.
        needed += element.count * (2 * len(element.properties) if header.text else element.row_bytes)
    faces, vertices = header.element("face"), header.element("vertex")
    columns = vertices.properties if vertices else []
    if faces is None and ("packed_position" in columns or not splat_lacks(columns)):
        raise ObjectError(IS_SPLAT)
    if needed > body_bytes + header.text:  # the last line may have no end
        raise ObjectError(f"the PLY file claims {needed} bytes of elements and has {body_bytes}: it is cut short")
    check_face_count(faces.count if faces else 0, max_faces)
    return header


def _elements(data: bytes, start: int, header: PlyHeader) -> dict[str, _Columns]:
    """The columns of the elements of a file whose body begins at `start`."""
    if not header.text:
        return _columns(_Bytes(data, start, _FORMATS[header.format]), header)[0]
    try:
        elements, left = _columns(_Words(data[start:]), header)
    except ObjectError:
        declared = _declared(data[start:], header)
        if declared is None:
            raise
    else:
        declared = _declared(data[start:], header) if left else None
    return elements if declared is None else _columns(_Words(declared), header)[0]


def _columns(body: "_Bytes | _Words", header: PlyHeader) -> tuple[dict[str, _Columns], bool]:
    """The columns of the elements, up to the last that is needed, and whether something follows the last element."""
    elements: dict[str, _Columns] = {}
    missing = {"vertex", "face", "tristrips"}.intersection(element.name for element in header.elements)
    at = 0
    for element in header.elements:
        if not missing:
            return elements, False
        columns, at = _rows(body, element, at)
        elements.setdefault(element.name, columns)
        missing.discard(element.name)
    return elements, at < len(body.cells)


def _declared(text: bytes, header: PlyHeader) -> bytes | None:
    """The text with a row a line, without the words of a line that the header does not declare; None if it is not so.

    VCGLIB once wrote the colours of the corners as a list, and declared red, green, blue and alpha of the face.
    """
    rows = (line.split() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(_COMMENTS))
    kept: list[bytes] = []
    try:
        for element in header.elements:
            for words in itertools.islice(rows, element.count):
                end = 0
                for item in element.items:
                    end += 1 if item is None else 1 + int(words[end])
                if not 0 <= end <= len(words):
                    return None
                kept += words[:end]
    except (ValueError, IndexError):
        return None
    return b" ".join(kept)


# --- rows ---


class _Bytes:
    """The rows of a binary file. A place is a number of bytes."""

    def __init__(self, data: bytes, start: int, order: str) -> None:
        self.data, self.order = memoryview(data)[start:], order
        self.cells = np.frombuffer(self.data, np.uint8)

    def size(self, number_type: str) -> int:
        return int(NUMPY_TYPES[number_type][1])

    def numbers(
        self,
        cells: np.ndarray,  # [N, C]
        number_type: str,
    ) -> np.ndarray:
        code = NUMPY_TYPES[number_type]
        return np.ascontiguousarray(cells).view(self.order + code).astype(code, copy=False)

    def length(self, number_type: str) -> Callable[[int], int]:
        """The whole number at a place; raises IndexError or struct.error at the end of the file."""
        code = NUMPY_TYPES[number_type]
        if code == "u1":
            return self.data.__getitem__
        unpack = struct.Struct(self.order + {"i1": "b", "i2": "h", "u2": "H", "i4": "i", "u4": "I"}[code]).unpack_from
        return lambda at: unpack(self.data, at)[0]


class _Words:
    """The rows of a text. A place is a number of words."""

    def __init__(self, text: bytes) -> None:
        self.cells = numbers(text, "PLY", comments=_COMMENTS)
        self.list: list[float] | None = None

    def size(self, _: str) -> int:
        return 1

    def numbers(
        self,
        cells: np.ndarray,  # [N, C]
        _: str,
    ) -> np.ndarray:
        return cells

    def length(self, _: str) -> Callable[[int], int]:
        words = self.list = self.list or self.cells.tolist()  # indexing a list is faster

        def length(at: int) -> int:
            return int(words[at]) if words[at].is_integer() else -1

        return length


def _rows(body: _Bytes | _Words, element: Element, at: int) -> tuple[_Columns, int]:
    """The columns of an element whose rows begin at the place `at`, and where they end."""
    if not element.count or not element.properties:
        return {}, at
    short = ObjectError(f"the PLY file ends within its {element.count} rows of {element.name}: it is cut short")
    lists = [k for k, item in enumerate(element.items) if item is not None]
    if any(NUMPY_TYPES[element.types[k]][0] == "f" for k in lists):
        raise ObjectError(f"the lengths of lists of {element.name} in the PLY file are no whole numbers")
    try:
        lengths, ends = _lengths(body, element, at, 1)
        row = int(ends[0]) - at
        columns: _Columns = {}
        # Usually all rows are as long as the first.
        if at + element.count * row <= len(body.cells):
            block = body.cells[at : at + element.count * row].reshape(element.count, row)
            place = 0
            for k, (name, number_type, item) in enumerate(
                zip(element.properties, element.types, element.items, strict=True)
            ):
                values = body.numbers(block[:, place : place + body.size(number_type)], number_type)[:, 0]
                place += body.size(number_type)
                if item is None:
                    columns[name] = _Column(values, None, NUMPY_TYPES[number_type])
                    continue
                first_length = int(lengths[0, lists.index(k)])
                if (values != first_length).any():
                    break
                items = body.numbers(block[:, place : place + first_length * body.size(item)], item).reshape(-1)
                columns[name] = _Column(items, np.full(element.count, first_length), NUMPY_TYPES[item])
                place += first_length * body.size(item)
            else:
                return columns, at + element.count * row
        if not lists:
            raise short
        lengths, ends = _lengths(body, element, at, element.count)
    except (IndexError, struct.error):
        raise short from None
    if ends[-1] > len(body.cells):
        raise short
    places = np.concatenate([[at], ends[:-1]])
    for k, (name, number_type, item) in enumerate(zip(element.properties, element.types, element.items, strict=True)):
        if item is None:
            columns[name] = _Column(_picked(body, places, number_type), None, NUMPY_TYPES[number_type])
            places = places + body.size(number_type)
            continue
        length = lengths[:, lists.index(k)]
        first = np.repeat(places + body.size(number_type), length)
        along = np.arange(len(first)) - np.repeat(np.cumsum(length) - length, length)
        columns[name] = _Column(_picked(body, first + along * body.size(item), item), length, NUMPY_TYPES[item])
        places = places + body.size(number_type) + length * body.size(item)
    return columns, int(ends[-1])


def _picked(
    body: _Bytes | _Words,
    places: np.ndarray,  # [N]
    number_type: str,
) -> np.ndarray:
    return body.numbers(body.cells[places[:, None] + np.arange(body.size(number_type))], number_type).reshape(-1)


def _lengths(body: _Bytes | _Words, element: Element, at: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths [count, L] of the lists of the first rows, and where each row ends [count]."""
    plan = []
    gap = 0
    for number_type, item in zip(element.types, element.items, strict=True):
        if item is None:
            gap += body.size(number_type)
        else:
            plan.append((gap, body.length(number_type), body.size(number_type), body.size(item)))
            gap = 0
    lengths, ends = [], []
    for _ in range(count):
        for before, length, own, item_size in plan:
            at += before
            items = length(at)
            if items < 0:
                raise ObjectError(f"a list of {element.name} in the PLY file has a length that is no whole number")
            lengths.append(items)
            at += own + items * item_size
        at += gap
        ends.append(at)
    try:
        return np.array(lengths, np.int64).reshape(count, len(plan)), np.array(ends, np.int64)
    except OverflowError:  # the last list of a text claims more items than any file has
        raise IndexError from None


# --- faces ---


def _indices(columns: _Columns, element: str) -> _Column | None:
    if not columns:
        return None
    lists = [name for name, column in columns.items() if column.lengths is not None]
    names = [name for name in _CORNERS if name in lists] or lists
    if not names:
        raise ObjectError(f"the PLY file's element {element} has no list of vertices")
    return columns[names[0]]


def _polygons(elements: dict[str, _Columns]) -> _Faces | None:
    columns = elements.get("face", {})
    indices = _indices(columns, "face")
    if indices is None or indices.lengths is None:
        return None
    return _Faces(whole(indices.values, "the number of a vertex in the PLY file"), indices.lengths, columns)


def _strips(elements: dict[str, _Columns]) -> _Faces | None:
    """The triangles of strips, which -1 divides. Every second one of a strip is wound the other way."""
    indices = _indices(elements.get("tristrips", {}), "tristrips")
    if indices is None:
        return None
    lengths = indices.lengths if indices.lengths is not None else ()
    values = whole(indices.values, "the number of a vertex in the PLY file")
    if indices.type in ("u1", "u2", "u4"):
        values[values == np.iinfo(indices.type).max] = -1
    # Each list ends its last strip.
    values = np.insert(values, np.cumsum(lengths), -1)
    place = np.arange(len(values))
    start = np.maximum.accumulate(np.where(values == -1, place + 1, 0))
    triangles = np.stack([values[:-2], values[1:-1], values[2:]], axis=1)
    odd = (place - start)[:-2] % 2 == 1
    triangles[odd] = triangles[odd][:, [1, 0, 2]]
    a, b, c = triangles.T
    # A vertex named twice turns to the next strip without -1.
    triangles = triangles[(triangles != -1).all(axis=1) & (a != b) & (b != c) & (c != a)]
    return _Faces(triangles.reshape(-1), np.full(len(triangles), 3), {})


# --- parts ---


def _stacked(columns: _Columns, names: tuple[str, ...]) -> np.ndarray | None:
    found = [columns[name].values for name in names if name in columns and columns[name].lengths is None]
    if len(found) != len(names):
        return None
    with np.errstate(invalid="ignore"):  # a signalling nan, which is refused or replaced later
        return np.stack(found, axis=1).astype(np.float64)


def _rgba(columns: _Columns, neutral: Material) -> np.ndarray | None:
    """Linear [N, 4]. Rows of 0 with alpha 0 have no colour: Blender writes them for objects that have none."""
    names = next((names for names in _COLORS if _stacked(columns, names) is not None), None)
    if names is None:
        return None
    values = _stacked(columns, names)
    assert values is not None
    number_type = columns[names[0]].type
    if number_type[0] == "f":
        srgb = fractions(values)
    elif number_type in _FULL and (number_type != "u2" or values.max() > 255):  # bytes in a wider type
        srgb = (values % 256 if number_type == "i1" else values) / _FULL[number_type]
    elif values.min() >= 0 and values.max() <= 255:
        srgb = values / 255
    else:
        raise ObjectError(
            f"the PLY file has colours from {values.min():.0f} to {values.max():.0f} as whole numbers of"
            f" {number_type[1]} bytes; write them as uchar, 0 to 255"
        )
    colors = linear_rgba(srgb.clip(0, 1))
    alpha = next((columns[name].values for name in _ALPHAS if name in columns), None)
    if alpha is not None:
        none = (alpha == 0) & (values == 0).all(axis=1)
        if none.all():
            return None
        colors[none, :3] = neutral.base_color_factor[:3]
    return colors


def _texture_name(comment: str) -> str | None:
    """The name in a comment `TextureFile NAME`. In lower case the word may begin a sentence."""
    word, _, name = comment.partition(" ")
    if word == "TextureFile" or (word.lower() == "texturefile" and _PICTURE.search(name)):
        return name.strip() or None
    return None


class _Textures:
    """The materials of the header's pictures, each made when a face needs it."""

    def __init__(self, names: list[str], folder: Folder) -> None:
        self.names, self.folder = names, folder
        self.made: dict[int, Material] = {}

    def material(self, number: int) -> Material:
        if number not in self.made:
            pixels = self.folder.image(self.names[number])
            cut_out = pixels.shape[2] == 4 and pixels[..., 3].min() < 255
            self.made[number] = Material(base_color_texture=Texture(pixels), alpha_mode="MASK" if cut_out else "OPAQUE")
        return self.made[number]


def _parts(
    points: np.ndarray,  # [V, 3]
    vertices: _Columns,
    faces: _Faces,
    textures: _Textures,
    neutral: Material,
) -> Iterator[Part]:
    check_corners(faces.corners, len(points))
    triangles, polygon = triangulate(points, faces.corners, faces.sizes)
    normals = _stacked(vertices, ("nx", "ny", "nz"))
    picture, uv, corner_uv = _layout(vertices, faces, len(textures.names))
    of_triangle = picture[polygon]
    for number in np.unique(picture):
        chosen = of_triangle == number if (picture != number).any() else slice(None)
        named = faces.corners[triangles[chosen]]
        if number >= 0:
            material, colors, own = textures.material(int(number)), None, None
            if corner_uv is not None:
                own = corner_uv[triangles[chosen]].reshape(-1, 2)
            yield part_of(points, named, normals, (uv, own), (None, None), material)
            continue
        colors = _rgba(vertices, neutral)
        own = _rgba(faces.columns, neutral) if colors is None else None
        material = neutral if colors is None and own is None else Material()
        own = None if own is None else np.repeat(own[polygon[chosen]], 3, axis=0)
        yield part_of(points, named, normals, (None, None), (colors, own), material)


def _layout(
    vertices: _Columns, faces: _Faces, pictures: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The picture of each polygon [P], -1 for none; and the coordinates of vertices [V, 2], or of corners [C, 2]."""
    count = len(faces.sizes)
    none = np.full(count, -1)
    texcoord = faces.columns.get("texcoord")
    per_vertex = next((pair for pair in (_stacked(vertices, n) for n in _COORDINATES) if pair is not None), None)
    if not pictures or (per_vertex is None and (texcoord is None or texcoord.lengths is None)):
        return none, None, None
    number = faces.columns.get("texnumber")
    picture = np.zeros(count) if number is None or number.lengths is not None else number.values
    picture = np.where((picture >= 0) & (picture < pictures), picture, -1).astype(np.int64)
    if texcoord is None or texcoord.lengths is None:
        assert per_vertex is not None
        return picture, per_vertex * (1, -1) + (0, 1), None
    has = texcoord.lengths == 2 * faces.sizes
    pairs = texcoord.values[np.repeat(has, texcoord.lengths)].reshape(-1, 2)
    corner_uv = np.zeros((len(faces.corners), 2))
    corner_uv[np.repeat(has, faces.sizes)] = pairs * np.array((1, -1)) + (0, 1)
    return np.where(has, picture, -1), None, corner_uv
