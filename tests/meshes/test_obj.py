"""OBJ and MTL as programs really write them."""

import numpy as np
import pytest
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import load
from clipgs.meshes.materials import Material, linear_to_srgb, srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import CUBE_CORNERS

GREY = (0.7, 0.7, 0.7)
QUAD = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvn 0 0 1\n"
FACE = "f 1/1/1 2/2/1 3/3/1 4/4/1\n"
RED = "newmtl m\nKd 1 0 0\n"
PICTURE = "newmtl m\nKd 1 1 1\nmap_Kd t.png\n"


@pytest.fixture
def read(tmp_path):
    """Writes an OBJ, its library and pictures, and loads it. The picture t.png is half red, half blue."""
    Image.fromarray(np.uint8([[[255, 0, 0]] * 4 + [[0, 0, 255]] * 4] * 8)).save(tmp_path / "t.png")

    def read(text, mtl=None, max_faces=1000, missing_material="neutral", **pictures):
        for name, pixels in pictures.items():
            Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / f"{name}.png")
        if mtl is not None:
            (tmp_path / "m.mtl").write_text(mtl)
            text = f"mtllib m.mtl\n{text}" if isinstance(text, str) else text
        path = tmp_path / "object.obj"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load(path, max_faces=max_faces, max_texture_pixels=10_000, missing_material=missing_material)

    return read


def colors_at(mesh, points) -> np.ndarray:
    """sRGB and alpha [P, 4] at points of the unit quad in its own coordinates [P, 2]."""
    found = []
    for point in np.asarray(points, float):
        for part in mesh.parts:
            corners = part.vertices[part.faces].astype(float) / mesh.scale + mesh.centre
            for face, corner in enumerate(corners):
                edges = np.stack([corner[1] - corner[0], corner[2] - corner[0]], axis=1)
                weights = np.linalg.lstsq(edges[:2], point - corner[0, :2], rcond=None)[0]
                barycentric = np.array([[1 - weights.sum(), *weights]])
                if barycentric.min() > -1e-6:
                    found.append(surface_rgba(part, np.array([face]), barycentric)[0])
                    break
            else:
                continue
            break
    return np.array(found)


def only_color(mesh) -> np.ndarray:
    """The one colour and alpha of the mesh."""
    found = [
        surface_rgba(part, np.repeat(np.arange(len(part.faces)), 3), np.tile(np.eye(3), (len(part.faces), 1)))
        for part in mesh.parts
    ]
    colors = np.unique(np.concatenate(found).round(4), axis=0)
    assert len(colors) == 1
    return colors[0]


def area_of(mesh) -> float:
    corners = [part.vertices[part.faces].astype(float) / mesh.scale for part in mesh.parts]
    return sum(np.linalg.norm(np.cross(c[:, 1] - c[:, 0], c[:, 2] - c[:, 0]), axis=1).sum() / 2 for c in corners)


# --- faces and lines ---


@pytest.mark.parametrize(
    "text",
    [
        QUAD + FACE,
        (QUAD + FACE).replace(" ", "\t"),
        (QUAD + FACE).replace(" ", " \t  ").replace("\n", "  \n \t"),
        (QUAD + FACE).replace("\n", "\r\n"),
        (QUAD + FACE).replace("\n", "\r"),
        (QUAD + FACE).replace("\n", "\n\n# a comment\n\n"),
        QUAD.replace("\n", " # the rest is a comment\n") + FACE.strip() + "# a face",
        QUAD + "f 1/1/1 2/2/1 \\\n3/3/1 \\\r\n 4/4/1",
        "\ufeff" + QUAD + FACE,
        QUAD + "f -4/-4/-1 -3/-3/-1 -2/-2/-1 -1/-1/-1\nv 9 9 9\nvt 9 9\nvn 1 0 0\n",
        "o a\ng b c\ns off\n" + QUAD + "l 1 2 3\np 1\nf 1 2\nf\n" + FACE,
        QUAD.replace("vt 1 0\n", "vt 1 0 0\n").replace("v 1 0 0\n", "v 1 0 0 1.0\n") + FACE,
        FACE + QUAD,
        QUAD.replace("vn 0 0 1", "vn 0 0 1.#QNAN") + FACE,
    ],
    ids=lambda text: repr(text)[-40:],
)
def test_ways_to_write_one_quad(read, text):
    mesh = read("usemtl m\n" + text if "\ufeff" not in text else text + "\n", None)
    assert mesh.face_count == 2
    assert area_of(mesh) == pytest.approx(1)
    (part,) = mesh.parts
    assert part.normals is not None


