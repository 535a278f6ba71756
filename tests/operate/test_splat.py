"""The command `clipgs splat`."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipgs
from clipgs import cli
from clipgs.meshes.cameras import parse_cameras
from clipgs.operate import splat as module
from clipgs.splats import from_mesh
from clipgs.splats.read import is_splat

CUBE = "\n".join(
    [
        *(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)),
        *("f " + " ".join(face) for face in ("1342", "5687", "1573", "2486", "1265", "3784")),
    ]
)
SMALL = ("--preset", "demo", "--gaussians", "300", "--steps", "20", "--pixels", "32")
SAME = {"preset": "demo", "gaussians": 300, "steps": 20, "pixels": 32}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with two meshes and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("chair.obj", "table.obj"):
        Path(name).write_text(f"# {name}\n{CUBE}\n")
    Path("text.glb").write_text("no mesh\n")
    return tmp_path


def splat(*arguments: str) -> int:
    return cli.main(["splat", *arguments])


def one_line(caplog) -> str:
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    return record.getMessage()


def test_the_command_is_the_function(here, capsys):
    assert splat("chair.obj", "-o", "my.ply", *SMALL) == 0
    fitted = clipgs.fit_mesh("chair.obj", **SAME)
    fitted.save("other.ply")
    assert Path("my.ply").read_bytes() == Path("other.ply").read_bytes()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"my.ply: {fitted.psnr:.1f} dB on held-out views, {len(fitted.gaussians)} Gaussians, picture my.png"
    )
    assert last.startswith("1 splat in ")
    with Image.open("my.png") as picture:
        assert picture.size == (954, 552)


def test_without_o_the_name_is_the_mesh_s(here):
    assert splat("chair.obj", "--no-picture", *SMALL) == 0
    assert splat("table.obj", "--no-picture", "--format", "gltf", *SMALL) == 0
    assert sorted(os.listdir()) == ["chair.obj", "chair.ply", "table.glb", "table.obj", "text.glb"]
    assert is_splat(Path("chair.ply"))
    assert is_splat(Path("table.glb"))
    assert splat("chair.obj", "--no-picture", *SMALL) == 0  # a splat may be replaced


def test_the_suffix_of_o_is_the_format(here):
    for name in ("a.splat", "a.glb", "A.PLY"):
        assert splat("chair.obj", "-o", name, "--no-picture", *SMALL) == 0
    assert Path("a.splat").stat().st_size % 32 == 0
    assert Path("a.glb").read_bytes().startswith(b"glTF")
    assert Path("A.PLY").read_bytes().startswith(b"ply")
    assert splat("chair.obj", "-o", "a.bin", "--format", "splat", "--no-picture", *SMALL) == 0
    assert Path("a.bin").read_bytes() == Path("a.splat").read_bytes()


def test_the_views_and_their_cameras_are_written(here):
    assert splat("chair.obj", "--views-to", "views", "--no-picture", *SMALL) == 0
    viewmats, Ks, pixels = parse_cameras(Path("views/cameras.json").read_bytes())
    fitted = clipgs.fit_mesh("chair.obj", **SAME)
    np.testing.assert_array_equal(viewmats, fitted.views.viewmats)
    np.testing.assert_array_equal(Ks, fitted.views.Ks)
    assert pixels == 32
    pictures = [np.asarray(Image.open(f"views/{i:03d}.png")) for i in range(40)]
    np.testing.assert_array_equal(pictures, fitted.views.rgba)


def test_bad_files_are_lines_and_the_others_go_on(here, capsys, caplog):
    assert splat("chair.obj", "text.glb", "none.glb", "table.obj", "--views-to", "views", *SMALL) == 1
    names = sorted(os.listdir("splats"))
    assert names == ["chair.ply", "chair.png", "table.ply", "table.png"]
    assert sorted(os.listdir("views")) == ["chair", "table"]
    fitted = clipgs.fit_mesh("chair.obj", **SAME)
    assert Path("splats/chair.ply").read_bytes() == fitted.gaussians.to_ply()
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert sorted(errors)[0] == "clipgs splat: 2 of 4 meshes failed"
    assert any(text.startswith("clipgs splat: text.glb: it is no GLB file") for text in errors)
    assert "clipgs splat: none.glb: the file is missing" in errors
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 splats in ")


def each_by_itself(jobs, threads, finish):
    """As `fit_many`, without processes, which take seconds to start."""
    for index, (to_fit, target) in enumerate(jobs):
        try:
            yield index, finish(target, from_mesh.fit_one(to_fit))
        except from_mesh.ObjectError as error:
            yield index, f"ObjectError: {error}"


def test_a_folder_without_the_splats_in_it(here, monkeypatch):
    monkeypatch.setattr(module, "fit_many", each_by_itself)
    Path("text.glb").unlink()
    for _ in range(2):
        assert splat(".", "-o", "out", *SMALL) == 0
        assert sorted(os.listdir("out")) == ["chair.ply", "chair.png", "table.ply", "table.png"]


def test_a_single_bad_file_is_exit_code_1(here, caplog, capsys):
    assert splat("text.glb") == 1
    assert "it is no GLB file: it does not begin with glTF" in one_line(caplog)
    assert capsys.readouterr().out == ""
    assert sorted(os.listdir()) == ["chair.obj", "table.obj", "text.glb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chair.obj", "-o", "no/chair.ply"], "-o: there is no folder no: make it, or name another"),
        (["chair.obj", "-o", "no/where/"], "there is no folder"),
        (["chair.obj", "--views-to", "no/where"], "--views-to: there is no folder"),
        (["chair.obj", "-o", "chair.obj/a.ply"], "chair.obj is a file: name another folder"),
        (["chair.obj", "-o", "a.xyz"], "a.xyz has the suffix .xyz; splats are written as .splat, .glb, .ply"),
        (["chair.obj", "-o", "a.ply", "--format", "splat"], "-o a.ply and --format splat contradict each other"),
        (["chair.obj", "table.obj", "-o", "a.ply"], "2 splats cannot go into the one file a.ply: name a folder by -o"),
        (["mesh.ply"], "the splat would replace the mesh mesh.ply"),
        (["chair.obj", "-o", "mesh.ply"], "mesh.ply is there already, and is no splat"),
        (["empty"], "empty holds no mesh file"),
        (["chair.obj", "--gaussians", "3"], "gaussians = 3: input should be greater than or equal to 16"),
    ],
)
def test_wrong_usage_is_one_line_before_the_fit(here, caplog, arguments, message):
    Path("mesh.ply").write_text("ply\nformat ascii 1.0\nelement vertex 0\nend_header\n")
    Path("empty").mkdir()
    before = sorted(here.rglob("*"))
    assert splat(*arguments, *(() if "--gaussians" in arguments else SMALL)) == 2
    assert message in one_line(caplog)
    assert sorted(here.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(here, caplog):
    Path("locked").mkdir(mode=0o500)
    assert splat("chair.obj", "-o", "locked/a.ply", *SMALL) == 2
    assert "cannot be written: name another folder" in one_line(caplog)


def test_a_folder_that_cannot_be_written_is_found_before_the_fit(here, caplog, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert splat("chair.obj", "-o", "a.ply", *SMALL) == 2
    assert "cannot be written: name another folder" in one_line(caplog)


def test_the_texture_of_a_mesh_is_not_replaced_by_the_picture(here):
    Image.new("RGB", (4, 4), "red").save("chair.png")
    before = Path("chair.png").read_bytes()
    for _ in range(2):
        assert splat("chair.obj", *SMALL) == 0
        assert Path("chair.png").read_bytes() == before
        assert sorted(path.name for path in Path().glob("*.png")) == ["chair-splat.png", "chair.png"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/chair.glb", "b/table.glb"], ["chair", "table"]),
        (["a/chair.glb", "a/chair.obj", "lamp.obj"], ["chair-glb", "chair-obj", "lamp"]),
        (["a/chair.glb", "b/chair.glb"], ["a-chair", "b-chair"]),
        (["a/chair.glb", "b/Chair.glb"], ["a-chair", "b-Chair"]),
        (["a/b/chair.glb", "c/b/chair.glb", "chair-1.glb"], ["chair-2", "chair-3", "chair-1"]),
    ],
)
def test_names_that_collide_are_told_apart(files, names):
    assert module._names([Path(file) for file in files]) == names


def test_a_file_that_is_named_twice_is_fitted_once(here):
    found = module._found([Path("chair.obj"), Path("../") / here.name / "chair.obj", Path(".")])
    assert [file.name for file, _ in found] == ["chair.obj", "table.obj", "text.glb"]
