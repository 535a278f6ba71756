"""The header that meshes and splats share."""

import pytest

from clipgs.core.ply_header import parse_ply_header

HEADER = b"""ply
format binary_little_endian 1.0
comment \xc9mile \x85element face 8
comment element face 9
element vertex 4
property float x
property uchar red
property float64 weight
element face 2
property list uchar int vertex_indices
property list uint float texcoord
obj_info property float nothing
"""


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_elements_with_their_properties_and_the_bytes_of_a_row(ends):
    header = parse_ply_header(HEADER.replace(b"\n", ends))
    assert not header.text
    vertex, face = header.elements
    assert (vertex.name, vertex.count, vertex.properties, vertex.row_bytes) == ("vertex", 4, ["x", "red", "weight"], 13)
    assert (face.count, face.properties, face.row_bytes) == (
        2,
        ["vertex_indices", "texcoord"],
        5,
    )  # the lengths
    assert header.element("face") is face
    assert header.element("edge") is None
    assert parse_ply_header(HEADER.replace(b"binary_little_endian", b"ascii")).text


def test_what_is_not_plys():
    with pytest.raises(ValueError, match="many"):
        parse_ply_header(HEADER + b"element edge many")
    with pytest.raises(IndexError):
        parse_ply_header(b"ply\nproperty float x\n")
    header = parse_ply_header(HEADER + b"element edge 1\nproperty half x")  # readers of text need no sizes
    with pytest.raises(KeyError, match="half"):
        assert header.elements[2].row_bytes