def test_a_textured_quad_stands_upright(read):
    mesh = read(QUAD + "usemtl m\n" + FACE, PICTURE, t=[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])
    found = colors_at(mesh, [(0.25, 0.75), (0.75, 0.75), (0.25, 0.25), (0.75, 0.25)])[:, :3]
    np.testing.assert_allclose(found, [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], atol=1e-5)
    np.testing.assert_allclose(mesh.parts[0].normals, [[0, 0, 1]] * 4)


def test_concave_and_mixed_polygons(read):
    outline = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
    text = "".join(f"v {x} {y} 0\n" for x, y in [*outline, (4, 0), (4, 1)])
    mesh = read(text + "f 1 2 3 4 5 6 7 8\nf 2 9 10\nf 2 10 9 2 2\n")
    assert area_of(mesh) == pytest.approx(7 + 2 * 0.5)
    assert mesh.face_count == 6 + 1 + 3


def test_vertices_are_split_at_seams_and_nowhere_else(read):
    """Two quads that share an edge: the coordinates of one end of it differ, and the normals of none."""
    text = QUAD + "v 2 0 0\nv 2 1 0\nvt 0.5 0\nusemtl m\n" + FACE + "f 2/5/1 5/2/1 6/3/1 3/3/1\n"
    (part,) = read(text, PICTURE).parts
    assert len(part.vertices) == 7
    (part,) = read(text, RED).parts  # without a picture coordinates do not matter
    assert len(part.vertices) == 6


def test_interleaved_faces_keep_their_materials_in_the_order_of_the_file(read):
    lines, cycle = [], ["b", "a", "c"]
    for index in range(9):
        lines += [f"v {index} {x} {y}" for x, y in ((0, 0), (1, 0), (0, 1))]
        lines += [f"usemtl {cycle[index % 3]}", "f -3 -2 -1"]
    mesh = read("\n".join(lines), "newmtl a\nKd 1 0 0\nnewmtl b\nKd 0 1 0\nnewmtl c\nKd 0 0 1\n")
    assert [part.material.base_color_factor[:3] for part in mesh.parts] == [(0, 1, 0), (1, 0, 0), (0, 0, 1)]
    at = [np.unique((part.vertices[:, 0] / mesh.scale + mesh.centre[0]).round()).tolist() for part in mesh.parts]
    assert at == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (QUAD + "f 0 1 2\n", r"'f 0 1 2' names vertex 0, but OBJ counts from 1"),
        (QUAD + "f 1 2 5\n", r"'f 1 2 5' names a vertex that is not there: there are 4"),
        (QUAD + "f 1 2 -5\n", r"'f 1 2 -5' names a vertex that is not there"),
        (QUAD + "f 1/1 2/2 3/9\n", "texture coordinate that is not there: there are 4"),
        (QUAD + "f 1//1 2//1 3//2\n", "normal that is not there: there are 1"),
        (QUAD + "f 1 2 99999999999999999999\n", "not there"),
        (QUAD + "f 1 2 three\n", r"'f 1 2 three' is not a face of whole numbers"),
        (QUAD + "f 1.0 2.0 3.0\n", "not a face of whole numbers"),
        (QUAD + "f /1 /2 /3\n", "not a face of whole numbers"),
        ("v 0 0\n" + QUAD + FACE, r"'v 0 0' has fewer than three numbers"),
        ("v 0,5 0 0\n" + QUAD + FACE, r"'v 0,5 0 0' has a word that is not a number"),
        (QUAD + "f " + "1 2 3 " * 400, "more than the limit of 1000"),
        (QUAD.replace("v 0 0 0", "v 0 0 0 nan 0 0") + FACE, "colours are not finite"),
        (QUAD, "no faces"),
        ("v " + "1" * 5000 + "x 0 0\n", r"\.\.\.' has a word"),
    ],
)
def test_what_is_wrong_is_said(read, text, message):
    with pytest.raises(ObjectError, match=message):
        read(text)


def test_texture_coordinates_and_normals_that_no_line_gives_are_left_out(read):
    mesh = read(QUAD.replace("vt", "#").replace("vn", "#") + FACE)
    assert mesh.parts[0].normals is None
    assert area_of(mesh) == pytest.approx(1)


