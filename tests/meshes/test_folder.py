"""Where the files that an object names are looked for, and where they never are."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgs.catalog.sources.digests import with_named_files
from clipgs.core.errors import ObjectError
from clipgs.meshes.folder import Folder
from clipgs.meshes.load import load
from clipgs.meshes.materials import surface_rgba

OBJ = "mtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl m\nf 1/1 2/1 3/1\n"


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(folder: Folder, *names: str, **where) -> str | None:
    """The bytes of what is found, as text."""
    path = folder.find(*names, **where)
    return None if path is None else path.read_text()


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("a.png", "a.png"),
        ("below/a.png", "below/a.png"),
        ("./below/../a.png", "a.png"),
        ("below\\a.png", "below/a.png"),
        ("A.PNG", "a.png"),
        ("Below\\A.png", "below/a.PNG"),
        ("  a.png ", "a.png"),
        (" a.png", " a.png"),
        ("a ü.png", "a ü.png"),
        ("C:\\Users\\me\\a.png", "a.png"),
        ("C:a.png", "a.png"),
        ("\\\\server\\share\\a.png", "a.png"),
        ("/home/me/tex/A.png", "a.png"),
        ("..\\tex\\a.png", "a.png"),
        ("nowhere/a.png", "a.png"),
        ("a.png", "textures/a.png"),
        ("tex/a.png", "Textures/a.png"),
        ("a.png", "images/a.png"),
        ("a.png", "materials/textures/a.png"),
    ],
)
def test_what_is_found_below_the_folder(tmp_path, name, lies):
    write(tmp_path / "o" / lies, b"this")
    assert found(Folder(tmp_path / "o" / "o.obj", 1), name, picture=True) == "this"


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("../images/a.jpg", "set/o/images/a.jpg"),
        ("../../shared/a.jpg", "set/shared/a.jpg"),
        ("../IMAGES/A.jpg", "set/o/images/a.jpg"),
        ("a.jpg", "set/o/materials/textures/a.jpg"),
        ("a.jpg", "set/o/textures/a.jpg"),
        ("a.jpg", "set/o/a.jpg"),
    ],
)
def test_what_is_found_in_a_folder_of_the_users_only(tmp_path, name, lies):
    write(tmp_path / lies, b"this")
    mesh = tmp_path / "set" / "o" / "meshes" / "o.obj"
    mesh.parent.mkdir(parents=True, exist_ok=True)
    assert found(Folder(mesh, 1, tmp_path / "set"), name, picture=True) == "this"
    assert found(Folder(mesh, 1), name, picture=True) is None
    assert found(Folder(mesh, 1, tmp_path / "set" / "o" / "meshes"), name, picture=True) is None


def test_what_lies_nearest_is_taken(tmp_path):
    folder = Folder(tmp_path / "o" / "o.obj", 1, tmp_path)
    lies = ["textures/a.png", "o/textures/a.png", "o/A.png", "o/a.png", "o/mtl/a.png", "o/mtl/A.PNG"]
    expected = ["textures/a.png", "o/textures/a.png", "o/textures/a.png", "o/a.png", "o/mtl/a.png", "o/mtl/a.png"]
    (tmp_path / "o" / "mtl").mkdir(parents=True)
    for place, right in zip(lies, expected, strict=True):
        write(tmp_path / place, place.encode())
        assert found(folder, "a.png", beside=tmp_path / "o" / "mtl", picture=True) == right
    assert found(folder, "absent.png", "a.png") == "o/a.png"


def test_a_name_in_another_case_must_be_of_one_file(tmp_path):
    folder = Folder(tmp_path / "o.obj", 1)
    write(tmp_path / "wood.JPG", b"one")
    assert found(folder, "Wood.jpg") == "one"
    write(tmp_path / "WOOD.jpg", b"two")
    assert found(folder, "Wood.jpg") is None
    assert found(folder, "WOOD.jpg") == "two"


def test_only_pictures_are_looked_for_in_the_folders_of_pictures(tmp_path):
    write(tmp_path / "textures" / "a.mtl")
    assert found(Folder(tmp_path / "o.obj", 1), "a.mtl") is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("http://127.0.0.1:9/a.png", "is not a file in its own folder, so it was not opened"),
        ("file:///etc/passwd", "is not a file in its own folder, so it was not opened"),
        ("/etc/passwd", "is not a file in its own folder, so it was not opened"),
        ("D:\\wood.jpg\r", "is not a file in its own folder, so it was not opened"),
        ("../outside.png", "leads out of its own folder, so it was not opened"),
        ("..\\OUTSIDE.png", "leads out of its own folder, so it was not opened"),
        ("below/../../outside.png", "leads out of its own folder, so it was not opened"),
        ("link.png", "a link that leads out of its own folder, so it was not opened"),
        ("out/outside.png", "a link that leads out of its own folder, so it was not opened"),
        ("loop.png", "it names"),
        ("below", "is missing from its folder"),
        (".", "is missing from its folder"),
        ("", "it names ''"),
        ("a.png\r\n", "^it names 'a.png', which is missing from its folder$"),
        ("nul\0.png", "so it was not opened"),
        ("x" * 5000, "it names 'x"),
    ],
)
@pytest.mark.parametrize("picture", [False, True])
def test_what_is_not_opened(tmp_path, name, reason, picture, monkeypatch):
    inside = tmp_path / "inside"
    write(tmp_path / "outside.png")
    (inside / "below").mkdir(parents=True)
    os.symlink(tmp_path / "outside.png", inside / "link.png")
    os.symlink(tmp_path, inside / "out")
    os.symlink(inside / "loop.png", inside / "loop.png")
    listed = []
    monkeypatch.setattr(os, "listdir", lambda path, real=os.listdir: listed.append(Path(path)) or real(path))
    with pytest.raises(ObjectError, match=reason) as error:
        Folder(inside / "o.obj", 1).get(name, picture=picture)
    assert "\r" not in str(error.value)
    assert all(path.is_relative_to(inside) for path in listed)


def test_a_folder_that_is_a_link_may_lie_elsewhere(tmp_path):
    """Data sets are often links to another disk."""
    write(tmp_path / "disk" / "o" / "a.png", b"this")
    (tmp_path / "set").mkdir()
    os.symlink(tmp_path / "disk" / "o", tmp_path / "set" / "o")
    assert found(Folder(tmp_path / "set" / "o" / "o.obj", 1, tmp_path / "set"), "a.png") == "this"
    os.symlink(tmp_path / "disk", tmp_path / "link")
    assert found(Folder(tmp_path / "link" / "o" / "o.obj", 1, tmp_path / "link"), "../o/a.png") == "this"


@pytest.mark.parametrize(
    ("mesh", "mtl", "map_kd", "picture"),
    [
        ("models/model_normalized.obj", "models/m.mtl", "../images/texture0.jpg", "images/texture0.jpg"),  # ShapeNet
        ("meshes/model.obj", "meshes/m.mtl", "texture.png", "materials/textures/texture.png"),  # Google's scans
        ("model.obj", "m.mtl", "Wood.JPG", "wood.jpg"),
        ("model.obj", "m.mtl", "C:\\x\\wood.jpg", "wood.jpg"),
        ("model.obj", "m.mtl", "%20wood.jpg", "%20wood.jpg"),
    ],
)
def test_layouts_of_data_sets(tmp_path, mesh, mtl, map_kd, picture):
    write(tmp_path / "set" / "o" / mesh, OBJ.encode())
    write(tmp_path / "set" / "o" / mtl, f"newmtl m\nmap_Kd {map_kd}\n".encode())
    file = write(tmp_path / "set" / "o" / picture)
    Image.new("RGB", (2, 2), (255, 0, 0)).save(file, "PNG")
    loaded = load(tmp_path / "set" / "o" / mesh, max_faces=9, max_texture_pixels=9, root=tmp_path / "set")
    color = surface_rgba(loaded.parts[0], np.zeros(1, int), np.eye(3)[:1])
    np.testing.assert_allclose(color, [[1, 0, 0, 1]], atol=1e-6)


def test_a_picture_lies_beside_its_library_or_the_object(tmp_path):
    write(tmp_path / "o.obj", OBJ.replace("m.mtl", "materials/m.mtl").encode())
    for statement, place in (("p.png", "materials/p.png"), ("tex/q.png", "tex/q.png"), ("../tex/q.png", "tex/q.png")):
        write(tmp_path / "materials" / "m.mtl", f"newmtl m\nmap_Kd {statement}\n".encode())
        file = write(tmp_path / place)
        Image.new("RGB", (2, 2), (0, 255, 0)).save(file)
        loaded = load(tmp_path / "o.obj", max_faces=9, max_texture_pixels=9)
        assert loaded.parts[0].material.base_color_texture is not None


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("Stoff_grün", "latin-1"), ("Façade", "cp1252"), ("č", "cp1250"), ("椅子", "gbk"), ("стул", "cp1251")],
)
def test_names_in_another_encoding_are_those_of_both_files_and_of_the_disk(tmp_path, name, encoding):
    """A guess at the encoding may differ between an OBJ and its library, which would lose the colour."""
    (tmp_path / "o.obj").write_bytes(
        OBJ.replace("usemtl m", f"usemtl {name}").replace("m.mtl", f"{name}.mtl").encode(encoding)
    )
    (tmp_path / f"{name}.mtl").write_bytes(
        f"# 3ds Max\nnewmtl {name}\n\tKd 1 0 0\n\tmap_d {name}.png\n".encode(encoding)
    )
    Image.new("L", (2, 2), 255).save(tmp_path / f"{name}.png")
    mesh = load(tmp_path / "o.obj", max_faces=10, max_texture_pixels=10)
    assert mesh.parts[0].material.base_color_factor[:3] == (1, 0, 0)
    assert {f"{name}.mtl", f"{name}.png"} <= {path.name for path in with_named_files(tmp_path / "o.obj")}


def test_accents_may_be_letters_of_their_own(tmp_path):
    """As a Mac stores names."""
    write(tmp_path / unicodedata.normalize("NFD", "Tür.png"), b"this")
    assert found(Folder(tmp_path / "o.obj", 1), unicodedata.normalize("NFC", "tür.png")) == "this"


def test_a_folder_of_many_objects_is_listed_once(tmp_path, monkeypatch):
    listed = []
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or listdir(path))
    folder = Folder(tmp_path / "o.obj", 1)
    assert [found(folder, f"{number}.mtl") for number in range(5)] == [None] * 5
    assert len(listed) == 1
    write(tmp_path / "A.MTL", b"this")
    os.utime(tmp_path, ns=(1, 1))  # a file system's clock may stand still between two writes
    assert found(folder, "a.mtl") == "this"


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("\ufeffmtllib m.mtl\n", "utf-8"),
        ("mtllib m.mtl\n", "utf-16"),
        ("mtllib \\\nm.mtl\n", "utf-8"),
        ('mtllib "m.mtl" # materials\n', "utf-8"),
    ],
)
def test_the_hash_holds_the_files_of_an_obj_that_are_opened(tmp_path, monkeypatch, head, encoding):
    opened = []
    bytes_of = Folder.bytes_of
    monkeypatch.setattr(Folder, "bytes_of", lambda self, path: opened.append(path) or bytes_of(self, path))
    (tmp_path / "o.obj").write_bytes(OBJ.replace("mtllib m.mtl\n", head).encode(encoding))
    (tmp_path / "m.mtl").write_text("newmtl m\nmap_Kd -s 2 2 2 my picture.png\n")
    Image.new("RGB", (2, 2)).save(tmp_path / "my picture.png")
    load(tmp_path / "o.obj", max_faces=10, max_texture_pixels=10)
    assert {path.name for path in opened} == {"m.mtl", "my picture.png"}
    assert set(opened) <= set(with_named_files(tmp_path / "o.obj"))


@pytest.mark.parametrize(
    "statement",
    [
        "<init_from>a%26b.png</init_from>",
        "<init_from>a&amp;b.png</init_from>",
        "<init_from>file:///C:/tex/a&amp;b.png</init_from>",
        "<init_from>file://a%26b.png</init_from>",
        "<c:init_from> <c:ref>a%26b.png</c:ref></c:init_from>",
    ],
)
def test_the_hash_holds_the_pictures_of_a_dae(tmp_path, statement):
    write(tmp_path / "a&b.png")
    (tmp_path / "o.dae").write_text(f'<COLLADA xmlns="x"><image id="i">{statement}</image></COLLADA>')
    assert tmp_path / "a&b.png" in with_named_files(tmp_path / "o.dae")


def test_the_hash_holds_the_layers_and_pictures_of_a_usda(tmp_path):
    write(tmp_path / "parts" / "body.usda", b"#usda 1.0\n( subLayers = [ @./skin.usda@ ] )\n")
    write(tmp_path / "parts" / "skin.usda", b"#usda 1.0\nasset inputs:file = @tex/skin.png@\n")
    write(tmp_path / "parts" / "tex" / "skin.png")
    write(tmp_path / "o.usda", b'#usda 1.0\ndef "a" ( prepend references = @./parts/body.usda@</a> ) {}\n')
    assert {path.name for path in with_named_files(tmp_path / "o.usda")} == {
        "o.usda",
        "body.usda",
        "skin.usda",
        "skin.png",
    }


def test_the_hash_holds_a_picture_with_a_blank_in_its_name_and_that_of_a_ply(tmp_path):
    write(tmp_path / "o.obj", OBJ.encode())
    write(tmp_path / "m.mtl", b"newmtl m\nmap_Kd my picture.png\n")
    write(tmp_path / "o.ply", b"ply\nformat ascii 1.0\ncomment TextureFile my picture.png\nend_header\n" + bytes(5000))
    picture = write(tmp_path / "my picture.png")
    for name in ("o.obj", "o.ply"):
        assert picture in with_named_files(tmp_path / name)
