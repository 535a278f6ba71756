"""Reads OBJ files, by arrays: the text is taken apart with numpy, and only its few other lines one by one.

White space of any kind separates, lines end in any way or are continued by a backslash, and a comment may follow
anything. Lines, points, curves, groups and smoothing are left out.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipgs.catalog.named_files import Layout, decoded, several, spellings
from clipgs.core.errors import ObjectError
from clipgs.meshes.colors import fractions
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part, srgb_to_linear
from clipgs.meshes.mtl import Library, Surface
from clipgs.meshes.polygons import check_face_count, triangulate
from clipgs.meshes.texts import parsed

_SPACES = bytes.maketrans(b"\t\v\f\r", b"   \n")
_BLANK, _LINE_END, _HASH, _SLASH, _DOT = b" \n#/."


def read(path: Path, folder: Folder, neutral: Material, max_faces: int) -> list[Part]:
    """The parts of an OBJ file with its material libraries, in the order of its materials.

    Faces count back from their own line where they count back. A face without texture coordinates or normals makes a
    part of its own, so that the others keep theirs. Colours of vertices are sRGB, of any range; they replace Kd unless
    they are all white, and a vertex without one has the colour of the material. A material that is not defined, and
    a face that names none, are neutral; but where no face names one, the library's only material is that of all.

    Raises:
        ObjectError: the file is malformed, has too many faces, or names a file that cannot be read.
    """
    text = decoded(path.read_bytes()).encode()
    lines = _Lines(text)
    vertices, counts = lines.numbers("v", 6)
    if len(counts) and counts.min() < 3:
        raise ObjectError(f"the line {lines.shown('v', int(counts.argmin()))} has fewer than three numbers")
    coordinates, normals = lines.numbers("vt", 2)[0], lines.numbers("vn", 3)[0]
    corners, sizes = _faces(lines, len(vertices), len(coordinates), len(normals))
    check_face_count(int((sizes - 2).clip(0).sum()), max_faces)
    surfaces, surface_of = _surfaces(lines, folder, neutral)
    triangles, polygon = triangulate(vertices[:, :3], corners[:, 0], sizes)

    # A group has one material, and has texture coordinates and normals or not.
    starts = np.cumsum(sizes) - sizes
    pictured = np.array([s.without_uv is not None for s in surfaces], bool)
    given = np.zeros((len(sizes), 2), bool)
    filled = sizes > 0
    given[filled] = np.logical_and.reduceat(corners[:, 1:] >= 0, starts[filled])
    group = surface_of * 4 + (given[:, 0] & pictured[surface_of]) * 2 + given[:, 1]
    colors, colored = _colors(lines, vertices, counts)

    parts = []
    for key, chosen in _groups(group[polygon]):
        surface, has_uv, has_normals = surfaces[key // 4], bool(key & 2), bool(key & 1)
        columns = [True, has_uv, has_normals]
        named = corners[triangles[chosen].reshape(-1)]
        first, faces = _distinct(named[:, columns])
        at = named[first]
        part = Part(
            vertices=vertices[at[:, 0], :3],
            faces=faces.reshape(-1, 3),
            normals=normals[at[:, 2]] if has_normals else None,
            material=surface.material if has_uv or surface.without_uv is None else surface.without_uv,
            **(_laid(coordinates[at[:, 1]], surface) if has_uv else {}),
        )
        if colored.any():
            part = _colored(part, colors[at[:, 0]], colored[at[:, 0]])
        parts.append(part)
    return parts


class _Lines:
    """The lines of a file by their kinds."""

    def __init__(self, text: bytes) -> None:
        if b"\\" in text:
            text = re.sub(rb"\\(?:\r\n|\r|\n)", b" ", text)
        text = text.translate(_SPACES)
        if b"\n " in text or text[:1] == b" ":
            text = re.sub(rb"(?m)^ +", b"", text)
        self._bytes = np.frombuffer(text + b"\n\n\n", np.uint8)
        self.ends = np.flatnonzero(self._bytes == _LINE_END)[:-2]  # [L]
        self.starts = np.append(0, self.ends[:-1] + 1)
        one, two, three = (self._bytes[self.starts + place] for place in range(3))
        blank = two == _BLANK
        self.of = {
            "v": np.flatnonzero((one == ord("v")) & blank),
            "vt": np.flatnonzero((one == ord("v")) & (two == ord("t")) & (three == _BLANK)),
            "vn": np.flatnonzero((one == ord("v")) & (two == ord("n")) & (three == _BLANK)),
            "f": np.flatnonzero((one == ord("f")) & blank),
        }
        named = ((one == ord("u")) & (two == ord("s"))) | ((one == ord("m")) & (two == ord("t")))
        self.others = np.flatnonzero(named | ((one == _HASH) & (two == ord("M"))))  # usemtl, mtllib, #MRGB
        self._cut = self._without_comments()

    def _without_comments(self) -> np.ndarray:
        """The ends of lines, before a comment."""
        hashes = np.flatnonzero(self._bytes == _HASH)
        hashes = hashes[(hashes > 0) & (self._bytes[hashes - 1] != _DOT)]  # 1.#QNAN is a number
        line = np.searchsorted(self.starts, hashes, "right") - 1
        cut = self.ends.copy()
        np.minimum.at(cut, line, hashes)
        return np.maximum(cut, self.starts)

    def text(self, line: int) -> str:
        return self._bytes[self.starts[line] : self.ends[line]].tobytes().decode()

    def shown(self, kind: str, index: int) -> str:
        """The line `index` of its kind, for a sentence."""
        text = self.text(int(self.of[kind][index])).strip()
        return repr(text if len(text) <= 60 else text[:57] + "...")

    def body(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """The text behind the keyword of all lines of a kind, each with a blank before it, and where each begins.

        Returns bytes [B] and offsets [lines + 1].
        """
        chosen = self.of[kind]
        if not len(chosen):
            return np.zeros(0, np.uint8), np.zeros(1, np.int64)
        firsts = np.flatnonzero(np.diff(chosen, prepend=-2) != 1)  # of the runs of neighbouring lines
        lasts = np.append(firsts[1:], len(chosen)) - 1
        begin, end = self.starts[chosen[firsts]], self.ends[chosen[lasts]] + 1
        text = np.concatenate([self._bytes[a:b] for a, b in zip(begin.tolist(), end.tolist(), strict=True)])
        moved = np.cumsum(end - begin) - end  # of each run
        offsets = self.starts[chosen] + np.repeat(moved, lasts - firsts + 1)
        for letter in range(len(kind)):
            text[offsets + letter] = _BLANK
        text[text == _LINE_END] = _BLANK
        for index in np.flatnonzero(self._cut[chosen] < self.ends[chosen]):
            line, shift = chosen[index], offsets[index] - self.starts[chosen[index]]
            text[self._cut[line] + shift : self.ends[line] + shift] = _BLANK
        return text, np.append(offsets, len(text))

    def numbers(self, kind: str, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The first numbers of all lines of a kind, [lines, width], 0 where a line has fewer; and how many it has."""
        text, offsets = self.body(kind)
        begins = _begins(text == _BLANK)
        counts = np.diff(np.searchsorted(begins, offsets))
        values = _parsed(text, "float64")
        if len(values) != len(begins):
            words = text.tobytes().split()
            values = np.array([_number(word) for word in words])
            bad = next((index for index, word in enumerate(words) if _number(word, None) is None), None)
            if kind == "v" and bad is not None:  # a texture coordinate or a normal may be no number
                line = int(np.searchsorted(np.cumsum(counts), bad, "right"))
                raise ObjectError(f"the line {self.shown(kind, line)} has a word that is not a number")
        if len(counts) and (counts == counts[0]).all():
            values = values.reshape(len(counts), -1)[:, :width]
            return np.pad(values, ((0, 0), (0, width - values.shape[1]))), counts
        place = np.arange(width)
        there = place < counts[:, None]
        table = np.zeros((len(counts), width))
        table[there] = values[((np.cumsum(counts) - counts)[:, None] + place)[there]]
        return table, counts