def test_a_face_without_coordinates_does_not_cost_the_others_theirs(read):
    text = QUAD + "v 2 0 0\nv 2 1 0\nusemtl m\n" + FACE
    mesh = read(text + "f 2 5 6 3\n", PICTURE.replace("1 1 1", "0 1 0"))
    textured, plain = mesh.parts
    assert textured.normals is not None
    assert plain.normals is None
    np.testing.assert_allclose(colors_at(mesh, [(0.1, 0.5), (0.9, 0.5), (1.5, 0.5)])[:, :3], np.eye(3)[[0, 2, 1]])
    mesh = read(text + "f 2/1 5/2 6/3\nf 2//1 6//1 3//1\n", PICTURE)
    assert [(part.uv is None, part.normals is None) for part in mesh.parts] == [
        (False, False),
        (False, True),
        (True, False),
    ]


# --- colours of vertices ---


@pytest.mark.parametrize(
    ("values", "color"),
    [
        ("1 0.5 0", (1, 0.5, 0)),
        ("1.004 0.5 0", (1, 0.5, 0)),
        ("1.7 0.5 -0.1", (1, 0.5, 0)),
        ("255 127.5 0", (1, 0.5, 0)),
        ("1 1 0", (1, 1, 0)),
        ("4 4 0", (1, 1, 0)),  # no mesh is as black as bytes of 4
        ("1 0.5 0 0.25", (1, 0.5, 0)),  # with an alpha that is not counted
    ],
)
def test_colours_of_vertices_are_clamped_fractions_or_bytes(read, values, color):
    text = "\n".join(f"{line} {values}" if line.startswith("v ") else line for line in QUAD.splitlines())
    np.testing.assert_allclose(only_color(read(f"{text}\n{FACE}"))[:3], color, atol=2e-4)


@pytest.mark.parametrize("kd", ["Kd 0.8 0.8 0.8\n", ""])
def test_kd_gives_way_to_colours_of_vertices(read, kd):
    text = "\n".join(f"{line} 1 0.5 0" if line.startswith("v ") else line for line in QUAD.splitlines())
    found = only_color(read(f"{text}\nusemtl m\n{FACE}", f"newmtl m\n{kd}d 0.5\n"))
    np.testing.assert_allclose(found, (1, 0.5, 0, 0.5), atol=1e-4)
    white = text.replace("1 0.5 0", "1 1 1")
    expected = (0.8, 0.8, 0.8) if kd else GREY  # white is what programs write that always write colours
    np.testing.assert_allclose(
        only_color(read(f"{white}\nusemtl m\n{FACE}", f"newmtl m\n{kd}"))[:3], expected, atol=1e-4
    )


@pytest.mark.parametrize(("mtl", "rest"), [(RED, (1, 0, 0)), (None, GREY)])
def test_vertices_without_a_colour_have_that_of_the_material(read, mtl, rest):
    text = QUAD.replace("v 0 0 0", "v 0 0 0 0 0 1").replace("v 0 1 0", "v 0 1 0 0 0 1")
    mesh = read(f"{text}usemtl m\n{FACE}", mtl)
    found = colors_at(mesh, [(0, 0), (0, 1), (1, 0), (1, 1)])[:, :3]
    np.testing.assert_allclose(found, [(0, 0, 1), (0, 0, 1), rest, rest], atol=1e-5)


def test_colours_in_comments_of_zbrush(read):
    """Mask, red, green and blue of each vertex; here on two lines, with one vertex left over."""
    text = QUAD + "#MRGB ffff0000ff00ff00\n#MRGB 000000FF\n" + FACE
    found = colors_at(read(text), [(0, 0), (1, 0), (1, 1), (0, 1)])[:, :3]
    np.testing.assert_allclose(found, [*np.eye(3), GREY], atol=1e-5)
    np.testing.assert_allclose(only_color(read(QUAD + "#MRGB no digits\n" + FACE))[:3], GREY, atol=1e-4)


# --- materials ---


def srgb(*linear) -> np.ndarray:
    return linear_to_srgb(np.array(linear))


