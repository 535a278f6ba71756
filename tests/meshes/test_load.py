import os
import struct

import numpy as np
import pytest
from PIL import Image

from clipgs.core.errors import ObjectError
from clipgs.meshes.load import load, up_axis_of
from clipgs.meshes.materials import srgb_to_linear, surface_rgba
from tests.meshes.glb_builder import CUBE_CORNERS, CUBE_FACES

GREY = (0.7, 0.7, 0.7)
TETRAHEDRON = "v 0 0 0\nv 2 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
QUAD_OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"


def colors_of(mesh) -> np.ndarray:
    """The colour at the first corner of every face of the first part, sRGB [F, 3]."""
    part = mesh.parts[0]
    return surface_rgba(part, np.arange(len(part.faces)), np.tile(np.eye(3)[0], (len(part.faces), 1)))[:, :3]


def test_canonical_frame(glb, loaded):
    box = CUBE_CORNERS * np.float32([1, 2, 3]) + np.float32([10, 20, 30])
    glb.node(glb.mesh(box))
    mesh = loaded(glb)
    (part,) = mesh.parts
    np.testing.assert_allclose(mesh.centre, [10, 20, 30], atol=1e-5)
    assert mesh.scale == pytest.approx(1 / 6)
    np.testing.assert_allclose(part.vertices.max(axis=0), [1 / 6, 1 / 3, 1 / 2], atol=1e-6)
    np.testing.assert_allclose((box - mesh.centre) * mesh.scale, part.vertices, atol=1e-6)
    assert part.vertices.dtype == np.float32
    assert part.faces.dtype == np.int32


def test_z_up_is_turned_not_mirrored(glb, loaded):
    glb.node(glb.mesh(CUBE_CORNERS * np.float32([1, 2, 3]), NORMAL=CUBE_CORNERS))
    upright = loaded(glb).parts[0]
    turned = loaded(glb, up_axis="z").parts[0]
    np.testing.assert_allclose(turned.vertices, upright.vertices[:, [0, 2, 1]] * [1, 1, -1], atol=1e-7)
    np.testing.assert_allclose(turned.normals, upright.normals[:, [0, 2, 1]] * [1, 1, -1], atol=1e-6)
    with pytest.raises(ValueError, match="up_axis"):
        loaded(glb, up_axis="x")


def test_vertices_that_no_face_names_have_no_say(glb, loaded):
    stray = np.concatenate([CUBE_CORNERS, np.float32([[1e30, np.nan, 0]])])
    glb.node(glb.mesh(stray))
    assert loaded(glb).scale == pytest.approx(0.5)


def test_obj_with_materials(tmp_path, loaded):
    Image.fromarray(np.uint8([[[255, 0, 0], [0, 0, 255]]])).save(tmp_path / "red blue.png")
    (tmp_path / "the mtl.mtl").write_text(
        "newmtl picture\nKd 0.1 0.1 0.1\nmap_Kd -s 1 1 1 -clamp on red blue.png\n"
        "newmtl plain\nKd 0.5 0.25 1\nnewmtl glass\nKd 1 1 1\nd 0.5\n"
    )
    path = tmp_path / "object.obj"
    path.write_text(
        "mtllib the mtl.mtl\n"
        + QUAD_OBJ
        + "usemtl picture\nf 1/1 2/2 3/3 4/4\nusemtl plain\nf 1 2 4\nusemtl glass\nf 3 2 4\n"
    )
    parts = {len(part.faces) + 10 * (part.alpha_mode == "BLEND"): part for part in loaded(path).parts}
    plain, glass, picture = parts[1], parts[11], parts[2]
    np.testing.assert_allclose(surface_rgba(plain, np.array([0]), np.eye(3)[:1])[0, :3], [0.5, 0.25, 1], atol=1e-6)
    assert glass.material.base_color_factor == (1, 1, 1, 0.5)
    # From red on the left to blue on the right, whatever Kd says.
    barycentric = np.random.default_rng(0).dirichlet([1, 1, 1], 200)
    u = barycentric @ picture.uv[picture.faces[0], 0]
    between = (u > 0.25) & (u < 0.75)
    assert between.sum() > 50
    found = surface_rgba(picture, np.zeros(200, int), barycentric)[between, :3]
    red = (0.75 - u[between]) / 0.5
    np.testing.assert_allclose(srgb_to_linear(found), np.stack([red, 0 * red, 1 - red], axis=1), atol=1e-4)


