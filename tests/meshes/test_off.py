import numpy as np
import pytest

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import load
from tests.meshes.test_ply import GREY, area, check_damaged, colors_of

U = "0 0 0{0}\n3 0 0{0}\n3 3 0{0}\n2 3 0{0}\n2 1 0{0}\n1 1 0{0}\n1 3 0{0}\n0 3 0{0}\n"
WHOLE = "8 0 1 2 3 4 5 6 7\n"


@pytest.fixture
def off(tmp_path):
    def write(text: str):
        path = tmp_path / "object.off"
        path.write_bytes(text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("head", "columns", "faces", "color"),
    [
        ("OFF\n8 1 0\n", "", WHOLE, GREY),
        ("OFF8 1 0\n", "", WHOLE, GREY),  # as in ModelNet
        ("OFF 8 1\n", "", WHOLE, GREY),
        ("\N{BYTE ORDER MARK}off # a comment\r\n\r\n8 1 0 # counts\r\n", "", WHOLE, GREY),
        ("OFF\n8 3 0\n", "", "4 1 2 3 4\n3 1 4 5\n5 0 1 5 6 7\n", GREY),
        ("OFF\n8 3 0\n", "", "4 1 2 3 4\n\n# nothing\n1 0\n5 0 1 4 5 7\n", GREY),
        ("NOFF\n8 1 0\n", " 0 0 1", WHOLE, GREY),
        ("CNOFF\n8 1 0\n", " 0 0 1 255 51 0 255", WHOLE, (1, 0.2, 0)),
        ("COFF\n8 1 0\n", " 255 51 0 255", WHOLE, (1, 0.2, 0)),
        ("COFF\n8 1 0\n", " 1 .2 0 1", WHOLE, (1, 0.2, 0)),
        ("COFF\n8 1 0\n", " 1.004 0.2 0", WHOLE, (1, 0.2, 0)),
        ("STOFF\n8 1 0\n", " 0.5 0.5", WHOLE, GREY),
        ("STCNOFF 8 1 0\n", " 0 0 1 255 51 0 0.5 0.5", WHOLE, (1, 0.2, 0)),
        ("NCOFF\n8 1 0\n", " 255 51 0 255 0 0 1", WHOLE, (1, 0.2, 0)),  # as VCGLIB, of MeshLab, writes
        ("CSTOFF\n8 1 0\n", " 255 51 0 255 0.5 0.5", WHOLE, (1, 0.2, 0)),
        ("NCSTOFF\n8 1 0\n", " 255 51 0 255 0 0 1 0.5 0.5", WHOLE, (1, 0.2, 0)),
        ("OFF\n8 1 0\n", " 255 51 0", WHOLE, (1, 0.2, 0)),
        ("OFF\n8 1 0\n", "", WHOLE.replace("\n", " 255 51 0\n"), (1, 0.2, 0)),
        ("OFF\n8 1 0\n", "", WHOLE.replace("\n", " 1.0 0.2 0.0 0.5\n"), (1, 0.2, 0)),
        ("OFF\n8 1 0\n", "", WHOLE.replace("\n", " 3\n"), GREY),  # a place in a colour map
    ],
)
def test_variants(off, loaded, head, columns, faces, color):
    mesh = loaded(off(head + U.format(columns) + faces))
    if "4 5 7" not in faces:
        assert area(mesh) == pytest.approx(7)
    np.testing.assert_allclose(colors_of(mesh), np.tile(color, (mesh.face_count, 1)), atol=1e-6)
    assert all((part.normals is not None) == ("N" in head) for part in mesh.parts)


def test_some_faces_have_colors(off, loaded):
    faces = "3 0 1 5 255 0 0\n4 1 2 3 4\n4 0 5 6 7 0 0 255 255\n3 1 4 5 2\n"
    found = colors_of(loaded(off("OFF\n8 4 0\n" + U.format("") + faces)))
    np.testing.assert_allclose(found, [(1, 0, 0), GREY, GREY, (0, 0, 1), (0, 0, 1), GREY], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4OFF\n1 1 0\n0 0 0 0\n", "other than three dimensions"),
        ("nOFF\n4\n1 1 0\n0 0 0 0\n", "other than three dimensions"),
        ("OFF BINARY\n\0\0", "binary"),
        ("OFF\nmany 1 0\n", "malformed"),
        ("OFF\n-1 1 0\n0 0 0\n", "claims -1 vertices"),
        ("OFF\n8 2 0\n" + U.format("") + WHOLE, "claims 8 vertices and 2 faces, and has 9 lines"),
        ("OFF\n8 1 0\n" + U.format("").replace("3 3 0", "3 3") + WHOLE, "fewer than three"),
        ("OFF\n8 1 0\n" + U.format("") + WHOLE.replace(" 7", ""), "fewer vertices than it says"),
        ("OFF\n8 1 0\n" + U.format("") + WHOLE.replace(" 7", " 8"), "names vertex 8"),
        ("OFF\n8 1 0\n" + U.format("") + WHOLE.replace(" 7", " 6.5"), "no whole number"),
        ("OFF\n8 1 0\n" + U.format("") + WHOLE.replace(" 7", " x"), "'x' where a number should be"),
        ("OFF\n8 1 0\n" + U.format("") + "2 0 1\n", "no faces"),
        ("OFF\n8 1 0\n" + U.format("").replace("3 3 0", "3 nan 0") + WHOLE, "not finite"),
        ("OFF\n8 1 0\n" + U.format("") + WHOLE.replace("\n", " nan 0 0\n"), "not finite"),
    ],
)
def test_what_is_refused(off, text, message):
    with pytest.raises(ObjectError, match=message):
        load(off(text), max_faces=100, max_texture_pixels=1)


def test_damaged_files_are_rows(off):
    check_damaged(off("CNOFF\n8 2 0\n" + U.format(" 0 0 1 255 51 0") + WHOLE + "3 0 1 2 255 0 0\n"))