@pytest.mark.parametrize(
    ("mtl", "color"),
    [
        ("newmtl m\nKd 0.5 0.25 1\n", (0.5, 0.25, 1, 1)),
        ("# made by hand\nnewmtl m # steel\n\tKd\t0.5 0.25 1 # Kd\n", (0.5, 0.25, 1, 1)),
        ("newmtl m\rKd 0.5\r", (0.5, 0.5, 0.5, 1)),
        ("# Blender 4.2.0 MTL File: 'a.blend'\nnewmtl m\nKd 0.5 0.2 0.05\n", (*srgb(0.5, 0.2, 0.05), 1)),
        ("# Blender MTL File: 'None'\nnewmtl m\nKd 0 0 0\nKe 0.5 0.2 0.05\n", (*srgb(0.5, 0.2, 0.05), 1)),
        ("# Blender3D MTL File: \nnewmtl m\nKd 0.5 0.2 0.05\n", (0.5, 0.2, 0.05, 1)),
        ("newmtl m\nKd spectral ident.rfl\n", (*GREY, 1)),
        ("newmtl m\nKa 1 0 0\n", (*GREY, 1)),
        ("newmtl other\nKd 1 0 0\n", (*GREY, 1)),
        ("newmtl m\nKd 2 0 0\nNs x\nillum 9\n", (1, 0, 0, 1)),
        ("newmtl m\nKd 1 0 0\nnewmtl m\nKd 0 1 0\n", (1, 0, 0, 1)),  # the first definition counts
        ("newmtl m\nKd 0 0 0\nKe 1 0.5 0\n", (1, 0.5, 0, 1)),
        ("newmtl m\nKe 1 0.5 0\n", (1, 0.5, 0, 1)),
        ("newmtl m\nKd 0.5 0 0\nKe 1 1 1\n", (0.5, 0, 0, 1)),  # ambient light, as converters write it
        ("newmtl m\nKd 1 0 0\nd 0.5\n", (1, 0, 0, 0.5)),
        ("newmtl m\nKd 1 0 0\nd 0\nTr 1\n", (1, 0, 0, 1)),
        ("newmtl m\nKd 1 0 0\nTr 0.25\n", (1, 0, 0, 0.75)),
        ("newmtl m\nKd 1 0 0\nTr 1.0\n", (1, 0, 0, 1)),
        ("newmtl m\nKd 1 0 0\nd 1.0\nTr 1.0\n", (1, 0, 0, 1)),
        ("newmtl m\nKd 1 0 0\nTr 0.3\nd 0.3\n", (1, 0, 0, 0.3)),  # d counts where both are there
        ("newmtl m\nKd 1 0 0\nd -halo 0.5\n", (1, 0, 0, 0.5)),
        ("newmtl m\nKd 1 0 0\nmap_Kd\nmap_Kd -s 1 1 1\n", (1, 0, 0, 1)),
    ],
)
def test_materials_without_a_picture(read, mtl, color):
    np.testing.assert_allclose(only_color(read(f"{QUAD}usemtl m\n{FACE}", mtl)), color, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "-colorspace sRGB -imfchan l ",
        "-blendu on -blendv off -boost 2 -mm 0.1 0.9 -texres 512 -t 0 0 0 -bm 1 -cc off -type cube_top ",
        "-s 1 -o 0 ",
        "-s 1 1 1 -clamp off\t",
        "-unknown 3 ",
    ],
)
@pytest.mark.parametrize("name", ["t.png", "a b.png", "2.png", "t.png # the wood", '"a b.png"', "a\\ b.png"])
def test_options_come_before_the_name_of_a_picture(read, options, name, tmp_path):
    for copy in ("a b.png", "2.png"):
        (tmp_path / copy).write_bytes((tmp_path / "t.png").read_bytes())
    mesh = read(f"{QUAD}usemtl m\n{FACE}", f"newmtl m\nKd 0 0 0\nMAP_kd {options}{name}\n")
    np.testing.assert_allclose(colors_at(mesh, [(0.1, 0.5), (0.9, 0.5)])[:, :3], np.eye(3)[[0, 2]])


def test_pictures_are_scaled_moved_and_clamped(read):
    mtl = "newmtl m\nmap_Kd -s 2 1 1 -o 0.25 0.5 {}t.png\n"
    mesh = read(f"{QUAD}usemtl m\n{FACE}", mtl.format(""))
    found = colors_at(mesh, [(u, 0.5) for u in (0.05, 0.25, 0.5, 0.75)])  # u = 0.35, 0.75, 1.25, 1.75
    np.testing.assert_allclose(found[:, :3], np.eye(3)[[0, 2, 0, 2]])
    part = mesh.parts[0]
    np.testing.assert_allclose(sorted(set(part.uv[:, 0].tolist())), [0.25, 2.25])
    np.testing.assert_allclose(sorted(set(part.uv[:, 1].tolist())), [-0.5, 0.5])  # 1 - (v + 0.5)
    mesh = read(f"{QUAD}usemtl m\n{FACE}", mtl.format("-clamp on "))
    found = colors_at(mesh, [(u, 0.5) for u in (0.05, 0.25, 0.5, 0.75)])
    np.testing.assert_allclose(found[:, :3], np.eye(3)[[0, 2, 2, 2]])