def test_obj_with_several_material_files(tmp_path, loaded):
    for name, color in (("a", "1 0 0"), ("b", "0 0 1")):
        (tmp_path / f"{name}.mtl").write_text(f"newmtl {name}\nKd {color}\n")
    path = tmp_path / "object.obj"
    path.write_text("# mtllib c\nmtllib a.mtl\nmtllib b.mtl\n" + QUAD_OBJ + "usemtl a\nf 1 2 3\nusemtl b\nf 1 3 4\n")
    colors = {part.material.base_color_factor for part in loaded(path).parts}
    assert colors == {(1, 0, 0, 1), (0, 0, 1, 1)}


def test_obj_indices_that_count_backwards(tmp_path, loaded):
    """Each face right after its own vertices, as some exporters write."""
    lines = []
    for face in CUBE_FACES:
        lines += ["v {} {} {}".format(*CUBE_CORNERS[index]) for index in face]
        lines += ["vt 0 0", "f -3/-1 -2/-1 -1/-1"]
    path = tmp_path / "object.obj"
    path.write_text("\n".join(lines))
    (part,) = loaded(path).parts
    a, b, c = (part.vertices[part.faces[:, i]].astype(float) for i in range(3))
    assert (a * np.cross(b, c)).sum() / 6 == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("values", ["1 0.5 0", "255 127.5 0"])
