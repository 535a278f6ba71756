import struct

import numpy as np
import pytest
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.core.ply_header import SPLAT_PROPERTIES
from clipgs.meshes.load import load
from clipgs.meshes.materials import surface_rgba

FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
CODES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d"}
SQUARE = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (0, 2, 0)]
XYZ = ["float x", "float y", "float z"]
CORNERS = ["list uchar int vertex_indices"]
U = [(0, 0, 0), (3, 0, 0), (3, 3, 0), (2, 3, 0), (2, 1, 0), (1, 1, 0), (1, 3, 0), (0, 3, 0)]
GREY = (0.7, 0.7, 0.7)


def ply(path, *elements, form="ascii", comments=(), end="\n"):
    """Writes a PLY of `(name, properties, rows)`; a list in a row is a tuple."""
    head = ["ply", f"format {form} 1.0", *(f"comment {text}" for text in comments)]
    body = b""
    for name, properties, rows in elements:
        head += [f"element {name} {len(rows)}", *(f"property {text}" for text in properties)]
        for row in rows:
            words = []
            for text, value in zip(properties, row, strict=True):
                kinds = text.split()
                if kinds[0] == "list":
                    words += [(kinds[1], len(value)), *((kinds[2], item) for item in value)]
                else:
                    words.append((kinds[0], value))
            if form == "ascii":
                body += " ".join(str(value) for _, value in words).encode() + end.encode()
            else:
                body += b"".join(struct.pack(FORMATS[form] + CODES[kind], value) for kind, value in words)
    path.write_bytes((end.join(head) + end + "end_header" + end).encode() + body)
    return path


def colors_of(mesh, corner=0):
    """The sRGB colour near a corner of every triangle of all parts [T, 3], in the order of the parts."""
    weights = np.full(3, 0.05)
    weights[corner] = 0.9
    found = [surface_rgba(p, np.arange(len(p.faces)), np.tile(weights, (len(p.faces), 1)))[:, :3] for p in mesh.parts]
    return np.concatenate(found)


def area(mesh):
    """In the units of the file."""
    total = 0.0
    for part in mesh.parts:
        a, b, c = (part.vertices[part.faces[:, k]].astype(float) for k in range(3))
        total += np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return total / mesh.scale**2


@pytest.fixture
def path(tmp_path):
    return tmp_path / "object.ply"


@pytest.fixture
def pictures(tmp_path):
    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGB", (64, 64), (0, 255, 0)).save(tmp_path / "green.png")
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:32, :, 0], halves[32:, :, 2] = 255, 255  # red above, blue below
    Image.fromarray(halves).save(tmp_path / "halves.png")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("index", ["uchar int", "int uint", "uint ushort", "ushort char"])