GREY_HALVES = [[0] * 4 + [255] * 4] * 8
ALPHA_HALVES = [[[9, 9, 9, 0]] * 4 + [[9, 9, 9, 255]] * 4] * 8


@pytest.mark.parametrize("holes", [GREY_HALVES, np.kron(GREY_HALVES, np.ones((2, 2))), ALPHA_HALVES])
@pytest.mark.parametrize("mtl", [PICTURE, RED])
def test_map_d_cuts_holes(read, holes, mtl):
    mesh = read(f"{QUAD}usemtl m\n{FACE}", f"{mtl}map_d -s 1 1 1 holes.png\n", holes=holes)
    assert mesh.parts[0].alpha_mode == "MASK"
    found = colors_at(mesh, [(0.1, 0.5), (0.9, 0.5)])
    np.testing.assert_allclose(found[:, 3], [0, 1])
    np.testing.assert_allclose(found[1, :3], (0, 0, 1) if mtl == PICTURE else (1, 0, 0))


def test_map_d_that_is_no_hole(read):
    text = f"{QUAD}usemtl m\n{FACE}"
    assert read(text, PICTURE + "map_d t.png\n").parts[0].alpha_mode == "OPAQUE"  # a photograph beside itself
    assert read(text, PICTURE + "map_d h.png\n", h=[[255] * 8] * 8).parts[0].alpha_mode == "OPAQUE"
    glass = read(text, PICTURE + "map_d h.png\n", h=[[102] * 8] * 8)
    assert glass.parts[0].alpha_mode == "BLEND"
    np.testing.assert_allclose(colors_at(glass, [(0.1, 0.5)]), [(1, 0, 0, 0.4)], atol=1e-5)


def test_glowing_pictures(read):
    glow = [[[0, 255, 0]] * 4 + [[0, 0, 0]] * 4] * 8
    text = f"{QUAD}usemtl m\n{FACE}"
    mesh = read(text, "newmtl m\nKd 0 0 0\nKe 0 0 0\nmap_Ke glow.png\n", glow=glow)
    np.testing.assert_allclose(colors_at(mesh, [(0.1, 0.5), (0.9, 0.5)])[:, :3], [(0, 1, 0), (0, 0, 0)])
    part = read(text, PICTURE + "Ke 0.5 0.5 0.5\nmap_Ke -s 2 2 glow.png\n", glow=glow).parts[0]
    np.testing.assert_allclose(part.material.emissive_factor, srgb_to_linear(np.full(3, 0.5)))
    np.testing.assert_allclose(part.uv[:, 0] * 2, part.glow_uv[:, 0])
    assert part.material.base_color_texture is not None


# --- libraries ---


@pytest.mark.parametrize(
    "statement",
    [
        "absent.mtl m.mtl",
        "m.mtl",
        '"m.mtl"',
        "a\\ b.mtl m.mtl",
        '"a b.mtl" "m.mtl"',
        "m.mtl # the materials",
        "a b.mtl\nmtllib m.mtl",
        "m.mtl\nmtllib absent.mtl",
        "M.MTL",
        "C:\\models\\m.mtl",
    ],
)
def test_the_ways_to_name_a_library(read, tmp_path, statement):
    (tmp_path / "m.mtl").write_text(RED)
    (tmp_path / "a b.mtl").write_text("newmtl z\nKd 0 1 0\n")
    np.testing.assert_allclose(only_color(read(f"mtllib {statement}\n{QUAD}usemtl m\n{FACE}"))[:3], (1, 0, 0))


def test_the_first_definition_of_a_material_counts(read, tmp_path):
    (tmp_path / "a.mtl").write_text(RED)
    (tmp_path / "b.mtl").write_text("newmtl m\nKd 0 1 0\n")
    for statement in ("mtllib a.mtl b.mtl\n", "mtllib a.mtl\nmtllib b.mtl\n"):
        np.testing.assert_allclose(only_color(read(f"{statement}{QUAD}usemtl m\n{FACE}"))[:3], (1, 0, 0))