def test_obj_vertex_colors_are_srgb(tmp_path, loaded, values):
    path = tmp_path / "object.obj"
    lines = [line + f" {values}" if line.startswith("v") else line for line in TETRAHEDRON.splitlines()]
    path.write_text("\n".join(lines))
    np.testing.assert_allclose(colors_of(loaded(path)), np.tile([1, 0.5, 0], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
def test_obj_in_any_encoding(tmp_path, loaded, encoding):
    path = tmp_path / "object.obj"
    path.write_bytes(("# drei Würfel größer als dieser\n" * 3 + TETRAHEDRON).encode(encoding))
    assert loaded(path).face_count == 4


def test_obj_that_names_no_file_is_neutral(tmp_path, loaded):
    path = tmp_path / "object.obj"
    path.write_text("mtllib absent.mtl\n" + QUAD_OBJ + "f 1/1 2/2 3/3 4/4\n")  # and no face uses it
    np.testing.assert_allclose(colors_of(loaded(path)), [GREY] * 2, atol=1e-6)
    path.write_text("usemtl nowhere\n" + QUAD_OBJ + "f 1/1 2/2 3/3 4/4\n")
    np.testing.assert_allclose(colors_of(loaded(path)), [GREY] * 2, atol=1e-6)


PLY_HEADER = (
    "ply\nformat {} 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "shift-jis"])
def test_comments_of_a_ply_have_any_encoding(tmp_path, loaded, encoding):
    path = tmp_path / "object.ply"
    header = PLY_HEADER.format("binary_little_endian", 4).replace("element", "comment drei Würfel 日本\nelement", 1)
    data = b"".join(struct.pack("<3f3B", *corner, 255, 128, 0) for corner in np.vstack([np.zeros(3), np.eye(3)]))
    data += b"".join(struct.pack("<B3i", 3, *face) for face in [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)])
    path.write_bytes(header.encode(encoding, "ignore") + data)
    assert loaded(path).face_count == 4


@pytest.mark.parametrize("text", [True, False])
def test_ply_vertex_colors_are_srgb(tmp_path, loaded, text):
    path = tmp_path / "object.ply"
    corners, faces = [(0, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 1)], [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    if text:
        rows = ["{} {} {} 255 128 0".format(*c) for c in corners] + ["3 {} {} {}".format(*f) for f in faces]
        path.write_text(PLY_HEADER.format("ascii", 4) + "\n".join(rows) + "\n")
    else:
        data = b"".join(struct.pack("<3f3B", *c, 255, 128, 0) for c in corners)
        data += b"".join(struct.pack("<B3i", 3, *f) for f in faces)
        path.write_bytes(PLY_HEADER.format("binary_little_endian", 4).encode() + data)
    mesh = loaded(path)
    assert mesh.face_count == 4
    np.testing.assert_allclose(colors_of(mesh), np.tile([1, 128 / 255, 0], (4, 1)), atol=1e-6)


@pytest.mark.parametrize("text", [True, False])
def test_stl(tmp_path, loaded, text):
    triangles = CUBE_CORNERS[CUBE_FACES]
    path = tmp_path / "object.stl"
    if text:
        corners = ["".join("vertex {} {} {}\n".format(*v) for v in t) for t in triangles]
        facets = "".join(f"facet normal 0 0 0\nouter loop\n{c}endloop\nendfacet\n" for c in corners)
        path.write_text(f"solid cube\n{facets}endsolid cube\n")
    else:
        rows = b"".join(struct.pack("<12fH", 0, 0, 0, *t.ravel(), 0) for t in triangles)
        path.write_bytes(b"solid, says the header of this binary file".ljust(80) + struct.pack("<I", 12) + rows)
    mesh = loaded(path)
    assert mesh.face_count == 12
    np.testing.assert_allclose(colors_of(mesh), [GREY] * 12, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "vertex_color", "face_color", "expected"),
    [
        ("OFF\n4 3 0\n", "", "", GREY),
        ("OFF4 3 0\n", "", "", GREY),  # as in ModelNet
        ("OFF # a comment\n\n4 3 0\n", "", "", GREY),
        ("COFF\n4 3 0\n", " 255 51 0 255", "", (1, 0.2, 0)),
        ("OFF\n4 3 0\n", "", " 1.0 0.2 0.0", (1, 0.2, 0)),
    ],
)
def test_off(tmp_path, loaded, head, vertex_color, face_color, expected):
    path = tmp_path / "object.off"
    vertices = "".join(f"{v}{vertex_color}\n" for v in ("0 0 0", "2 0 0", "2 1 0", "0 0 1"))
    faces = "".join(f"{f}{face_color}\n" for f in ("4 0 1 2 3", "3 0 2 3", "3 0 1 3"))
    path.write_text(head + vertices + faces)
    mesh = loaded(path)
    assert mesh.face_count == 4
    np.testing.assert_allclose(colors_of(mesh), np.tile(expected, (4, 1)), atol=1e-6)


def test_gltf_vertex_colors_are_linear(glb, loaded):
    glb.node(glb.mesh(COLOR_0=np.tile(np.float32([1, 0.2140411, 0]), (8, 1))))
    np.testing.assert_allclose(colors_of(loaded(glb)), np.tile([1, 0.5, 0], (12, 1)), atol=1e-5)


# --- what is never opened -----------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    """A folder for the object, beside a picture that is not its own."""
    Image.new("RGB", (2, 2)).save(tmp_path / "outside.png")
    (tmp_path / "outside.mtl").write_text("newmtl m\nKd 1 0 0\n")
    (tmp_path / "outside.bin").write_bytes(bytes(4096))
    folder = tmp_path / "inside"
    folder.mkdir()
    return folder


URIS = [
    "../outside{}",
    "below/../../outside{}",
    "%2e%2e/outside{}",
    "..\\outside{}",
    "{folder}/../outside{}",
    "file://{folder}/../outside{}",
    "http://127.0.0.1:9/outside{}",
    "//127.0.0.1/outside{}",
    "C:\\outside{}",
    "link{}",
    "nul\0{}",
    "x" * 5000 + "{}",
    ".",
]


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        (kind, uri)
        for kind in ("buffer", "image", "mtllib", "map_Kd", "ply")
        for uri in URIS
        if kind != "ply" or (uri != "." and "\0" not in uri)  # a PLY header cannot say these
    ],
)
def test_no_file_outside_the_folder_is_opened(outside, glb, kind, uri, monkeypatch):
    suffix = {"buffer": ".bin", "mtllib": ".mtl"}.get(kind, ".png")
    os.symlink(outside.parent / f"outside{suffix}", outside / f"link{suffix}")
    uri = uri.replace("{}", suffix).replace("{folder}", str(outside))
    if kind in ("buffer", "image"):
        import json

        glb.node(glb.mesh(material=glb.material(texture=glb.texture(np.zeros((2, 2, 3), np.uint8)))))
        (outside / "own.bin").write_bytes(glb.binary)
        glb.json["buffers"] = [{"byteLength": len(glb.binary), "uri": "own.bin" if kind == "image" else uri}]
        if kind == "image":
            glb.json["images"] = [{"uri": uri}]
        path = outside / "object.gltf"
        path.write_text(json.dumps(glb.json))
    elif kind == "ply":
        path = outside / "object.ply"
        uv = "property float u\nproperty float v\n"
        header = PLY_HEADER.replace("element face", uv + "element face").format("ascii", 1)
        header = header.replace("element vertex", f"comment TextureFile {uri}\nelement vertex", 1)
        rows = "0 0 0 1 1 1 0 0\n1 0 0 1 1 1 1 0\n0 1 0 1 1 1 0 1\n0 0 1 1 1 1 1 1\n3 0 1 2\n"
        path.write_text(header + rows)
    else:
        path = outside / "object.obj"
        library = uri if kind == "mtllib" else "own.mtl"
        path.write_text(f"mtllib {library}\n{QUAD_OBJ}usemtl m\nf 1/1 2/2 3/3\n")
        (outside / "own.mtl").write_text(f"newmtl m\nmap_Kd {uri}\n")
    opened = []
    read_bytes = type(path).read_bytes
    monkeypatch.setattr(type(path), "read_bytes", lambda self: opened.append(self.resolve()) or read_bytes(self))
    with pytest.raises(ObjectError, match="it names '"):
        load(path, max_faces=100, max_texture_pixels=100, missing_material="fail")
    assert opened
    assert all(file.is_relative_to(outside.resolve()) for file in opened)


