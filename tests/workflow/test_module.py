"""clipgs as a part of another workflow: rules, environments, settings, the lock and the record of the run."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from clipgs import config as configuration
from clipgs.core.bundles import read_table
from clipgs.core.devices import visible_gpus
from clipgs.operate.lock import OutputLock

from .conftest import SETTINGS, Workspace

IMPORTER = """
configfile: "own.yaml"


module clipgs:
    snakefile:
        config["checkout"] + "/Snakefile"
    config:
        config["splats"]


use rule * from clipgs as splats_*


rule all:
    default_target: True
    input:
        "results/triplets/index.parquet",
        "counted.txt",


rule count:
    input:
        "results/triplets/index.parquet",
    output:
        "counted.txt",
    shell:
        "wc -c {input} > {output}"
"""


class Importer(Workspace):
    """A workflow of somebody's own that imports clipgs."""

    def __init__(self, folder, checkout):
        super().__init__(folder, checkout)
        folder.mkdir()
        (folder / "Snakefile").write_text(IMPORTER)
        # Read by no one: the importer's own configuration counts.
        (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"output": "elsewhere"}))
        self.write_own(SETTINGS)

    def write_own(self, settings):
        own = {"checkout": str(self.checkout), "splats": settings}
        (self.folder / "own.yaml").write_text(yaml.safe_dump(own))

    def command(self, *arguments):
        return [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]

    def run(self, *arguments):
        return subprocess.run(self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def imported(tmp_path_factory, checkout) -> Importer:
    workspace = Importer(tmp_path_factory.mktemp("module") / "own", checkout)
    workspace.write_own(configuration.merge(SETTINGS, {"temporary": ["points"]}))
    workspace.add_objects(1)
    assert not (workspace.folder / "results").exists()
    dry = workspace.run("-n")
    assert dry.returncode == 0, dry.stderr[-3000:]
    assert not (workspace.folder / "results").exists()  # looking writes nothing and locks nothing
    done = workspace.run()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return workspace


def test_it_makes_the_triplets_and_what_is_made_of_them(imported):
    (row,) = read_table(imported.output / "triplets" / "index.parquet")
    assert row["uid"]
    assert "index.parquet" in (imported.folder / "counted.txt").read_text()
    assert not (imported.folder / "elsewhere").exists()
    assert not list(imported.output.glob("points/*.npz"))  # `temporary` of the importer's own settings


def test_a_second_run_has_nothing_to_do(imported):
    done = imported.run("--rerun-triggers", "mtime", "params", "input", "code", "software-env")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stderr + done.stdout


def test_the_run_is_written_down_and_its_lock_released(imported):
    config = yaml.safe_load((imported.output / "run.yaml").read_text())
    assert config["fit"]["gaussians"] == SETTINGS["fit"]["gaussians"]
    assert json.loads((imported.output / "run.json").read_text())["folder"] == str(imported.folder)
    assert (imported.folder / ".snakemake" / "clipgs-output").read_text().strip() == "results"
    assert (imported.output / "run.lock").read_text() == ""


def test_a_second_run_over_the_output_is_refused_and_looking_is_free(imported):
    with OutputLock(imported.output):
        done = imported.run("--forcerun", "splats_pack")
        assert done.returncode == 1
        assert f"process {os.getpid()}, since" in done.stderr
        for look in (["-n", "--forcerun", "splats_pack"], ["--summary"]):
            assert imported.run(*look).returncode == 0, look


@pytest.mark.skipif(bool(visible_gpus()), reason="this machine has a GPU")
def test_what_its_jobs_need_is_checked_before_the_first(imported):
    """The importer has given the rules other names."""
    done = imported.run("-n", "--forcerun", "splats_fit", "--config", "splats={device: cuda}")
    assert done.returncode == 2
    assert "device = cuda, but" in done.stderr


def test_its_environments_lie_beside_its_rules(imported, checkout):
    done = imported.run("-n", "--forcerun", "splats_fit", "splats_pack", "--sdm", "conda", "--conda-list-envs")
    text = done.stdout + done.stderr
    assert f"{checkout}/envs/clipgs.yaml" in text or "conda" in text.lower()
    assert str(imported.folder / "envs") not in text


def test_two_outputs_in_one_workflow_are_refused(imported, tmp_path):
    second = IMPORTER.split("use rule")[0].replace("module clipgs", "module others").replace('"splats"', '"others"')
    second = second.split("module others", 1)[1]
    text = IMPORTER + "\n\nmodule others" + second + "\nuse rule * from others as others_*\n"
    own = yaml.safe_load((imported.folder / "own.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own | {"others": SETTINGS | {"output": "others"}}))
    (tmp_path / "Snakefile").write_text(text)
    (tmp_path / "meshes").symlink_to(imported.folder / "meshes")
    done = subprocess.run(imported.command("-n"), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "one workflow makes one output" in done.stderr.splitlines()[-1]


def test_a_run_that_had_nothing_to_do_is_the_last_one(made, tmp_path):
    workspace = made.copy(tmp_path / "last")
    (workspace.folder / ".snakemake" / "clipgs-output").write_text("another\n")
    assert "Nothing to be done" in workspace.make().stderr
    assert (workspace.folder / ".snakemake" / "clipgs-output").read_text() == "results\n"
