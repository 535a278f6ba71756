"""The header of PLY files, for meshes and splats: its elements, and how many bytes follow."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

END = b"end_header"
SPLAT_PROPERTIES = (
    *("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
_BYTES_OF_TYPE = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64"), 8),
}


@dataclass
class Element:
    """Rows of one kind, such as `vertex` or `face`."""

    name: str
    count: int
    properties: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # of each property; of a list, its length's

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in a binary file; of a list only its length is counted.

        Raises:
            KeyError: a type is none of PLY's.
        """
        return sum(_BYTES_OF_TYPE[number_type] for number_type in self.types)


class PlyHeader(NamedTuple):
    text: bool  # of `format ascii`
    elements: list[Element]  # in the order of the file

    def element(self, name: str) -> Element | None:
        """The first element of that name."""
        return next((element for element in self.elements if element.name == name), None)


def parse_ply_header(head: bytes) -> PlyHeader:
    """The lines before `end_header`. Lines of other words, or of too few, are passed over; comments have any encoding.

    Raises:
        ValueError: a count is no whole number.
        IndexError: a property comes before the first element.
    """
    text = False
    elements: list[Element] = []
    for line in head.decode("ascii", "replace").splitlines():
        match line.split():
            case ["format", kind, *_]:
                text = kind == "ascii"
            case ["element", name, count]:
                elements.append(Element(name, int(count)))
            case ["property", "list", number_type, _, name] | ["property", number_type, name]:
                elements[-1].properties.append(name)
                elements[-1].types.append(number_type)
    return PlyHeader(text, elements)


def splat_lacks(columns: Collection[str]) -> list[str]:
    """The properties without which vertices are no Gaussians.

    Colours may be `red`, `green`, `blue` instead of harmonics, and flat Gaussians (2DGS) have no third scale.
    """
    replaced = {"f_dc_0", "f_dc_1", "f_dc_2"} if {"red", "green", "blue"}.issubset(columns) else set()
    replaced |= {"scale_2"} if {"scale_0", "scale_1"}.issubset(columns) else set()
    return [name for name in SPLAT_PROPERTIES if name not in columns and name not in replaced]