def test_files_below_the_folder_and_odd_names_are_read(tmp_path):
    folder = tmp_path / "a folder, 'quoted' \"twice\""
    (folder / "textures").mkdir(parents=True)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(folder / "textures" / "a b.png")
    (folder / "own.mtl").write_text("newmtl m\nmap_Kd textures\\a b.png\n")
    for name in ("plain.obj", "two words.obj", 'quote".obj', "new\nline.obj", "dots..in.the.name.obj", "ü.OBJ"):
        path = folder / name
        path.write_text(f"mtllib own.mtl\n{QUAD_OBJ}usemtl m\nf 1/1 2/2 3/3\n")
        np.testing.assert_allclose(colors_of(load(path, max_faces=9, max_texture_pixels=9)), [[1, 0, 0]], atol=1e-6)


def test_a_link_to_the_object_itself_is_followed(tmp_path, glb):
    (tmp_path / "store").mkdir()
    (tmp_path / "set").mkdir()
    glb.node(glb.mesh())
    glb.save(tmp_path / "store" / "object.glb")
    os.symlink(tmp_path / "store" / "object.glb", tmp_path / "set" / "object.glb")
    assert load(tmp_path / "set" / "object.glb", max_faces=12, max_texture_pixels=1).face_count == 12


# --- what is refused ----------------------------------------------------------------------------------------


