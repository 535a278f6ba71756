"""The quickstart and the tutorials, typed as they stand, in one folder after another reader's first day.

Settings are tiny: the `config.yaml` of the folder says so, below what a page sets. Nothing comes over the network:
what Objaverse's page downloads lies in the home folder, as a download of the package would have left it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from clipgs.catalog.sources import procedural
from clipgs.core.bundles import read_table
from clipgs.splats import from_mesh
from tests.catalog.objaverse_tree import uid_of, write_objaverse
from tests.conftest import CHECKOUT
from tests.docs import tiny
from tests.docs.test_commands import blocks

DOCS = CHECKOUT / "docs"
SETTINGS = {
    "recipe": "demo",
    "device": "cpu",
    "catalog": {"procedural": {"objects": 12}},
    "points": {"count": 600},
    "views": {"pixels": 32, "count": 6, "held_out": 2},
    "fit": {"gaussians": 150, "steps": 20, "min_psnr": 5.0},
    "render": {"pixels": 32},
    "teacher": {"small": {"steps": 2, "batch": 4}},
    "encoder": {"size": "tiny", "gaussians": 64, "groups": 8, "group_size": 8, "refinement_width": 16},
    "training": {"epochs": 2, "batch": 4},
    "evaluation": {"resamples": 20},
    "workers": {"threads": 2},
}
# Needs a cluster: tests/docs/test_commands.py plans and parses its commands, and tests/cluster runs them.
NOT_RUN = {"slurm.md"}


class Reader:
    """Someone who types a page, line by line, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def follow(self, page: str) -> None:
        """Runs the blocks of a page in their order; those that begin with a file's name are written to it."""
        names: dict[str, object] = {"__name__": page}
        for block in blocks(DOCS / page):
            named = re.match(r"# (\w+\.(?:yaml|csv))\n", block.text)
            if block.language == "sh":
                words = ["bash", "-euo", "pipefail", "-c", block.text]
                done = subprocess.run(words, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{page}: {block.text}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            elif block.language == "python":
                exec(compile(block.text, page, "exec"), names)
            elif named:  # but for the line with its name
                text = re.sub(r"https://\S+\.csv", "captions-of-cap3d.csv", block.text[named.end() :])
                (self.folder / named[1]).write_text(text)

    def packed(self, output: str) -> dict[str, dict]:
        """Caption to row, of the triplets of an output."""
        return {row["caption"]: row for row in read_table(self.folder / output / "triplets" / "index.parquet")}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader with a clone whose environment is made, and a home folder without anything but Objaverse."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "configs", "envs", "profiles", "workflow"):
        (folder / name).symlink_to(CHECKOUT / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").touch()
    (demo,) = re.findall(r"^demo:.*\n\t@\$\(RUN\) (.*)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    for name, line in {
        "make": f'[ "$1" != demo ] || exec {demo}',
        "clipgs": f'exec "{sys.executable}" -m tests.docs.tiny "$@"',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    objaverse = folder / "home" / ".objaverse" / "hf-objaverse-v1"
    write_objaverse(objaverse, 4, body=lambda index: procedural.build(procedural.locator(index, 0)))
    (folder / "captions-of-cap3d.csv").write_text(f"{uid_of(2)},a chair that Cap3D describes\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # for other processes; this one may have a GPU already
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("PATH", os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setattr(from_mesh, "_QUICK", tiny.FIT)
        yield Reader(folder)


@pytest.fixture(scope="module")
def begun(reader) -> Reader:
    """The reader after the quickstart, from which the other pages go on."""
    reader.follow("quickstart.md")
    return reader


@pytest.mark.slow
def test_the_quickstart(begun):
    for made in ("results/report/index.html", "results/triplets/contact_sheet.png", "results/triplets/README.md",
                 "results/runs/base/README.md", "search.png", "chair.ply", "chair.png"):  # fmt: skip
        assert (begun.folder / made).is_file(), made


@pytest.mark.slow
def test_your_meshes(begun):
    begun.follow("tutorials/meshes.md")
    packed = begun.packed("results/mine")
    assert set(packed) == {"a dining chair of light wood with two rungs", "a mug with dots", "a reading lamp"}
    assert packed["a reading lamp"]["shard"] == "00001"
    assert len(list((begun.folder / "exported").glob("*.glb"))) == 3


@pytest.mark.slow
def test_train_and_evaluate(begun, capsys):
    begun.follow("tutorials/train.md")
    assert "text to 3D, captions" in capsys.readouterr().out
    assert (begun.folder / "clip-gs-longer" / "model.safetensors").is_file()


@pytest.mark.slow
def test_in_python(begun):
    begun.follow("tutorials/python.md")
    assert (begun.folder / "render.png").is_file()
    assert (begun.folder / "visible.ply").is_file()


@pytest.mark.slow
def test_splats_of_other_programs(begun, capsys):
    begun.follow("tutorials/splats.md")
    assert set(begun.packed("results/splats")) == {"a wooden chair", "a mug"}
    assert "tensor([[" in capsys.readouterr().out


@pytest.mark.slow
def test_objaverse(reader):
    reader.follow("tutorials/objaverse.md")
    packed = reader.packed("results/some")
    assert set(packed) == {"a chair that Cap3D describes", "Thing number 3"}  # no mug: its licence is not free
    assert packed["a chair that Cap3D describes"]["license"] == "CC0-1.0"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter
def test_the_notebook(begun):
    nbclient = pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
    pytest.importorskip("ipykernel", reason="the extra `docs` is not installed")
    import nbformat

    notebook = nbformat.read(DOCS / "tutorials" / "one_mesh.ipynb", as_version=4)
    nbclient.execute(notebook, cwd=begun.folder, timeout=120, kernel_name="python3")
    said = "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert "dB on held-out views" in said
    assert "image/png" in said


def test_every_tutorial_is_run():
    text = Path(__file__).read_text()
    pages = {page.name for page in (DOCS / "tutorials").iterdir()}
    assert {page for page in pages if page not in text} == set()
    assert pages >= NOT_RUN
