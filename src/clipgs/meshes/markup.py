"""Reads XML, for the formats that are written in it."""

from array import array
from collections.abc import Iterator, Mapping
from typing import IO, Any
from xml.parsers import expat

from clipgs.core.errors import ObjectError

_DEEPEST = 1000  # levels; real files have some tens


class Element:
    """An XML element. Names have no prefix."""

    __slots__ = ("_pieces", "attributes", "children", "name", "rows")

    def __init__(self, name: str, attributes: Mapping[str, str]) -> None:
        self.name, self.attributes = name, attributes
        self.children: list[Element] = []
        self.rows: dict[str, array[float]] = {}  # numbers of the children that `parse` does not keep as elements
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text in the element itself."""
        return "".join(self._pieces)

    def get(self, name: str, default: str = "") -> str:
        return self.attributes.get(name, default)

    def all(self, *path: str) -> Iterator["Element"]:
        """Children by name, and theirs."""
        first, *rest = path
        for child in self.children:
            if child.name == first:
                yield from child.all(*rest) if rest else (child,)

    def first(self, *path: str) -> "Element | None":
        return next(self.all(*path), None)

    def walk(self) -> Iterator["Element"]:
        """The element and all below it."""
        queue = [self]
        while queue:
            element = queue.pop()
            yield element
            queue.extend(reversed(element.children))


def parse(data: bytes | IO[bytes], rows: Mapping[str, tuple[str, ...]] | None = None) -> Element:
    """The root of an XML document.

    `rows` names elements of which there may be millions, and their attributes. Those become numbers in `rows` of their
    parent, `nan` where an attribute is absent.

    Raises:
        ObjectError: it is not XML, is nested too deeply, or declares entities, which could multiply without bound.
        ValueError: an attribute of `rows` is not a number.
    """
    rows = rows or {}
    root = Element("", {})
    open_elements = [root]

    def start(name: str, attributes: dict[str, str]) -> None:
        columns = rows.get(name)
        if columns is None and ":" in name:
            name = name.rpartition(":")[2]
            columns = rows.get(name)
        parent = open_elements[-1]
        if columns is not None:
            if name not in parent.rows:
                parent.rows[name] = array("d")
            parent.rows[name].extend([float(attributes.get(column, "nan")) for column in columns])
            open_elements.append(parent)
            return
        if len(open_elements) > _DEEPEST:
            raise ObjectError(f"its XML has more than {_DEEPEST} levels")
        element = Element(name, {key.rpartition(":")[2]: value for key, value in attributes.items()})
        parent.children.append(element)
        open_elements.append(element)

    def end(_: str) -> None:
        open_elements.pop()

    def text(piece: str) -> None:
        if not open_elements[-1].rows:  # the blanks between millions of rows
            open_elements[-1]._pieces.append(piece)

    def doctype(*_: Any) -> None:
        raise ObjectError("its XML has a document type, which is not read")

    parser = expat.ParserCreate()  # without namespaces, since files use prefixes that they do not declare
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    try:
        if isinstance(data, bytes):
            parser.Parse(data, True)
        else:
            parser.ParseFile(data)
    except (expat.ExpatError, LookupError) as error:  # a LookupError is an unknown encoding
        raise ObjectError(f"it is not valid XML: {error}") from error
    return root.children[0]
