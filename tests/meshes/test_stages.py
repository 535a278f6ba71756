"""Stages that read a file of the source: they take no other bytes than those that were frozen."""

import shutil

import numpy as np
import pytest

from clipgs.catalog.shards import plan
from clipgs.catalog.sources import procedural
from clipgs.catalog.stages import freeze
from clipgs.config import check
from clipgs.core.bundles import read_table
from clipgs.meshes import stages

CUBE = "\n".join(
    [
        *(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)),
        "usemtl m",
        *("f " + " ".join(face) for face in ("1342", "5687", "1573", "2486", "1265", "3784")),
    ]
)
SETTINGS = {
    "points": {"count": 100},
    "views": {"pixels": 32, "count": 6, "held_out": 2},
    "device": "cpu",
}


@pytest.fixture
def meshes(tmp_path):
    folder = tmp_path / "meshes"
    folder.mkdir()
    for name in ("cube", "other"):
        (folder / f"{name}.obj").write_text(f"mtllib {name}.mtl\n# {name}\n{CUBE}\n")
        (folder / f"{name}.mtl").write_text("newmtl m\nKd 1 0 0\n")
    return folder


def config_of(tmp_path, **catalog):
    places = {"output": str(tmp_path / "out"), "cache": str(tmp_path / "cache")}
    return check({**places, **SETTINGS, "catalog": catalog})


@pytest.fixture
def fetched(tmp_path, meshes):
    config = config_of(tmp_path, source="folder", folder={"path": str(meshes)})
    freeze(config, list(plan(config).pending))
    stages.fetch(config, "00000", 1)
    return config


def errors(config, folder):
    """File to the error of its row."""
    name_of = {row["uid"]: row["locator"] for row in read_table(config.output_path / "catalog/shards/00000.parquet")}
    return {name_of[row["uid"]]: row["error"] for row in read_table(config.output_path / folder / "00000.parquet")}


def test_files_that_are_as_they_were_are_read(fetched, meshes):
    for path in meshes.iterdir():
        path.touch()
    stages.sample(fetched, "00000", 1)
    assert errors(fetched, "points") == {"cube.obj": None, "other.obj": None}
    stages.view(fetched, "00000", 1)
    assert errors(fetched, "views") == {"cube.obj": None, "other.obj": None}


@pytest.mark.parametrize("changed", ["cube.obj", "cube.mtl"])
def test_another_file_under_the_same_name_is_refused(fetched, meshes, changed):
    text = (meshes / changed).read_text()
    (meshes / changed).write_text(text.replace("v 1 1 1", "v 1 1 2").replace("Kd 1 0 0", "Kd 0 0 1"))
    stages.sample(fetched, "00000", 1)
    stages.view(fetched, "00000", 1)
    for folder in ("points", "views"):
        found = errors(fetched, folder)
        assert found["other.obj"] is None
        assert "cube.obj has changed since it was frozen" in found["cube.obj"]
    with np.load(fetched.output_path / "points" / "00000.npz") as arrays:
        assert len({name.split("/")[0] for name in arrays.files}) == 1


def test_a_file_that_has_gone_is_refused(fetched, meshes):
    (meshes / "cube.obj").unlink()
    stages.sample(fetched, "00000", 1)
    found = errors(fetched, "points")
    assert found["other.obj"] is None
    assert "cube.obj has gone since it was frozen" in found["cube.obj"]


def test_a_file_that_is_replaced_while_it_is_read_is_refused(fetched, meshes, monkeypatch):
    """In this process, so that the swap falls between the hash and the end of the loading."""
    (row,) = [row for row in read_table(fetched.output_path / "catalog/shards/00000.parquet")
              if row["locator"] == "cube.obj"]  # fmt: skip
    to_read, load = stages.ToRead(fetched, row, row["sha256"], 0), stages.load_by

    def swapped(config, path, **more):
        shutil.copy(meshes / "other.obj", meshes / "cube.obj")
        return load(config, path, **more)

    assert to_read.load().face_count == 12
    monkeypatch.setattr(stages, "load_by", swapped)
    with pytest.raises(stages.ObjectError, match=r"cube\.obj has changed since it was frozen: it was replaced while"):
        to_read.load()


def test_a_file_in_the_cache_is_the_one_that_was_fetched(tmp_path):
    config = config_of(tmp_path, source="procedural", procedural={"objects": 2})
    freeze(config, list(plan(config).pending))
    stages.fetch(config, "00000", 1)
    files = sorted((tmp_path / "cache" / "procedural").rglob("*.glb"))
    files[0].write_bytes(procedural.build(procedural.locator(5, 0)))
    files[1].unlink()
    stages.sample(config, "00000", 1)
    changed, gone = sorted(errors(config, "points").values(), key=lambda error: "gone" in error)
    for error, what in ((changed, "changed"), (gone, "gone")):
        assert f"has {what} since it was fetched" in error
        assert error.endswith("; fetch it again with: snakemake triplets --forcerun fetch")
