"""When a run is trained again, and when it is left alone."""

import json

import numpy as np
import pytest
import yaml

from clipgs import config as configuration
from clipgs.core.bundles import read_table, write_tensors
from clipgs.core.files import check, sidecar

from .conftest import SETTINGS

TRAINING = {
    "encoder": {"size": "tiny", "gaussians": 64, "groups": 8, "group_size": 8, "refinement_width": 16},
    "training": {"epochs": 2, "batch": 2},
}


def write_features(workspace):
    """Stands in for a teacher: random features of every packed object that has none."""
    for table in (workspace.output / "triplets").glob("[0-9]*.parquet"):
        uids = sorted(row["uid"] for row in read_table(table) if row["status"] == "ok")
        about = {"uids": uids, "teacher": "t", "pretrained": "p", "weights_sha256": "0", "preprocess": "{}", "dim": "8"}
        about["tokenizer"] = "t"
        values = np.random.default_rng(0).normal(size=(len(uids), 6, 8)).astype(np.float16)
        folder = workspace.output / "features" / configuration.Teacher().slug
        arrays = {"images": {"images": values}}
        arrays["texts"] = {"texts": values[:, 0], "scores": values[..., 0].astype(np.float32)}
        for kind, found in arrays.items():
            file = folder / kind / f"{table.stem}.safetensors"
            if not file.exists():
                write_tensors(file, found, {**about, "images": "splats"})


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A workspace with a finished run of three shards: two objects to train on, and one to test."""
    workspace = made.copy(tmp_path_factory.mktemp("trained") / "workspace")
    workspace.write_config(configuration.merge(SETTINGS, TRAINING))
    workspace.add_objects(3)
    workspace.make()
    write_features(workspace)
    workspace.make(target="train")
    return workspace


def planned(workspace, tmp_path, target=None, **more):
    target = target or f"results/runs/{more.get('training', {}).get('run', 'base')}/model.safetensors"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(configuration.merge(TRAINING, more)))
    return workspace.planned("--configfile", str(overlay), target=target)


def test_a_run_is_made_once(trained, tmp_path):
    assert planned(trained, tmp_path) == {}
    for name in ("model.safetensors", "config.yaml", "README.md"):
        check(trained.output / "runs" / "base" / name)


@pytest.mark.parametrize(
    ("changed", "rules"),
    [
        ({"training": {"epochs": 3}}, {"train": 1}),
        ({"training": {"augmentation": {"shift": 0.2}}}, {"train": 1}),
        ({"encoder": {"orders": ["z"]}}, {"train": 1}),
        ({"training": {"run": "another"}}, {"train": 1}),
        ({"workers": {"checkpoint_steps": 7, "loaders": 1, "gpus": 2, "compile": False}}, {}),
        ({"device": "auto"}, {}),
    ],
)
def test_a_changed_setting(trained, tmp_path, changed, rules):
    assert planned(trained, tmp_path, **changed) == rules


def test_another_teacher_trains_another_model(trained, tmp_path, tiny):
    found = planned(trained, tmp_path, teacher={"name": f"local-dir:{tiny}"})
    assert found == {"embed_images": 3, "embed_texts": 3, "train": 1}


def test_appended_objects_leave_a_finished_run_alone_and_are_in_the_next(trained, tmp_path):
    workspace = trained.copy(tmp_path / "more")
    workspace.write_config(configuration.merge(SETTINGS, TRAINING))
    workspace.add_objects(4)
    assert planned(workspace, tmp_path) == {}
    assert planned(workspace, tmp_path, target="features")["embed_images"] == 1
    again = planned(workspace, tmp_path, training={"seed": 1})
    assert (again["train"], again["embed_images"]) == (1, 1)


def test_a_run_that_was_killed_goes_on_with_the_shards_it_began_with(trained, tmp_path):
    workspace = trained.copy(tmp_path / "killed")
    workspace.write_config(configuration.merge(SETTINGS, TRAINING))
    run = workspace.output / "runs" / "base"
    for name in ("model.safetensors", "config.yaml", "README.md"):
        (run / name).unlink()
        sidecar(run / name).unlink()
    workspace.add_objects(4)
    assert planned(workspace, tmp_path) == {"train": 1}
    workspace.make(target="train")
    log = (workspace.output / "logs" / "train" / "base.log").read_text()
    assert "all 2 steps of these inputs are done" in log
    assert json.loads((run / "inputs.json").read_text())["shards"] == ["00000", "00001", "00002"]


def test_changed_triplets_train_again(trained, tmp_path):
    found = planned(trained, tmp_path, caption={"max_characters": 20})
    assert found == {"caption": 3, "pack": 3, "embed_texts": 3, "train": 1}


def test_more_pictures_a_step_than_there_are_is_refused_before_any_job(made, tmp_path):
    workspace = made.copy(tmp_path / "many")
    workspace.write_config(configuration.merge(SETTINGS, TRAINING, {"training": {"views": 7}}))
    done = workspace.run("-n", "train")
    assert done.returncode == 2
    line = "clipgs: config: training.views = 7, but an object has 6 pictures (views.count); "
    assert line + "set training.views to 6 or less" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert planned(workspace, tmp_path, target="triplets", training={"views": 7}) == {}
