"""The commands `clipgs embed` and `clipgs compare`, with an encoder that answers what it is asked."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clipgs import cli
from clipgs.core.errors import RUN_ARGUMENTS
from clipgs.report import vectors
from clipgs.splats.from_mesh import settings
from clipgs.splats.gaussians import Gaussians
from tests.splats.balls import random_gaussians

AXES = torch.eye(3)
TEXTS = {"a red chair": AXES[0], "a table": (AXES[0] + AXES[1]) / 2**0.5}
SMALL = settings("demo", pixels=32, gaussians=300, steps=20)


class Encoder:
    """Splats are the first axis, pictures the second one; meshes come as splats."""

    dim = 3

    def __init__(self) -> None:
        self.seen = []

    def encode(self, splat):
        self.seen.append(splat if isinstance(splat, Gaussians) else Gaussians.load(splat))
        return AXES[:1]

    def encode_images(self, images):
        assert images.shape == (1, 8, 8, 3)
        return AXES[1:2]

    def encode_text(self, texts):
        return torch.stack([TEXTS[text] for text in texts])


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """What the command writes into the environment of its process goes with the test."""
    monkeypatch.setenv(RUN_ARGUMENTS, "")


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """The encoder, in a working folder with a splat, a mesh, a picture, a text file and a picture that is none."""
    monkeypatch.chdir(tmp_path)
    random_gaussians(20).save("chair.ply")
    Path("box.off").write_text("OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n")
    Image.new("RGB", (8, 4), "red").save("photo.png")
    Path("notes.txt").write_text("no picture\n")
    Path("broken.jpg").write_text("no picture\n")
    made, runs = Encoder(), []
    monkeypatch.setattr(vectors, "settings", lambda preset: SMALL)
    monkeypatch.setattr(vectors, "load", lambda run, device: runs.append(run) or made)
    return SimpleNamespace(made=made, runs=runs)


def test_a_vector_of_every_kind_of_file(encoder):
    assert cli.main(["embed", "photo.png", "box.off", "chair.ply", "--run", "runs/x", "-o", "v.npz"]) == 0
    with np.load("v.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["vectors"], [AXES[1].tolist(), AXES[0].tolist(), AXES[0].tolist()])
        assert found["vectors"].dtype == np.float32
        assert found["files"].tolist() == ["photo.png", "box.off", "chair.ply"]
    splat, mesh = encoder.made.seen
    assert len(splat) == 20
    assert 0 < len(mesh) <= 300


def test_files_without_a_vector_are_lines_and_rows_of_nan(encoder, caplog, capsys):
    names = ["chair.ply", "notes.txt", "broken.jpg"]
    assert cli.main(["embed", *names, "--run", "x", "-o", "v.npy"]) == 1
    found = np.load("v.npy", allow_pickle=False)
    np.testing.assert_array_equal(np.isnan(found).all(axis=1), [False, True, True])
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors[0].startswith("notes.txt: it is no splat, no mesh and no picture (.png .jpg .jpeg .webp)")
    assert errors[1].startswith("broken.jpg: cannot be read as a picture")
    assert cli.main(["embed", *names, "--run", "x"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"file": "chair.ply", "vector": [1.0, 0.0, 0.0]}


def test_a_file_that_is_missing_is_a_row_like_any_bad_one(encoder, caplog):
    assert cli.main(["embed", "none.glb", "chair.ply", "--run", "x", "-o", "v.npy"]) == 1
    np.testing.assert_array_equal(np.isnan(np.load("v.npy")).all(axis=1), [True, False])
    assert "none.glb: there is no such file" in caplog.text


def test_files_are_compared_with_texts(encoder, capsys):
    assert cli.main(["compare", "chair.ply", "a red chair", "photo.png", "a table", "--run", "x"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "           a red chair  a table",
        "chair.ply        1.000    0.707",
        "photo.png        0.000    0.707",
    ]


def test_files_are_compared_with_each_other(encoder, capsys):
    assert cli.main(["compare", "chair.ply", "photo.png", "notes.txt", "--run", "x"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "           chair.ply  photo.png",
        "chair.ply      1.000      0.000",
        "photo.png      0.000      1.000",
    ]


def test_where_no_file_has_a_vector_no_table_is_printed(encoder, capsys):
    assert cli.main(["compare", "notes.txt", "a table", "--run", "x"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "none.ply"], "there is no file none.ply"),
        (["embed", "chair.ply", "-o", "v.csv"], "v.csv: vectors are written as .npy or .npz"),
        (["compare", "chair.glb", "a red chair"], "there is no file chair.glb"),
        (["compare", "a red chair", "a table"], "none of these is a file"),
        (["compare", "chair.ply"], "there is nothing to compare with"),
    ],
)
def test_wrong_usage_is_one_line(encoder, caplog, arguments, message):
    assert cli.main([*arguments, "--run", "x"]) == 2
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert message in record.getMessage()
    assert encoder.runs == []


def test_the_run_is_the_configured_one_unless_one_is_named(encoder, tmp_path):
    Path("config.yaml").write_text("output: out\ntraining: {run: mine}\n")
    assert cli.main(["compare", "chair.ply", "a table"]) == 0
    assert cli.main(["compare", "chair.ply", "a table", "--run", "runs/other"]) == 0
    Path("published").mkdir()
    assert cli.main(["compare", "chair.ply", "a table", "--run", "published"]) == 0
    assert [os.fspath(run) for run in encoder.runs] == ["out/runs/mine", "out/runs/other", "published"]


def test_without_a_run_it_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    random_gaussians(20).save("chair.ply")
    assert cli.main(["compare", "chair.ply", "a table"]) == 1
    assert "there is no folder results/runs/base" in caplog.text
