"""One mesh file to one splat, as the workflow makes it."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import trimesh

import clipgs
from clipgs.catalog.shards import plan
from clipgs.catalog.stages import freeze
from clipgs.config import check
from clipgs.core.bundles import tar_objects
from clipgs.core.errors import ObjectError, UsageError
from clipgs.meshes import stages as of_meshes
from clipgs.splats import from_mesh, stages
from clipgs.splats.export import to_glb
from clipgs.splats.gaussians import Gaussians
from tests.splats.balls import random_gaussians

SMALL = {"preset": "demo", "gaussians": 300, "steps": 20, "pixels": 32}


def box(file):
    """A box of red and blue vertices, in any format that trimesh writes."""
    made = trimesh.creation.box((1, 2, 3))
    made.visual.vertex_colors = [[255, 0, 0, 255], [0, 0, 255, 255]] * 4
    data = made.export(file_type=file.suffix[1:])
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


THREEMF = """<model unit="meter" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02">
<resources><object id="1" type="model"><mesh>
<vertices><vertex x="0" y="0" z="0"/><vertex x="1" y="0" z="0"/><vertex x="0" y="1" z="0"/><vertex x="0" y="0" z="1"/>
</vertices><triangles><triangle v1="0" v2="2" v3="1"/><triangle v1="0" v2="1" v3="3"/><triangle v1="0" v2="3" v3="2"/>
<triangle v1="1" v2="2" v3="3"/></triangles></mesh></object></resources><build><item objectid="1"/></build></model>"""


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf"])
def test_a_file_of_every_format(tmp_path, suffix):
    if suffix == ".3mf":
        with zipfile.ZipFile(tmp_path / "box.3mf", "w") as archive:
            archive.writestr("3D/3dmodel.model", THREEMF)
    elif suffix == ".gltf":
        for name, data in trimesh.exchange.gltf.export_gltf(trimesh.load_scene(box(tmp_path / "box.glb"))).items():
            (tmp_path / name.replace("model.gltf", "box.gltf")).write_bytes(data)
    else:
        box(tmp_path / f"box{suffix}")
    found = clipgs.fit_mesh(tmp_path / f"box{suffix}", **SMALL)
    assert found.psnr > 15
    assert 0 < len(found.gaussians) <= 300
    assert found.views.rgba.shape == (40, 32, 32, 4)
    assert found.held_out == 4


@pytest.mark.parametrize("suffix", [".usda", ".usdc"])
def test_a_file_of_usd(tmp_path, suffix):
    usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdGeom

    stage = usd.Stage.CreateNew(str(tmp_path / f"box{suffix}"))
    UsdGeom.Cube.Define(stage, "/box")
    mesh = UsdGeom.Mesh.Define(stage, "/mesh")
    mesh.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
    mesh.CreateFaceVertexCountsAttr([3] * 4)
    mesh.CreateFaceVertexIndicesAttr([0, 2, 1, 0, 1, 3, 0, 3, 2, 1, 2, 3])
    stage.Save()
    assert clipgs.fit_mesh(tmp_path / f"box{suffix}", **SMALL).psnr > 10


def test_the_workflow_gives_the_same_bytes(tmp_path):
    (tmp_path / "meshes").mkdir()
    file = box(tmp_path / "meshes" / "box.ply")
    places = {"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"), "device": "cpu"}
    config = check(
        {
            **places,
            "recipe": "demo",
            "seed": 3,
            "catalog": {"source": "folder", "folder": {"path": str(file.parent)}},
            "views": {"pixels": 32},
            "fit": {"gaussians": 300, "steps": 20, "min_psnr": 0},
        }
    )
    freeze(config, list(plan(config).pending))
    for stage in (of_meshes.fetch, of_meshes.sample, of_meshes.view, stages.fit):
        stage(config, "00000", 1)
    ((uid, members),) = tar_objects(config.output_path / "splats" / "00000.tar").items()
    assert clipgs.fit_mesh(file, **SMALL, seed=3).gaussians.to_ply() == members.read()["ply"], uid


def test_the_seed_and_the_axis_change_the_splat(tmp_path):
    file = box(tmp_path / "box.glb")
    first = clipgs.fit_mesh(file, **SMALL)
    assert clipgs.fit_mesh(file, **SMALL).gaussians.to_ply() == first.gaussians.to_ply()
    assert clipgs.fit_mesh(file, **SMALL, seed=1).gaussians.to_ply() != first.gaussians.to_ply()
    lying = clipgs.fit_mesh(file, **SMALL, up_axis="z").gaussians.means
    sizes = [np.ptp(means.numpy(), axis=0) for means in (first.gaussians.means, lying)]
    assert [size.argmax() for size in sizes] == [2, 1]


def test_it_is_saved_in_the_format_of_the_suffix(tmp_path):
    found = clipgs.fit_mesh(box(tmp_path / "box.off"), **SMALL)
    for name in ("a.ply", "a.splat", "a.glb"):
        found.save(tmp_path / name)
    assert Gaussians.load(tmp_path / "a.ply").to_ply() == found.gaussians.to_ply()
    assert (tmp_path / "a.splat").stat().st_size == 32 * len(found.gaussians)
    assert (tmp_path / "a.glb").read_bytes().startswith(b"glTF")
    with pytest.raises(UsageError, match="there is no folder"):  # as clipgs splat -o
        found.save(tmp_path / "new" / "a.ply")
    assert repr(found).startswith(f"FittedMesh({len(found.gaussians)} Gaussians, ")
    with pytest.raises(UsageError, match=r"a\.xyz has the suffix \.xyz; splats are written as \.splat, \.glb, \.ply"):
        found.save(tmp_path / "a.xyz")


def test_the_threads_of_the_caller_stay(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        clipgs.fit_mesh(box(tmp_path / "box.off"), **SMALL)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_more_gaussians_than_points_of_a_run():
    config = from_mesh.settings("demo", gaussians=40_000)
    assert (config.fit.gaussians, config.points.count) == (40_000, 50_000)
    assert from_mesh.settings("demo").points.count == 20_000


def test_the_presets(monkeypatch):
    assert from_mesh.settings("paper").fit.steps == 5_000
    quick = from_mesh.settings("quick")
    assert (quick.views.pixels, quick.fit.gaussians, quick.fit.steps) == (256, 10_000, 1_000)
    monkeypatch.setattr(from_mesh, "choose_device", lambda *_, **__: "cpu")
    assert from_mesh.settings() == quick
    monkeypatch.setattr(from_mesh, "choose_device", lambda *_, **__: "cuda")
    assert from_mesh.settings() == from_mesh.settings("paper")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "best"}, "the preset is 'best'; allowed: demo, quick, fast, paper"),
        ({"gaussians": 3}, r": gaussians = 3: input should be greater than or equal to 16"),
        ({"pixels": 5000}, r": pixels = 5000"),
        ({"up_axis": "x"}, "up_axis is 'x'; allowed: auto, y, z"),
    ],
)
def test_wrong_arguments_are_one_sentence(wrong, message):
    with pytest.raises(UsageError, match=message):
        clipgs.fit_mesh("box.glb", **wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.glb", "the file is missing"),
        (".", "it is a folder; name a file in it"),
        ("splat.glb", "it is a Gaussian splat and no mesh"),
        ("text.glb", "glTF"),
        ("text.txt", r"files of the kind '\.txt' are not read"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, message):
    (tmp_path / "text.glb").write_text("no mesh\n")
    (tmp_path / "splat.glb").write_bytes(to_glb(random_gaussians(50)))
    (tmp_path / "text.txt").write_text("no mesh\n")
    with pytest.raises(ObjectError, match=rf"{name}: .*{message}"):
        clipgs.fit_mesh(tmp_path / name, **SMALL)


@pytest.mark.parametrize("given", [None, ["a.glb", "b.glb"], 3])
def test_what_is_no_path_is_told(given):
    with pytest.raises(TypeError, match="fit_mesh takes the path of one mesh file, not"):
        clipgs.fit_mesh(given)


def test_importing_clipgs_loads_no_torch():
    script = "import sys, clipgs; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_many_go_through_batches_on_a_gpu(tmp_path, monkeypatch):
    """The kernels are replaced by what gives the starts back; all else is as on a GPU."""
    from clipgs.splats import fitting
    from clipgs.splats.fitting import batches

    sizes = []

    def fit(prepared, views, settings):
        sizes.append(len(prepared))
        return fitting.as_gaussians(torch.from_numpy(np.stack([one.raw for one in prepared])))

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(fitting.cuda, "objects_a_batch", lambda *_: 2)
    monkeypatch.setattr(batches, "choose_device", lambda *_, **__: "cpu")
    monkeypatch.setattr(from_mesh, "choose_device", lambda *_, **__: "cuda")
    config = from_mesh.settings(**SMALL)
    (tmp_path / "bad.off").write_text("no mesh\n")
    files = [*(box(tmp_path / f"{name}.off") for name in "abc"), tmp_path / "bad.off"]
    jobs = [(from_mesh.ToFit(config, file), file.name) for file in files]
    found = dict(from_mesh.fit_many(jobs, 2, lambda name, fitted: {"name": name, "psnr": fitted.psnr}))
    assert sorted(sizes) == [1, 2] or sizes == [2, 1, 0]
    assert [found[i]["name"] for i in range(3)] == ["a.off", "b.off", "c.off"]
    assert all(found[i]["psnr"] > 10 for i in range(3))
    assert found[3].startswith("ObjectError: ")
