"""Which jobs ask for a GPU, where there is one, none, and several."""

import re

import pytest

from .conftest import SETTINGS, Workspace


@pytest.fixture
def workspace(tmp_path, checkout) -> Workspace:
    workspace = Workspace(tmp_path, checkout)
    workspace.write_config(SETTINGS | {"device": "auto", "teacher": {"name": "train"}})
    workspace.add_objects(2)
    return workspace


def asked(workspace: Workspace, *arguments: str) -> dict[str, int]:
    """Rule to the GPUs that each of its jobs asks for."""
    done = workspace.run("-n", "-p", "train", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    jobs = re.findall(r"^(?:local)?rule (\w+):$.*?^    resources: (.*?)$", done.stdout + done.stderr, re.M | re.S)
    return {rule: int(found[1]) if (found := re.search(r"\bgpu=(\d+)", text)) else 0 for rule, text in jobs}


@pytest.mark.parametrize(("visible", "one", "all_of_them"), [("", 0, 0), ("3", 1, 1), ("0,1", 1, 2)])
def test_a_fit_asks_for_one_and_training_for_all(workspace, monkeypatch, visible, one, all_of_them):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    jobs = asked(workspace, "--cores", "8")
    assert {jobs[rule] for rule in ("fit", "teacher", "embed_images", "embed_texts")} == {one}
    assert jobs["train"] == all_of_them
    assert {jobs[rule] for rule in ("fetch", "sample", "view", "caption", "pack")} == {0}
    assert jobs["render"] == 0  # it shares one


def test_the_users_own_number_stands_and_so_does_the_cpu(workspace, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert asked(workspace, "--resources", "gpu=1", "--config", "device=cpu")["fit"] == 0
    jobs = asked(workspace, "--resources", "gpu=1")
    assert (jobs["fit"], jobs["train"]) == (1, 1)


def test_the_rows_of_an_ablation_run_side_by_side_each_with_a_gpu_and_its_share_of_the_cores(workspace, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    done = workspace.run("-n", "-p", "ablations", "--cores", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    text = done.stdout + done.stderr
    jobs = re.findall(r"^rule (ablation_(?:start|train|evaluate)):$(.*?resources: [^\n]*)", text, re.M | re.S)
    assert len(jobs) == 3 + 4 * 3 + 5 * 3  # seeds; rows without the one that is as it is; rows
    for _, job in jobs:
        assert re.search(r"\bgpu=1\b", job)
        assert "threads: " not in job  # one of two cores


def test_a_cluster_is_asked_for_gpus_that_the_login_node_has_not(workspace, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cluster = ("--workflow-profile", "none", "--executor", "slurm", "--jobs", "10")  # without `cores`, as our profile
    jobs = asked(workspace, *cluster, "--config", "device=cuda")
    assert {jobs[rule] for rule in ("fit", "render", "teacher", "embed_images", "train")} == {1}