@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        ([(0, 1, 2, 3, 4, 5, 6, 7)], 7),
        ([(0, 1, 5), (1, 2, 3, 4), (0, 5, 6, 7), (), (1,), (1, 4, 5)], 7),  # lists of all lengths
        ([(0, 1, 5), (0, 5, 6), (0, 6, 7)], 4),
    ],
)
def test_polygons(path, loaded, form, index, faces, expected):
    rows = [(x, 7, y, z) for x, y, z in U]
    vertex = ("vertex", ["double x", "short nothing", "float y", "float z"], rows)
    other = ("user", ["list uchar float words", "int mark"], [((1.5, 2.5), 1), ((), 2)])
    edge = ("edge", ["int vertex1", "int vertex2"], [(0, 1)])
    face = ("face", ["uchar flag", f"list {index} vertex_index", "float more"], [(1, f, 0.5) for f in faces])
    assert area(loaded(ply(path, other, vertex, edge, face, form=form))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", FORMATS)
def test_line_ends(path, loaded, form, end):
    # The first byte of the rows is that of a line end.
    vertex = ("vertex", ["uchar mark", *XYZ], [(10, *corner) for corner in SQUARE])
    loaded_mesh = loaded(ply(path, vertex, ("face", CORNERS, [((0, 1, 2, 3),)]), form=form, end=end))
    assert area(loaded_mesh) == pytest.approx(4)


def test_blank_lines_and_comments(path, loaded):
    path.write_text(
        "ply\ncomment before the format, with the word element face 9\n\nformat ascii 1.0\nobj_info nothing\n"
        "comment the texturefile is here\ncomment texturefile of this scan was lost\n\nelement vertex 3\n"
        "property float x\nproperty float y\nproperty float z\nelement face 1\nproperty list uchar int vertex_indices\n"
        "end_header\n\n0 0 0\ncomment nan 5\n2 0 0\n\n# end_header\n0 2 0\n\n3 0 1 2"
    )
    assert area(loaded(path)) == pytest.approx(2)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("index", ["int", "uint", "ushort"])
def test_strips(path, loaded, form, index):
    """Both strips lie in one plane, and all their triangles face the same way."""
    if form == "ascii" and index != "int":
        pytest.skip("a text says -1")
    none = -1 if index == "int" else 2 ** (8 * struct.calcsize(CODES[index])) - 1
    points = [(x, y, 0) for x in range(4) for y in range(2)]
    strips = [((1, 0, 3, 2, 5, none, 5, 4, 7, 6),)]
    tristrips = ("tristrips", [f"list int {index} vertex_indices"], strips)
    mesh = loaded(ply(path, ("vertex", XYZ, points), tristrips, form=form))
    (part,) = mesh.parts
    assert (mesh.face_count, area(mesh)) == (5, pytest.approx(2.5))
    a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
    assert len(set(np.sign(np.cross(b - a, c - a)[:, 2]))) == 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("element", ["vertex", "face"])
@pytest.mark.parametrize(
    ("names", "kind", "values", "expected"),
    [
        ("red green blue", "uchar", (255, 128, 0), (1, 128 / 255, 0)),
        ("r g b", "uchar", (255, 128, 0), (1, 128 / 255, 0)),
        ("diffuse_red diffuse_green diffuse_blue ambient_red ambient_green ambient_blue", "uchar", (1, 2, 3, 9, 9, 9),
         (1 / 255, 2 / 255, 3 / 255)),
        ("red green blue", "ushort", (65535, 32896, 0), (1, 32896 / 65535, 0)),
        ("red green blue", "ushort", (255, 51, 0), (1, 0.2, 0)),
        ("red green blue", "float", (1.004, 0.5, -0.01), (1, 0.5, 0)),  # overshoots
        ("red green blue", "double", (1, 0.5, 0), (1, 0.5, 0)),
        ("red green blue", "float", (255, 127.5, 0), (1, 0.5, 0)),
        ("red green blue", "int", (255, 51, 0), (1, 0.2, 0)),
        ("red green blue alpha", "uchar", (255, 51, 0, 0), (1, 0.2, 0)),  # alpha means nothing
        ("red green blue alpha", "uchar", (0, 0, 0, 0), GREY),  # Blender, of an object without colours
        ("ambient_red ambient_green ambient_blue", "uchar", (9, 9, 9), GREY),
    ],
)  # fmt: skip
def test_colors(path, loaded, form, element, names, kind, values, expected):
    properties = [f"{kind} {name}" for name in names.split()]
    own = element == "vertex"
    vertex = ("vertex", XYZ + properties * own, [(*corner, *values * own) for corner in [*SQUARE, (9, 9, 9)]])
    faces = [((0, 1, 2, 3), *values * (not own)), ((0, 1, 2), *values * (not own))]
    mesh = loaded(ply(path, vertex, ("face", CORNERS + properties * (not own), faces), form=form))
    np.testing.assert_allclose(colors_of(mesh), np.tile(expected, (3, 1)), atol=1e-6)


def test_one_color_out_of_range_does_not_darken_the_others(path, loaded):
    rows = [(*corner, 0.5, 0.5, 0.5) for corner in SQUARE[:3]] + [(0, 2, 0, 40.0, 0, 0)]
    vertex = ("vertex", [*XYZ, "float red", "float green", "float blue"], rows)
    mesh = loaded(ply(path, vertex, ("face", CORNERS, [((0, 1, 2),), ((0, 2, 3),)])))
    np.testing.assert_allclose(colors_of(mesh)[0], [0.5, 0.5, 0.5], atol=1e-6)


def test_each_polygon_has_its_own_color(path, loaded):
    faces = [((0, 1, 5), 255, 0, 0), ((1, 2, 3, 4), 0, 255, 0), ((0, 5, 6, 7), 0, 0, 255)]
    colors = ["uchar red", "uchar green", "uchar blue"]
    mesh = loaded(ply(path, ("vertex", XYZ, U), ("face", CORNERS + colors, faces), form="binary_little_endian"))
    np.testing.assert_allclose(colors_of(mesh), np.eye(3)[[0, 1, 1, 2, 2]], atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("names", ["s t", "u v", "texture_u texture_v"])
def test_texture_coordinates_of_vertices(path, loaded, pictures, names, form):
    """0 is at the bottom. A vertex that no face names, normals and colours beside them change nothing."""
    properties = [*XYZ, "float nx", "float ny", "float nz", "uchar red", "uchar green", "uchar blue"]
    rows = [(x, y, z, 0, 0, 1, 9, 9, 9, x / 2, 0.25 if y == 0 else 0.9) for x, y, z in [(50, 50, 50), *SQUARE]]
    vertex = ("vertex", properties + [f"float {name}" for name in names.split()], rows)
    mesh = loaded(
        ply(path, vertex, ("face", CORNERS, [((1, 2, 3, 4),)]), form=form, comments=["TextureFile halves.png"])
    )
    (part,) = mesh.parts
    np.testing.assert_allclose(part.normals, np.tile([0, 0, 1], (len(part.vertices), 1)))
    np.testing.assert_allclose(part.uv[:, 1], np.where(part.vertices[:, 1] < 0, 0.75, 0.1), atol=1e-6)
    np.testing.assert_allclose(colors_of(mesh, 0)[0], [0, 0, 1], atol=0.01)  # the lower corner is blue


@pytest.mark.parametrize("form", FORMATS)
def test_texture_coordinates_of_corners(path, loaded, pictures, form):
    """MeshLab's export: seams between faces that share vertices, normals, several pictures, a face without."""
    normals = ["float nx", "float ny", "float nz"]
    low, high = (0.1, 0.1, 0.2, 0.1, 0.2, 0.2), (0.1, 0.9, 0.2, 0.9, 0.2, 0.8)
    faces = [
        ((0, 1, 2), low, 0),
        ((0, 2, 3), high, 0),
        ((0, 1, 2), low, 1),
        ((1, 2, 3), (), 0),
        ((1, 2, 3), low, -1),
        ((0, 1, 2, 3), (*low, 0.1, 0.2), 2),
    ]
    mesh = loaded(
        ply(
            path,
            ("vertex", XYZ + normals, [(*corner, 0, 0, 1) for corner in SQUARE]),
            ("face", [*CORNERS, "list uchar float texcoord", "int texnumber"], faces),
            form=form,
            comments=["TextureFile halves.png", "TextureFile red.png", "TextureFile green.png"],
        )
    )
    found = sorted(map(tuple, np.round(colors_of(mesh), 3).tolist()))
    expected = [(0, 0, 1), (1, 0, 0), (1, 0, 0), GREY, GREY, (0, 1, 0), (0, 1, 0)]
    np.testing.assert_allclose(found, sorted(expected), atol=1e-3)
    assert all(len(part.normals) == len(part.vertices) for part in mesh.parts)


TRIANGLE = "ply\nformat {} 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
FACE = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
POINTS = "0 0 0\n1 0 0\n0 1 0\n"
GAUSSIAN = "".join(f"property float {name}\n" for name in SPLAT_PROPERTIES[3:])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\n", "no header"),
        (TRIANGLE.format("ascii") + "end_header\n" + POINTS, "no faces, only 3 points"),
        (TRIANGLE.format("ascii") + FACE.replace("face 1", "face 0") + POINTS, "no faces, only 3 points"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "2 0 1\n", "no faces, only 3 points"),
        (TRIANGLE.format("ascii") + GAUSSIAN + "end_header\n", "Gaussian splat"),
        (TRIANGLE.format("ascii").replace("float x", "uint packed_position") + "end_header\n", "Gaussian splat"),
        (TRIANGLE.format("ascii_2") + FACE + POINTS + "3 0 1 2\n", "format 'ascii_2'"),
        (TRIANGLE.format("ascii").replace("float x", "half x") + FACE + POINTS + "3 0 1 2\n", "type 'half'"),
        (TRIANGLE.format("ascii").replace(" y", " q") + FACE + POINTS + "3 0 1 2\n", "no vertices with x, y and z"),
        (TRIANGLE.format("ascii") + FACE.replace("list uchar int", "int") + POINTS + "3\n", "no list of vertices"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "3 0 1 3\n", "names vertex 3, of which there are 3"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "3 0 1 -1\n", "names vertex -1"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "3 0 1 1.5\n", "no whole number"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "1e300 0 1 2\n", "cut short"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "nan 0 1 2\n", "length that is no whole number"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "-3 0 1 2\n", "length that is no whole number"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "3 0 1\n", "ends within its 1 rows of face"),
        (TRIANGLE.format("ascii") + FACE + POINTS + "3 0 1 two\n", "'two' where a number should be"),
        (TRIANGLE.format("ascii") + FACE.replace("uchar", "float") + POINTS + "3 0 1 2\n", "no whole numbers"),
        (TRIANGLE.format("ascii") + FACE + POINTS.replace("1 0 0", "nan 0 0") + "3 0 1 2\n", "not finite"),
        ("ply\nproperty float x\nend_header\n", "malformed: a property"),
        (TRIANGLE.format("binary_big_endian") + FACE + "\0" * 36 + "\xff\0\0\0", "cut short"),
        (TRIANGLE.format("binary_big_endian") + FACE + "\0" * 30, "cut short"),
        (
            TRIANGLE.format("ascii") + "property int red\nproperty int green\nproperty int blue\n" + FACE
            + "0 0 0 900 0 0\n1 0 0 1 1 1\n0 1 0 1 1 1\n3 0 1 2\n",
            "from 0 to 900",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(path, text, message):
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ObjectError, match=message):
        load(path, max_faces=100, max_texture_pixels=100)


@pytest.mark.parametrize("rest", ["9 1 1 1 1 1 1 1 1 1", "0.5"])
def test_words_that_the_header_does_not_declare_are_left_out(path, rest):
    corners = "property uchar red\nend_header\n"
    header = TRIANGLE.format("ascii") + FACE.replace("face 1", "face 2").replace("end_header\n", corners)
    path.write_text(f"{header}{POINTS}comment faces\n3 0 1 2 {rest}\n\n3 2 1 0 {rest}\n")
    assert load(path, max_faces=100, max_texture_pixels=100).face_count == 2


def test_no_file_is_asked_for_that_no_face_shows(path, loaded):
    vertex, face = ("vertex", XYZ, SQUARE), ("face", CORNERS, [((0, 1, 2, 3),)])
    assert loaded(ply(path, vertex, face, comments=["TextureFile absent.png"])).face_count == 2


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_rows(path, form):
    ply(
        path,
        ("vertex", [*XYZ, "uchar red", "uchar green", "uchar blue"], [(*corner, 255, 128, 0) for corner in U]),
        ("face", [*CORNERS, "list uchar float texcoord"], [((0, 1, 5), (0.5,) * 6), ((1, 2, 3, 4), ())]),
        ("tristrips", ["list int int vertex_indices"], [((0, 1, 2, -1, 3, 4, 5),)]),
        form=form,
    )
    check_damaged(path)


def check_damaged(path):
    """100 times cuts the file short, or changes up to four of its bytes: what is refused is refused in a sentence."""
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    alphabet = np.frombuffer(b"0123456789 -.\n\0\xff", np.uint8)
    for _ in range(100):
        data = np.frombuffer(whole, np.uint8).copy()
        if rng.random() < 0.5:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data), size=4)] = rng.choice(alphabet, 4)
        path.write_bytes(data.tobytes())
        refusal = ""
        try:
            load(path, max_faces=1000, max_texture_pixels=100)
        except ObjectError as error:
            refusal = str(error)
        assert "Error" not in refusal  # the name of an exception
