"""One configuration for Snakemake and for the commands: over ./config.yaml, and that of the last run where none is
named."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from clipgs import config as configuration
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.operate import started

from .conftest import SETTINGS

READ = """
import json
from clipgs import config as configuration

configfile: "config.yaml"

with open("seen.json", "w") as file:
    file.write(configuration.check(config).model_dump_json())

rule all:
"""


def overlays():
    from tests.conftest import CHECKOUT

    return sorted(CHECKOUT.glob("configs/*.yaml"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPGS_RUN_ARGUMENTS", raising=False)
    return tmp_path


@pytest.mark.parametrize("overlay", overlays(), ids=lambda file: file.stem)
def test_an_overlay_means_the_same_run_to_snakemake_and_to_the_commands(here, checkout, overlay):
    (here / "config.yaml").write_text((checkout / "config.yaml").read_text())
    (here / "Snakefile").write_text(READ)
    command = [sys.executable, "-m", "snakemake", "-n", "--configfile", str(overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = Config.model_validate_json((here / "seen.json").read_text())
    assert started.layered([str(overlay)]) == seen
    assert seen.recipe == "paper"


def test_a_value_of_ones_own_wins_over_the_recipe_and_config_yaml_lies_below(here, checkout):
    (here / "config.yaml").write_text((checkout / "config.yaml").read_text())
    (here / "mine.yaml").write_text("recipe: fast\nfit: {gaussians: 12000}\n")
    config = started.layered(["mine.yaml"])
    assert (config.fit.gaussians, config.fit.steps, config.views.pixels) == (12_000, 1_500, 256)
    assert started.layered([]).fit.steps == 1_500
    assert started.layered([]).views.pixels == 128


@pytest.fixture(scope="module")
def ran(made, tmp_path_factory):
    """A workspace whose config.yaml is another run's, and whose triplets were made with mine.yaml."""
    workspace = made.copy(tmp_path_factory.mktemp("ran") / "workspace")
    workspace.write_config({**SETTINGS, "output": "elsewhere"})
    (workspace.folder / "mine.yaml").write_text(yaml.safe_dump({"output": "results", "render": {"webp_quality": 80}}))
    workspace.make("--configfile", str(workspace.folder / "mine.yaml"), "--config", "pack={samples: 3}")
    return workspace


def clipgs(folder, *arguments):
    command = [sys.executable, "-m", "clipgs", *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLIPGS_")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_writes_what_it_was_started_with(ran):
    config = configuration.read(ran.output / "run.yaml")
    assert (config.output, config.render.webp_quality, config.pack.samples) == ("results", 80, 3)
    start = json.loads((ran.output / "run.json").read_text())
    assert start["folder"] == str(ran.folder)
    assert (start["files"], start["values"]) == (["mine.yaml"], {"pack": {"samples": "3"}})
    assert start["snakefile"] == str(ran.checkout / "Snakefile")
    assert ran.planned("--configfile", str(ran.folder / "mine.yaml"), "--config", "pack={samples: 3}") == {}


def test_commands_without_a_configuration_take_that_of_the_last_run(ran, checkout):
    text = clipgs(ran.folder, "status", "--snakefile", str(checkout / "Snakefile"))
    assert text.startswith("results: ")
    assert "to do" in text
    line = next(line for line in text.splitlines() if line.startswith("render"))
    assert line.split() == ["render", "2", ".", ".", ".", "."]
    assert "files are whole" in clipgs(ran.folder, "verify")
    assert clipgs(ran.folder, "verify") == clipgs(ran.output / "triplets", "verify")
    assert clipgs(ran.folder, "verify") == clipgs("/", "verify", "--output", str(ran.output))
    assert clipgs(ran.folder, "verify", "--config", "config.yaml") == "0 of 0 files are whole\n"


def test_what_to_type_next_names_the_users_own_files(ran, tmp_path):
    workspace = ran.copy(tmp_path / "excluded")
    uid = read_table(workspace.output / "triplets" / "index.parquet")[0]["uid"]
    (workspace.output / "run.json").write_text(
        (workspace.output / "run.json").read_text().replace(str(ran.folder), str(workspace.folder))
    )
    text = clipgs(workspace.folder, "exclude", uid)
    snakefile = f"--snakefile {ran.checkout / 'Snakefile'}"  # there is none in the folder
    assert f"snakemake triplets {snakefile} --configfile mine.yaml --config 'pack={{samples: " in text
    text = clipgs("/", "exclude", uid, "--undo", "--output", str(workspace.output))
    places = f"{snakefile} --directory {workspace.folder} --configfile {workspace.folder / 'mine.yaml'}"
    assert f"snakemake triplets {places} --config 'pack={{samples: " in text


def test_an_output_of_no_run_is_refused(ran, tmp_path):
    command = [sys.executable, "-m", "clipgs", "verify", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ran.folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds no run.yaml" in done.stderr


def test_the_demos_recipe_over_ones_own_meshes_is_said_before_the_first_job(made, tmp_path):
    workspace = made.copy(tmp_path / "demo")
    workspace.write_config({**SETTINGS, "recipe": "demo"})
    done = workspace.run("-n", "triplets")
    (line,) = [line for line in done.stderr.splitlines() if "recipe: demo" in line]
    assert 'recipe: "paper"' in line
    workspace.write_config(SETTINGS)
    assert "recipe: demo" not in workspace.run("-n", "triplets").stderr


@pytest.mark.parametrize("rows", [["voting"], ["votin"]])
def test_a_wrong_combination_of_ablation_rows_is_an_error_before_any_job(made, tmp_path, rows):
    workspace = made.copy(tmp_path / "rows")
    workspace.write_config({**SETTINGS, "ablations": {"rows": rows}})
    done = workspace.run("-n", "ablations")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("clipgs:")]
    assert "which must be in the list too" in line if rows == ["voting"] else "did you mean voting?" in line
