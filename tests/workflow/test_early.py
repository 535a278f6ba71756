"""What is wrong with a configuration or a machine is said before the first job, in a dry run too, in one line."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from clipgs import config as configuration

from .conftest import SETTINGS, Workspace

TYPO = "teacher={name: ViT-B-32, pretrained: laion2b_typo}"
NO_FILE = "teacher={name: ViT-B-32, pretrained: /gone/weights.safetensors}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, checkout):
    """Nothing is made in it: no test here starts a job."""
    workspace = Workspace(tmp_path_factory.mktemp("early"), checkout)
    workspace.write_config(SETTINGS | {"teacher": {"name": "train"}})
    workspace.add_objects(2)
    return workspace


def said(done: subprocess.CompletedProcess) -> list[str]:
    """The lines of ours."""
    assert "Traceback" not in done.stderr
    return [line.removeprefix("clipgs: ") for line in done.stderr.splitlines() if line.startswith("clipgs: ")]


@pytest.mark.parametrize(
    ("target", "values", "words"),
    [
        ("triplets", TYPO, "config: teacher.pretrained = laion2b_typo: neither a tag"),
        ("features", NO_FILE, "config: teacher.pretrained = /gone/weights.safetensors: there is no such"),
        ("triplets", "device=cuda", "config: device = cuda, but this "),
        ("train", "encoder={initialisation: uni3d, weights: nofile}", "config: encoder.weights = nofile: nofile does"),
        ("evaluate", "evaluation={classes: nofile}", "config: evaluation.classes: nofile: No such file or directory"),
    ],
)
def test_it_is_refused_in_a_dry_run(workspace, monkeypatch, target, values, words):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = workspace.run("-n", target, "--config", values)
    assert done.returncode == 2
    (line,) = said(done)
    assert line.startswith(words)


def test_what_no_stage_of_the_plan_reads_is_not_asked_for(workspace):
    done = workspace.run("-n", "triplets", "--config", NO_FILE, "encoder={initialisation: uni3d, weights: nofile}")
    assert (done.returncode, said(done)) == (0, [])


def test_a_run_is_refused_before_its_first_job_and_writes_nothing(workspace):
    done = workspace.run("features", "--cores", "1", "--config", NO_FILE)
    assert done.returncode == 2
    assert len(said(done)) == 1
    assert not workspace.output.exists()


def test_a_dry_run_writes_nothing_into_an_output(workspace, tmp_path, checkout):
    for name in ("config.yaml", "meshes"):
        (tmp_path / name).symlink_to(workspace.folder / name)
    here = Workspace(tmp_path, checkout)
    here.output.mkdir()
    assert here.run("-n", "triplets").returncode == 0
    assert list(here.output.iterdir()) == []


def test_a_cluster_has_gpus_that_its_login_node_has_not(workspace, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pytest.importorskip("snakemake_executor_plugin_slurm")
    done = workspace.run("-n", "triplets", "--executor", "slurm", "--jobs", "2", "--config", "device=cuda")
    assert (done.returncode, said(done)) == (0, [])


def test_commands_that_read_do_not_ask_for_it(workspace):
    for more in (["--summary"], ["--dag"], ["--list-rules"]):
        done = workspace.run("features", *more, "--config", NO_FILE, "device=cuda")
        assert (done.returncode, said(done)) == (0, [])


def test_a_job_does_not_check_again(workspace):
    """As an executor starts it: the plan was checked, and a job may see another network, disk and GPU."""
    config = configuration.check({**SETTINGS, "teacher": {"name": "ViT-B-32", "pretrained": "laion2b_typo"}})
    environment = os.environ | {"CLIPGS_CONFIG": config.model_dump_json()}
    job = ["--mode", "subprocess", "--target-jobs", "label:shard=00000", "--allowed-rules", "label", "--force"]
    done = subprocess.run(
        workspace.command("-n", *job, "--nolock", "--cores", "1"),
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "laion2b_typo" not in done.stderr


def read_only(folder, *command):
    """Runs commands with a folder that nobody can write, root neither."""
    script = f'mount -t tmpfs none "{folder}" && mount -o remount,ro "{folder}" && exec "$@"'
    unshare = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    return subprocess.run(unshare, cwd=folder.parent, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="no mounts of one's own",
)
def test_a_folder_that_cannot_be_written_is_noted_in_a_dry_run_and_refused_in_a_run(workspace, tmp_path, checkout):
    for name in ("config.yaml", "meshes"):
        (tmp_path / name).symlink_to(workspace.folder / name)
    here = Workspace(tmp_path, checkout)
    here.output.mkdir()
    text = f"config: output = results: {here.output} cannot be written; choose a folder for `output` that you may write"
    done = read_only(here.output, *here.command("-n", "triplets"))
    assert (done.returncode, said(done)) == (0, [f"note: {text}"])
    done = read_only(here.output, *here.command("triplets", "--cores", "1"))
    assert (done.returncode, said(done)) == (2, [text])
    status = [sys.executable, "-m", "clipgs", "status", "--snakefile", str(checkout / "Snakefile")]
    assert read_only(here.output, *status).returncode == 0


def test_a_finished_output_needs_nothing_any_more(made, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = made.run("-n", "triplets", "--config", "device=cuda")
    assert (done.returncode, said(done)) == (0, [])
    assert "Nothing to be done" in done.stdout + done.stderr
    assert made.planned("--config", NO_FILE) == {"index": 1}  # the card counts the captions that a teacher cuts


def test_retry_where_nothing_is_made_makes_nothing(workspace):
    command = [sys.executable, "-m", "clipgs", "retry", "fit"]
    done = subprocess.run(command, cwd=workspace.folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "no object failed at fit\n")
    assert not workspace.output.exists()


@pytest.mark.parametrize("command", [["status"], ["verify"], ["plan"], ["retry", "fit"], ["search", "a chair"]])
def test_a_folder_without_a_workflow_is_said_to_be_one(tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-m", "clipgs", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "there is no config.yaml in this folder, and no run was started from it" in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_told_which_there_are(tmp_path):
    for name in ("base", "other"):
        (tmp_path / "results" / "runs" / name).mkdir(parents=True)
        (tmp_path / "results" / "runs" / name / "model.safetensors").touch()
    (tmp_path / "config.yaml").write_text("recipe: demo\n")
    command = [sys.executable, "-m", "clipgs", "search", "a chair", "--run", "runs/nope"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "there is no folder results/runs/nope (finished runs: results/runs/base, results/runs/other)" in done.stderr
    assert "Traceback" not in done.stderr
    # What else is missing is told before PyTorch is imported, too. The configured run is the default.
    triplets = tmp_path / "results" / "triplets"
    for arguments, words in (
        (["a chair"], f"{triplets} has no triplets"),
        (["gone.png"], "there is no picture gone.png"),
        (["a chair", "--picture", "found.jpg"], "found.jpg: it is written as PNG"),
        (["a chair", "--picture", "new/found.png"], f"there is no folder {tmp_path / 'new'}"),
    ):
        command = [sys.executable, "-X", "importtime", "-m", "clipgs", "search", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode in (1, 2)
        assert words in done.stderr
        assert " torch\n" not in done.stderr
    triplets.mkdir()
    (triplets / "00000.tar").touch()
    command = [sys.executable, "-m", "clipgs", "search", "a chair"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[0] == "search: loading PyTorch and the encoder in results/runs/base"


def test_what_to_type_next_names_folder_and_snakefile_where_the_run_needed_them(made, tmp_path, checkout):
    """A damaged file is found by a job, which names the command that makes it again."""
    workspace = made.copy(tmp_path / "damaged")
    tar = workspace.output / "splats" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    done = workspace.run("--forcerun", "render", "--cores", "1", "triplets")
    assert done.returncode == 1
    places = f"--snakefile {checkout / 'Snakefile'} --directory {workspace.folder}"
    assert f"snakemake --rerun-incomplete results/splats/00000.tar {places}" in done.stdout + done.stderr
    start = json.loads((workspace.output / "run.json").read_text())
    assert start["snakefile"] == str(checkout / "Snakefile")