def _begins(separator: np.ndarray) -> np.ndarray:
    """Where words begin, of a mask [B] of the bytes between words."""
    begins = ~separator
    begins[1:] &= separator[:-1]
    return np.flatnonzero(begins)


def _parsed(text: np.ndarray, kind: str) -> np.ndarray:
    """All numbers of a text; none if one of its words is not a number."""
    stripped = text.tobytes().strip()
    found = parsed(stripped, kind)
    if found is not None:
        return found
    try:  # numpy reads a plus sign, and large whole numbers
        return np.fromstring(stripped, kind, sep=" ")
    except (ValueError, DeprecationWarning):
        return np.zeros(0, kind)


def _number(word: bytes, otherwise: Any = np.nan) -> Any:
    try:
        return float(word)
    except ValueError:
        return np.nan if re.fullmatch(rb"[-+]?1\.#\w+", word) else otherwise  # NaN as Microsoft's libraries write it


def _faces(lines: _Lines, *available: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of all faces, [C, 3] of vertex, texture coordinate and normal from 0 (-1: none), and corners a face."""
    text, offsets = lines.body("f")
    blank, slash = text == _BLANK, text == _SLASH
    begins = _begins(blank)
    at = _begins(blank | slash)
    before = text[at - 1]
    opens = before == _BLANK  # the number is a word's first
    third = (before == _SLASH) & ((text[at - 2] == _SLASH) | ~np.append(False, opens[:-1]))
    sizes = np.diff(np.searchsorted(begins, offsets))
    plain = text.copy()
    plain[slash] = _BLANK
    numbers = _parsed(plain, "int64")
    if len(numbers) != len(at) or opens.sum() != len(begins):
        for index in range(len(sizes)):
            body = lines.text(int(lines.of["f"][index])).partition("#")[0].split()[1:]
            if not all(re.fullmatch(r"[-+]?\d+(/[-+]?\d*){0,3}", word) for word in body):
                raise ObjectError(f"the line {lines.shown('f', index)} is not a face of whole numbers")
        raise ObjectError("some lines of faces are not made of whole numbers")
    corner = np.cumsum(opens) - 1
    face = np.repeat(np.arange(len(sizes)), sizes)
    corners = np.zeros((len(begins), 3), np.int64)
    for column, chosen in enumerate((opens, ~opens & ~third, third)):
        corners[corner[chosen], column] = numbers[chosen]
    for column, (kind, what) in enumerate((("v", "vertex"), ("vt", "texture coordinate"), ("vn", "normal"))):
        values, count = corners[:, column], available[column]
        if column == 0 and (values == 0).any():
            index = int(face[np.argmin(np.abs(values))])
            raise ObjectError(f"the face {lines.shown('f', index)} names vertex 0, but OBJ counts from 1")
        back = values < 0
        if back.any():  # from the face's own line
            values[back] += np.searchsorted(lines.of[kind], lines.of["f"])[face[back]] + 1
            values[back & (values < 1)] = count + 1
        if column and count == 0:  # some programs name what they do not write
            values[:] = 0
        wrong = values > count
        if wrong.any():
            index = int(face[np.argmax(wrong)])
            shown = lines.shown("f", index)
            raise ObjectError(f"the face {shown} names a {what} that is not there: there are {count}")
        values -= 1
    return corners, sizes


def _surfaces(lines: _Lines, folder: Folder, neutral: Material) -> tuple[list[Surface], np.ndarray]:
    """The materials, in the order of the faces, and the index of the material of each face [P]."""
    uses, names, libraries = [], [], []
    for line in lines.others:
        key, _, rest = lines.text(int(line)).partition(" ")
        if key == "usemtl":
            uses.append(line)
            names.append(rest.strip())
        elif key == "mtllib":
            libraries.append(rest.strip())
    library = Library(folder, neutral, pictures=len(lines.of["vt"]) > 0)
    missing = []
    for statement in libraries:  # of one name, which may hold blanks, or of several
        whole = folder.find(*spellings(statement))
        found = {statement: whole} if whole else {word: folder.find(*spellings(word)) for word in several(statement)}
        for file in filter(None, found.values()):
            library.add(file)
        if any(found.values()):
            missing += [word for word, file in found.items() if file is None]
        elif found:
            missing.append(statement)

    use = np.searchsorted(np.array(uses, np.int64), lines.of["f"]) - 1  # [P], -1 before the first
    used, index, inverse = np.unique(use, return_index=True, return_inverse=True)
    order: dict[str | None, int] = {}  # the names, of which None is the neutral material
    number = np.zeros(len(used), np.int64)
    for place in np.argsort(index):
        if used[place] >= 0:
            name = library.find(names[used[place]])
            if name is None and missing:
                _without(missing[0], folder)
        else:
            name = None if names or missing else library.only()
        number[place] = order.setdefault(name, len(order))
    surfaces = [Surface(neutral) if name is None else library.surface(name) for name in order]
    return surfaces, number[inverse.reshape(-1)]


def _without(library: str, folder: Folder) -> None:
    """Notes that faces have the neutral colour, because the library of their material cannot be read.

    Raises:
        ObjectError: such meshes are not wanted.
    """
    try:
        folder.get(*spellings(library))  # raises, and says why
    except ObjectError as error:
        if folder.needs_materials:
            raise
        if not folder.notes:
            folder.notes.append(f"in the neutral colour, because {error}")


def _groups(keys: np.ndarray) -> list[tuple[int, np.ndarray | slice]]:
    """Each value of keys [T], in the order of their first places, with the places that have it."""
    values, index = np.unique(keys, return_index=True)
    if len(values) == 1:
        return [(int(values[0]), slice(None))]
    order = np.argsort(keys, kind="stable")
    bounds = np.searchsorted(keys[order], values)
    chosen = np.split(order, bounds[1:])
    return [(int(values[place]), chosen[place]) for place in np.argsort(index)]


def _distinct(
    columns: np.ndarray,  # [C, 1 to 3] int64
) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row is, [K] in the order of rows, and the number of each row's kind [C]."""
    number, count = np.zeros(len(columns), np.int64), 1
    for column in columns.T:
        owner = np.zeros(count, np.int64)
        owner[number] = column
        if (owner[number] == column).all():  # as in a mesh without seams: sorting takes long
            continue
        bound = int(column.max()) + 1
        key, bound = number * bound + column, count * bound
        if bound <= 4 * len(key):
            there = np.zeros(bound, bool)
            there[key] = True
            number, count = (np.cumsum(there) - 1)[key], int(there.sum())
        else:
            kinds, number = np.unique(key, return_inverse=True)
            count = len(kinds)
    first = np.zeros(count, np.int64)
    first[number] = np.arange(len(number))
    return first, number


def _laid(
    uv: np.ndarray,  # [V, 2], v upwards
    surface: Surface,
) -> dict[str, np.ndarray]:
    """Texture coordinates as the options of the pictures say, v downwards."""

    def placed(layout: Layout) -> np.ndarray:
        return (uv * layout[:2] + layout[2:]) * (1, -1) + (0, 1)

    laid = {"uv": placed(surface.layout)}
    if surface.material.emissive_texture is not None and surface.glow_layout != surface.layout:
        laid["glow_uv"] = placed(surface.glow_layout)
    return laid


# --- colours of vertices ---


def _colors(
    lines: _Lines,
    vertices: np.ndarray,  # [V, 6]
    counts: np.ndarray,  # [V] numbers on the vertex's line
) -> tuple[np.ndarray, np.ndarray]:
    """Linear colours [V, 3], and which vertices have one [V]."""
    colored = counts >= 6
    if colored.any():
        srgb = np.zeros((len(vertices), 3))
        srgb[colored] = fractions(vertices[colored, 3:])
    else:
        srgb, colored = _painted(lines, len(vertices))
    return (srgb_to_linear(srgb) if colored.any() else srgb), colored


def _painted(lines: _Lines, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The colours that ZBrush writes in comments: mask, red, green and blue in hexadecimal digits, vertex by vertex."""
    srgb, colored = np.zeros((count, 3)), np.zeros(count, bool)
    comments = (lines.text(int(line)) for line in lines.others)
    digits = "".join(text[5:].strip() for text in comments if text.startswith("#MRGB"))
    if re.fullmatch(r"(?:[0-9a-fA-F]{8})+", digits):
        bytes_ = np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 4)[:count, 1:]
        srgb[: len(bytes_)], colored[: len(bytes_)] = bytes_ / 255, True
    return srgb, colored


def _colored(
    part: Part,
    colors: np.ndarray,  # [V, 3] linear
    colored: np.ndarray,  # [V] bool
) -> Part:
    """The part with colours of its vertices instead of its material's; a picture is multiplied by them."""
    material = part.material
    red, green, blue, alpha = material.base_color_factor
    plain = material.base_color_texture is None
    if not colored.any() or (plain and colors[colored].min() >= 1):  # some programs always write white
        return part
    rest = (red, green, blue) if plain else (1, 1, 1)
    colors = np.where(colored[:, None], colors, rest)
    if plain:
        material = replace(material, base_color_factor=(1.0, 1.0, 1.0, alpha))
    return replace(part, colors=np.column_stack([colors, np.ones(len(colors))]), material=material)
