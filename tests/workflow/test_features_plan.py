"""Which features are made again after a change, and which are not."""

import json

import pytest
import yaml

from clipgs import config as configuration

from .conftest import SETTINGS

READY = {"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
TEACHER = {"teacher": {"name": "train", "small": {"steps": 2, "batch": 2}}}


@pytest.fixture(scope="module")
def embedded(made, tmp_path_factory):
    """A workspace with the features of three shards: the small teacher needs two training objects."""
    workspace = made.copy(tmp_path_factory.mktemp("embedded") / "workspace")
    workspace.add_objects(3)
    workspace.write_config(configuration.merge(SETTINGS, TEACHER))
    workspace.make("features")
    return workspace


def planned(workspace, tmp_path, **more):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(configuration.merge(TEACHER, more)))
    return workspace.planned("--configfile", str(overlay), target="features")


def test_again_does_nothing(embedded, tmp_path):
    assert planned(embedded, tmp_path) == {}
    about = json.loads((embedded.output / "teacher" / "teacher.json").read_text())
    assert about["shards"]


def test_other_captions_train_another_small_teacher(embedded, tmp_path):
    assert planned(embedded, tmp_path, caption={"max_characters": 20}) == {
        "caption": 3, "pack": 3, "teacher": 1, "embed_images": 3, "embed_texts": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "rules"),
    [
        ({"small": {"steps": 3}}, {"teacher": 1, "embed_images": 3, "embed_texts": 3}),
        ({"images": "meshes"}, {"embed_images": 3, "embed_texts": 3}),
        ({"precision": "bfloat16"}, {"embed_images": 3, "embed_texts": 3}),
        (READY, {"embed_images": 3, "embed_texts": 3}),
        ({"batch": 8}, {}),
        ({"pretrained": "not used with train"}, {"embed_images": 3, "embed_texts": 3}),
    ],
)
def test_a_changed_teacher(embedded, tmp_path, changed, rules):
    assert planned(embedded, tmp_path, teacher=changed) == rules


def test_other_renders_train_another_small_teacher(embedded, tmp_path):
    found = planned(embedded, tmp_path, render={"webp_quality": 80})
    assert found == {"render": 3, "pack": 3, "teacher": 1, "embed_images": 3, "embed_texts": 3}


def test_more_objects_train_no_other_teacher(embedded, tmp_path):
    workspace = embedded.copy(tmp_path / "more")
    workspace.add_objects(4)
    stages = ("freeze", "label", "fetch", "sample", "view", "fit", "render", "caption", "pack")
    assert planned(workspace, tmp_path) == dict.fromkeys((*stages, "embed_images", "embed_texts"), 1)


def test_a_file_of_weights_that_changed_encodes_again(embedded, tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"")
    found = planned(embedded, tmp_path, teacher={"name": "ViT-B-32", "pretrained": str(weights)})
    assert found == {"embed_images": 3, "embed_texts": 3}


def test_captions_that_the_teacher_chooses_need_pictures_and_their_features(embedded, tmp_path):
    found = planned(
        embedded,
        tmp_path,
        teacher=READY,
        caption={"captioner": "consensus"},
    )
    assert found == {"embed_images": 3, "caption": 3, "pack": 3, "embed_texts": 3}
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"teacher": READY, "caption": {"captioner": "coca"}}))
    assert embedded.planned("--configfile", str(overlay)) == {"caption": 3, "pack": 3, "index": 1}
    http = {"captioner": "http", "http": {"model": "vlm", "candidates": 1}}
    overlay.write_text(yaml.safe_dump({"caption": http}))  # without the teacher, which learns from captions
    assert embedded.planned("--configfile", str(overlay)) == {"caption": 3, "pack": 3, "index": 1}


def test_a_teacher_that_learns_from_the_captions_cannot_choose_them(embedded, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"caption": {"captioner": "consensus"}}))
    done = embedded.run("features", "-n", "--configfile", str(overlay))
    assert done.returncode == 2
    assert "teacher.name = train is trained on the captions themselves" in done.stderr


def test_triplets_need_no_teacher(embedded, tmp_path):
    workspace = embedded.copy(tmp_path / "triplets")
    (workspace.output / "teacher" / "open_clip_model.safetensors").unlink()
    assert workspace.planned() == {}
