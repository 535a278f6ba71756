import struct

import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import load
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES
from tests.meshes.test_ply import area, check_damaged, colors_of

TRIANGLES = CUBE_CORNERS[CUBE_FACES]
AREA = 6 * (CUBE_CORNERS.max() - CUBE_CORNERS.min()) ** 2


def binary(header=b"", attributes=(0,) * 12, trailing=b"") -> bytes:
    rows = b"".join(
        struct.pack("<12fH", 0, 0, 0, *t.ravel(), value) for t, value in zip(TRIANGLES, attributes, strict=True)
    )
    return header.ljust(80, b"\0") + struct.pack("<I", len(TRIANGLES)) + rows + trailing


def text(triangles=TRIANGLES, number="{:e}", name="vertex of a cube 1 2 3") -> str:
    corners = ["".join("vertex " + " ".join(number.format(x) for x in v) + "\n" for v in t) for t in triangles]
    facets = "".join(f"  facet normal 0 0 1\nouter loop\n{c}endloop\nendfacet\n" for c in corners)
    return f"solid {name}\n{facets}endsolid {name}\n"


@pytest.mark.parametrize(
    "data",
    [
        binary(),
        binary(b"solid by a binary exporter"),
        binary(b"solid facet vertex", trailing=b"\0" * 37),
        binary(trailing=b"made by a program"),
        text().encode(),
        text(number="{:+.3f}").upper().encode(),
        ("# a comment with a vertex 1 2 3\n\n" + text()).encode(),
        ("\N{BYTE ORDER MARK}" + text()).encode(),
        text().partition("endsolid")[0].encode(),
        (text(TRIANGLES[:5]) + text(TRIANGLES[5:], name="")).encode(),
        text().replace("\n", "\r\n").encode(),
        text().replace("\n", "\r").encode(),
        text(name="").replace("\n", " ").encode(),  # all on one line
        text().replace("0 0 1", "-nan(ind) nan 0").encode(),
        text(TRIANGLES.reshape(6, 2, 3, 3)[:, [0, 0, 0, 1], [0, 1, 2, 2]]).encode(),  # quads
    ],
)
def test_shapes(tmp_path, loaded, data):
    path = tmp_path / "object.stl"
    path.write_bytes(data)
    mesh = loaded(path)
    assert (mesh.face_count, area(mesh)) == (12, pytest.approx(AREA, rel=1e-5))
    np.testing.assert_allclose(colors_of(mesh), np.full((12, 3), 0.7), atol=1e-6)


RED, GREEN, BLUE = 31 << 10, 31 << 5, 31  # of VisCAM; Magics has red and blue the other way round
OWN = 1 << 15


@pytest.mark.parametrize(
    ("header", "attributes", "expected"),
    [
        (b"made here", [OWN | RED, OWN | GREEN, OWN | BLUE, RED], [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.7,) * 3]),
        (b"made here", [RED, GREEN, BLUE, 0], [(0.7,) * 3] * 4),
        (b"COLOR=\xff\x33\x00\xff,", [BLUE, GREEN, RED, OWN], [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.2, 0)]),
        (b"by Magics COLOR=\xff\x80\x00\xff", [0] * 4, [(1, 128 / 255, 0)] * 4),  # nothing was written into them
    ],
)  # fmt: skip
def test_colors(tmp_path, loaded, header, attributes, expected):
    path = tmp_path / "object.stl"
    path.write_bytes(binary(header, attributes * 3))
    np.testing.assert_allclose(colors_of(loaded(path)), expected * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"solid\nendsolid\n", "no faces"),
        (bytes(84), "no faces"),
        (bytes(84) + b"more", "claims 0 triangles, and 4 bytes follow"),
        (binary()[:-1], "claims 12 triangles"),
        (b"PK\x03\x04", "has 4 bytes"),
        (text()[: text().rindex("endloop")].encode(), "ends within a triangle"),
        (text(name="")[: text(name="").rindex("vertex") + 20].encode(), "ends within a triangle"),
        (text().replace("vertex -", "vertex x", 1).encode(), "where a number should be|within a triangle"),
        (text(TRIANGLES * np.float32("nan")).encode(), "not finite"),
    ],
)
def test_what_is_refused(tmp_path, data, message):
    path = tmp_path / "object.stl"
    path.write_bytes(data)
    with pytest.raises(ObjectError, match=message):
        load(path, max_faces=100, max_texture_pixels=1)


@pytest.mark.parametrize("data", [binary(), text().encode()])
def test_damaged_files_are_rows(tmp_path, data):
    path = tmp_path / "object.stl"
    path.write_bytes(data)
    check_damaged(path)
