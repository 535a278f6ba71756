"""The header of PLY files, for meshes and splats: its elements, and how many bytes follow."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

END = b"end_header"
SPLAT_PROPERTIES = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
NUMPY_TYPES = {  # without the order of bytes
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_HEADER_END = re.compile(rb"(?:\A|[\r\n])[ \t]*end_header[ \t]*(\r\n|\r|\n|\Z)")


@dataclass
class Element:
    """Rows of one kind, such as `vertex` or `face`."""

    name: str
    count: int
    properties: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # of each property; of a list, its length's
    items: list[str | None] = field(default_factory=list)  # the type of a list's items; None: the property is no list

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a binary file; of a list only its length is counted.

        Raises:
            KeyError: a type is none of PLY's.
        """
        return sum(int(NUMPY_TYPES[number_type][1]) for number_type in self.types)


class PlyHeader(NamedTuple):
    format: str  # ascii, binary_little_endian or binary_big_endian
    elements: list[Element]  # in the order of the file
    comments: list[str]  # what follows the word `comment`

    @property
    def text(self) -> bool:
        return self.format == "ascii"

    def element(self, name: str) -> Element | None:
        """The first element of that name."""
        return next((element for element in self.elements if element.name == name), None)


def split_ply(data: bytes) -> tuple[bytes, int] | None:
    """The lines before `end_header`, and where the rows begin; None if this is no PLY, or its header does not end."""
    end = _HEADER_END.search(data)
    if not data.startswith(b"ply") or end is None:
        return None
    # Where lines end with CR alone, an LF after the last one is the first byte of the rows.
    alone = data[3:4] == b"\r" and data[4:5] != b"\n" and end[1] == b"\r\n"
    return data[: end.start()], end.end() - alone


def parse_ply_header(head: bytes) -> PlyHeader:
    """The lines before `end_header`. Lines of other words, or of too few, are passed over; comments have any encoding.

    Raises:
        ValueError: a count is no whole number.
        IndexError: a property comes before the first element.
    """
    kind = ""
    elements: list[Element] = []
    comments: list[str] = []
    try:
        text = head.decode()
    except UnicodeDecodeError:
        text = head.decode("latin-1")
    for line in re.split("\r\n|\r|\n", text):
        match line.split():
            case ["format", kind, *_]:
                pass
            case ["comment", *_]:
                comments.append(line.strip()[len("comment") :].strip())
            case ["element", name, count]:
                elements.append(Element(name, int(count)))
            case ["property", "list", number_type, item, name]:
                _append(elements[-1], name, number_type, item)
            case ["property", number_type, name]:
                _append(elements[-1], name, number_type, None)
    return PlyHeader(kind, elements, comments)


def _append(element: Element, name: str, number_type: str, item: str | None) -> None:
    element.properties.append(name)
    element.types.append(number_type)
    element.items.append(item)


def splat_lacks(columns: Collection[str]) -> list[str]:
    """The properties without which vertices are no Gaussians.

    Colours may be `red`, `green`, `blue` instead of harmonics, and flat Gaussians (2DGS) have no third scale.
    """
    replaced = {"f_dc_0", "f_dc_1", "f_dc_2"} if {"red", "green", "blue"}.issubset(columns) else set()
    replaced |= {"scale_2"} if {"scale_0", "scale_1"}.issubset(columns) else set()
    return [name for name in SPLAT_PROPERTIES if name not in columns and name not in replaced]
