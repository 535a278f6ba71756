"""The header of PLY files, for meshes and splats: its elements, and how many bytes follow."""

from dataclasses import dataclass, field
from typing import NamedTuple

END = b"end_header"
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


def parse_ply_header(head: str) -> PlyHeader:
    """The lines before `end_header`. Lines of other words, or of too few, are passed over.

    Raises:
        ValueError: a count is no whole number.
        IndexError: a property comes before the first element.
    """
    text = False
    elements: list[Element] = []
    for line in head.splitlines():
        match line.split():
            case ["format", kind, *_]:
                text = kind == "ascii"
            case ["element", name, count]:
                elements.append(Element(name, int(count)))
            case ["property", "list", number_type, _, name] | ["property", number_type, name]:
                elements[-1].properties.append(name)
                elements[-1].types.append(number_type)
    return PlyHeader(text, elements)