def _bomb() -> bytes:
    """A PNG whose header says 60,000 x 60,000, in a hundred bytes."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


HUGE_PLY = PLY_HEADER.replace("vertex 4", "vertex 2147483648")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.ply", HUGE_PLY.format("ascii", 1).encode() + b"0 0 0 0 0 0\n", "claims"),
        ("a.ply", HUGE_PLY.format("binary_little_endian", 1).encode() + bytes(90), "claims"),
        ("a.ply", PLY_HEADER.format("ascii", 2**31).encode() + b"0 0 0 0 0 0\n" * 4, "claims"),
        ("a.ply", PLY_HEADER.format("ascii", -1).encode(), "claims -1"),
        ("a.ply", b"ply\nformat", "no header"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex x\nend_header\n", "malformed"),
        ("a.stl", bytes(80) + struct.pack("<I", 2**31) + bytes(50), "claims 2147483648 triangles"),
        ("a.off", b"OFF\n2147483648 1 0\n0 0 0\n", "claims 2147483648"),
        ("a.off", b"OFF\n1 1 0\n0 0 0\n3 0 0 9\n", "names vertex 9"),
        ("a.off", b"OFF\n", "malformed"),
        ("a.obj", b"v 0 0 0\nf 1 2 3\n", "names a vertex that is not there"),
        ("a.obj", (TETRAHEDRON + "v 1 1 nan\nf 5 1 2\n").encode(), "not finite"),
        ("a.obj", TETRAHEDRON.replace("v 2", "v 1e300").encode(), "not the size of an object"),
        ("a.obj", TETRAHEDRON.replace("v 2", "v 1e999").encode(), "not finite"),
        ("a.obj", (TETRAHEDRON + "f 1 2 3\n" * 200).encode(), "more than the limit of 100"),
        ("a.obj", bytes(range(256)) * 4, "no faces|malformed|not text"),
        ("a.glb", b"glTF", "ends within its header"),
        ("a.glb", b"", "the file is empty"),
        ("a.obj", b"", "the file is empty"),
        ("a.stl", b"", "the file is empty"),
        ("a.ply", b"", "the file is empty"),
        ("a.glb", b"notes of mine", "it is no GLB file: it does not begin with glTF"),
        ("a.glb", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("a.stl", b"<!DOCTYPE html><html>", "a web page"),
        ("a.gltf", b"[" * 100_000, "not valid JSON"),
        ("a.gltf", b'{"asset": {"version": NaN}}', "NaN"),
        ("a.txt", b"", "'.txt' are not read"),
    ],
)
def test_what_is_refused(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ObjectError, match=message):
        load(path, max_faces=100, max_texture_pixels=100)


def test_a_missing_file(tmp_path):
    with pytest.raises(ObjectError, match="missing"):
        load(tmp_path / "absent.glb", max_faces=1, max_texture_pixels=1)


def test_a_decompression_bomb_is_not_decoded(tmp_path, glb, loaded):
    assert len(_bomb()) < 200
    (tmp_path / "bomb.png").write_bytes(_bomb())
    (tmp_path / "own.mtl").write_text("newmtl m\nmap_Kd bomb.png\n")
    (tmp_path / "object.obj").write_text(f"mtllib own.mtl\n{QUAD_OBJ}usemtl m\nf 1/1 2/2 3/3\n")
    with pytest.raises(ObjectError, match=r"more (pixels )?than the limit"):
        loaded(tmp_path / "object.obj")
    image = glb.list("images", {"bufferView": glb.view(_bomb()), "mimeType": "image/png"})
    texture = {"index": glb.list("textures", {"source": image})}
    glb.node(glb.mesh(material=glb.material(texture=texture)))
    with pytest.raises(ObjectError, match=r"more (pixels )?than the limit"):
        loaded(glb)


@pytest.mark.parametrize("picture", [None, b"not a picture"])
def test_a_texture_that_is_missing_or_damaged(tmp_path, loaded, picture):
    if picture is not None:
        (tmp_path / "picture.png").write_bytes(picture)
    (tmp_path / "own.mtl").write_text("newmtl m\nmap_Kd picture.png\n")
    (tmp_path / "object.obj").write_text(f"mtllib own.mtl\n{QUAD_OBJ}usemtl m\nf 1/1 2/2 3/3\n")
    with pytest.raises(ObjectError, match=r"'picture.png'"):
        loaded(tmp_path / "object.obj")


def test_a_normal_map_may_be_missing(glb, loaded):
    image = glb.list("images", {"uri": "absent.png"})
    texture = {"index": glb.list("textures", {"source": image})}
    glb.node(glb.mesh(material=glb.material(factor=(0.5, 0.5, 0.5, 1), normalTexture=texture)))
    part = loaded(glb).parts[0]
    assert part.material.base_color_factor[0] == 0.5
    assert srgb_to_linear(colors_of(loaded(glb))[0, 0]) == pytest.approx(0.5, abs=1e-6)


def test_normals_that_are_none(glb, loaded):
    normals = np.float32([[0, 0, 1], [0, 0, 0], [np.nan, 0, 0], [1e-30, 0, 0], [0, 1e30, 0]])
    glb.node(glb.mesh(NORMAL=np.concatenate([normals, normals[:3]])))
    found = loaded(glb).parts[0].normals
    expected = [[0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(found[:5], expected, atol=1e-6)


# --- which axis is up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head", "axis"),
    [
        ("a.ply", b"ply\nformat ascii 1.0\ncomment Created in Blender version 4.2.0\n", "z"),
        ("a.PLY", b"ply\rformat ascii 1.0\rcomment Created by Blender 2.79 (sub 0) - www.blender.org\r", "z"),
        ("a.ply", b"ply\nformat ascii 1.0\ncomment VCGLIB generated\n", "y"),
        ("a.ply", b"ply\nformat ascii 1.0\ncomment not Created in Blender\n", "y"),
        ("a.stl", b"Exported from Blender-2.92.0".ljust(80, b"\0"), "z"),
        ("a.stl", b"solid Exported from Blender-2.92.0\n", "z"),
        ("a.stl", bytes(84), "y"),
        ("a.obj", b"# Blender 4.2.0\n", "y"),
        ("a.off", b"", "y"),
    ],
)
def test_the_axis_that_is_up_by_the_program_that_wrote_the_file(tmp_path, name, head, axis):
    (tmp_path / name).write_bytes(head)
    assert up_axis_of(tmp_path / name) == axis


def test_plys_of_blender_stand_upright_by_themselves(tmp_path, loaded):
    tall = "0 0 0 1 1 1\n1 0 0 1 1 1\n0 0 9 1 1 1\n0 1 0 1 1 1\n3 0 1 2\n3 0 1 3\n"
    text = PLY_HEADER.format("ascii", 2).replace("1.0\n", "1.0\ncomment Created in Blender version 4.2.0\n", 1) + tall
    (tmp_path / "a.ply").write_text(text)
    mesh = loaded(tmp_path / "a.ply", up_axis="auto")
    assert mesh.up_axis == "z"
    assert np.ptp(mesh.parts[0].vertices, axis=0).argmax() == 1
    mesh = loaded(tmp_path / "a.ply")
    assert mesh.up_axis == "y"
    assert np.ptp(mesh.parts[0].vertices, axis=0).argmax() == 2