def test_a_library_that_is_missing(read):
    named = f"mtllib absent.mtl\r\n{QUAD}usemtl m\n{FACE}".encode()
    with pytest.raises(ObjectError, match=r"^it names 'absent.mtl', which is missing from its folder$"):
        read(named, missing_material="fail")
    found = read(named)
    np.testing.assert_allclose(only_color(found)[:3], GREY, atol=1e-4)
    assert found.note == "in the neutral colour, because it names 'absent.mtl', which is missing from its folder"
    assert read(f"mtllib absent.mtl\n{QUAD}{FACE}").note is None  # no face asks for a material
    np.testing.assert_allclose(only_color(read(f"mtllib absent.mtl\n{QUAD}{FACE}"))[:3], GREY, atol=1e-4)


def test_faces_that_name_no_material(read):
    text = QUAD + FACE
    np.testing.assert_allclose(only_color(read(text, RED))[:3], (1, 0, 0))
    halves = colors_at(read(text, PICTURE + "newmtl plain\nKd 0 1 0\n"), [(0.1, 0.5), (0.9, 0.5)])[:, :3]
    np.testing.assert_allclose(halves, np.eye(3)[[0, 2]])  # the only one with a picture
    np.testing.assert_allclose(only_color(read(text, RED + "newmtl b\nKd 0 1 0\n"))[:3], GREY, atol=1e-4)
    with pytest.raises(ObjectError, match="its material library has 2 materials, and no usemtl says which"):
        read(text, PICTURE + "newmtl b\nmap_Kd t.png\n")
    first = colors_at(read(QUAD + "f 1 2 3\nusemtl m\nf 1 3 4\n", RED), [(0.9, 0.5), (0.1, 0.5)])[:, :3]
    np.testing.assert_allclose(first, [GREY, (1, 0, 0)], atol=1e-4)


def test_only_pictures_of_materials_that_are_used_must_be_there(read):
    mtl = RED + "newmtl other\nmap_Kd absent.png\n"
    assert read(f"{QUAD}usemtl m\n{FACE}", mtl).face_count == 2
    with pytest.raises(ObjectError, match=r"'absent\.png', which is missing"):
        read(f"{QUAD}usemtl other\n{FACE}", mtl)
    plain = "v 0 0 0\nv 1 0 0\nv 1 1 0\nusemtl other\nf 1 2 3\n"  # without texture coordinates
    assert read(plain, mtl).face_count == 1


def test_names_of_materials_may_hold_blanks_and_hashes(read):
    mtl = "newmtl Material #25 old\nKd 1 0 0\n"
    np.testing.assert_allclose(only_color(read(f"{QUAD}usemtl Material #25 old\n{FACE}", mtl))[:3], (1, 0, 0))
    np.testing.assert_allclose(only_color(read(f"{QUAD}usemtl m # red\n{FACE}", RED))[:3], (1, 0, 0))


# --- damaged files ---


def test_damaged_files_are_meshes_or_sentences(read):
    rng = np.random.default_rng(0)
    faces = "".join(f"f {a}/{a}/1 {b}/{b}/1 {c}/{c}/1\n" for a, b, c in rng.integers(1, 5, (20, 3)))
    colored = "".join("v {} {} {} 1 0.5 0\n".format(*corner) for corner in CUBE_CORNERS)
    text = ("# head\n" + QUAD + "usemtl m\n" + FACE + faces + colored + "f -1 -2 -3 \\\n -4\n#MRGB ff00ff00\n").encode()
    mtl = b"newmtl m\nKd 1 1 1\nKe 0.1 0 0\nd 0.9\nmap_Kd -s 1 2 -clamp on t.png\nmap_d t.png\n"
    meshes, sentences = 0, []
    for index in range(200):
        damaged = [bytearray(text), bytearray(mtl)]
        target = damaged[index % 4 == 0]
        if index % 3 == 0:
            del target[int(rng.integers(1, len(target))) :]
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(len(target)))
            kind = rng.integers(3)
            if kind == 0:
                target[place] = int(rng.integers(256))
            elif kind == 1:
                target[place:place] = bytes(rng.choice([*b"-/#0 \n\\\r\tv9e."], 3).astype(np.uint8))
            else:
                del target[place : place + int(rng.integers(1, 9))]
        try:
            mesh = read(b"mtllib m.mtl\n" + bytes(damaged[0]), damaged[1].decode("latin-1"))
            assert all(np.isfinite(part.vertices).all() for part in mesh.parts)
            assert all(isinstance(part.material, Material) for part in mesh.parts)
            meshes += 1
        except ObjectError as error:
            sentences.append(str(error))
    assert meshes > 20
    assert len(sentences) > 20
    assert not [sentence for sentence in sentences if "malformed" in sentence]
