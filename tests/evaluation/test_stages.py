"""The stages on runs that are really trained, as small as they can be, with a teacher that only knows its features."""

import io
import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import clipgs
from clipgs import config as configuration
from clipgs.core.bundles import TarWriter, read_table, write_arrays, write_table
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.encoder.transformer import SIZES
from clipgs.evaluation import stages
from clipgs.evaluation.embeddings import read_embeddings, run_folder
from clipgs.evaluation.inputs import lvis_shapes
from clipgs.evaluation.rows import chosen, of_row, of_start, points_output
from clipgs.evaluation.stages import baselines, embed_shapes, evaluate
from clipgs.report.search import search
from clipgs.splats.gaussians import Gaussians
from clipgs.stages import from_settings, runtime_settings, stage_settings
from clipgs.training.stages import train
from tests.training.small_dataset import DIM, KINDS, PICTURES, PREPARED, SHAPE, make, settings, splat, unit

SPLITS = ("train", "train", "train", "train", "validation", "test", "test", "test")
CENTRES = unit(KINDS, DIM, seed=0)


class FakeTeacher:
    """Knows a kind by the number in a text, and in the first pixel of a picture."""

    weights_sha256 = 64 * "0"
    device = torch.device("cpu")

    @property
    def about(self):
        return {"weights_sha256": self.weights_sha256, "preprocess": PREPARED, "tokenizer": "numbers"}

    def cut(self, texts):
        return []

    def encode_texts(self, texts):
        return torch.stack([CENTRES[next(int(word) for word in text.split() if word.isdigit())] for text in texts])

    def encode_images(self, images):
        return CENTRES[torch.as_tensor(images)[:, 0, 0, 0].long() % KINDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that is trained, embedded and evaluated. Nothing may be written into it: see `copied`."""
    with pytest.MonkeyPatch.context() as patch:
        fake(patch)
        config = settings(
            tmp_path_factory.mktemp("evaluation"),
            training={"epochs": 2, "batch": 8, "views": 2},
            evaluation={
                "resamples": 20,
                "few_shot": ["2-way 2-shot", "9-way 2-shot"],
                "few_shot_epochs": 2,
                "examples": 2,
                "zeroed": ["position", "color", "rotation"],
            },
            views={"count": PICTURES},
            ablations={"rows": ["uni3d", "position-color", "all-attributes"], "seeds": [0, 1]},
        )
        make(config, objects=16, splits=SPLITS)
        train(config)
        embed_shapes(config)
        evaluate(config)
        yield config


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of it, to be written to."""
    return copy(trained, tmp_path)


def copy(config, folder):
    shutil.copytree(config.output_path, folder / "results", symlinks=True)
    return config.model_copy(update={"output": str(folder / "results")})


@pytest.fixture(scope="module")
def ablated(trained, tmp_path_factory):
    """A copy with a table of ablations."""
    config = copy(trained, tmp_path_factory.mktemp("ablated"))
    write_clouds(config)
    for shard in ("00000", "00001"):
        stages.ablation_points(config, shard, 1)
    for seed in config.ablations.seeds:
        stages.ablation_start(as_the_rule_gives_it(config, of_start(config, seed), "ablation-start"), seed, 1)
    for row, seed in itertools.product(chosen(config), config.ablations.seeds):
        own = of_row(config, row, seed)
        if row != "uni3d":  # as it is
            stages.ablation_train(as_the_rule_gives_it(config, own, "ablation-train"), row, seed, 1)
        stages.ablation_evaluate(as_the_rule_gives_it(config, own, "ablation-evaluate"), row, seed, 1)
    stages.ablations(config)
    return config


def as_the_rule_gives_it(config, own, stage):
    return from_settings(stage_settings(own, stage), runtime_settings(config))


def fake(patch):
    for name in ("model", "pretrained"):
        patch.setattr(f"clipgs.encoder.{name}.SIZES", {**SIZES, "tiny": SHAPE})
    patch.setattr("clipgs.teacher.model.load", lambda config: FakeTeacher())


def read(config, name):
    return json.loads((run_folder(config) / f"{name}.json").read_text())


def test_every_packed_object_is_embedded_by_uid(trained):
    found = read_embeddings(run_folder(trained) / "embeddings.safetensors")
    rows = read_table(trained.output_path / "triplets" / "index.parquet", ["uid"])
    assert found.uids == sorted(row["uid"] for row in rows)
    encoder = clipgs.load(trained.output_path / "runs" / "base", "cpu")
    from clipgs.triplets import TripletDataset

    dataset = TripletDataset(trained.output_path / "triplets")
    uid = str(dataset.uids[3])
    alone = encoder.encode(Gaussians.from_ply(dataset.members(3)[f"{uid}.ply"], uid))
    np.testing.assert_allclose(found.of([uid]), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.shapes, axis=1), 1, atol=1e-5)
    with pytest.raises(ClipgsError, match="embed them again"):
        found.of(["nobody"])


def test_the_tables_are_of_the_test_split_and_say_how_they_came(trained):
    gallery, retrieval, zero, few = (read(trained, name) for name in ("gallery", "retrieval", "zeroshot", "fewshot"))
    rows = read_table(trained.output_path / "triplets" / "index.parquet", ["uid", "split"])
    assert [row["uid"] for row in gallery["objects"]] == sorted(r["uid"] for r in rows if r["split"] == "test")
    for table in (retrieval, zero):
        assert table["gallery"]["sha256"] == gallery["sha256"]
    assert few["drawn_from"]["objects"] == len(rows)  # episodes learn from the training split, not from the gallery
    for table in (retrieval, zero, few):
        assert table["weights_sha256"] == 64 * "0"
        assert table["protocol"]
        assert "seed" in table
    assert {row["task"] for row in retrieval["rows"]} == {
        "text to 3D", "3D to text", "image to 3D", "3D to image", "text to image", "image to text",
    }  # fmt: skip
    assert zero["rows"][0]["objects"] == 12
    assert zero["class_names"] == [f"kind {i}" for i in range(KINDS)]
    assert [row["from"].split(",")[0] for row in zero["rows"]] == ["splats", "the teacher itself"]
    # The features lie round the centre of their kind: the teacher itself is never wrong.
    assert zero["rows"][1]["top1"] == 1
    assert [(row["ways"], row["shots"], row["classifier"].split()[0]) for row in few["rows"]] == [
        (2, 2, "logistic"),
        (2, 2, "fine-tuning"),
    ]
    assert few["rows"][0]["seeds"] == few["rows"][1]["seeds"]
    assert "there are 3" in few["missing"][0]["reason"]


def test_what_an_attribute_is_worth(trained):
    """The encoder of this world tells kinds by colour and shape; a random rotation says nothing."""
    table = read(trained, "retrieval")
    found = {(row["zeroed"], row["task"]): row for row in table["zeroed"]}
    assert set(found) == set(itertools.product(["position", "color", "rotation"], ["text to 3D", "image to 3D"]))
    whole = {row["task"]: row["R@1"] for row in table["rows"] if "mean" not in row["from"]}
    for (_, task), row in found.items():
        assert row["R@1"] - whole[task] == pytest.approx(row["difference"]["mean"])
        assert row["difference"]["interval"][0] <= row["difference"]["mean"] <= row["difference"]["interval"][1]
    encoder = clipgs.load(trained.output_path / "runs" / "base", "cpu")
    one = splat(1, 5)
    before = encoder.encode(one)
    with encoder.model.tokenizer.without("color"):
        grey = encoder.encode(one)
        assert not torch.equal(grey, before)
        assert torch.equal(grey, encoder.encode(replace(one, colors=torch.rand_like(one.colors))))
    assert torch.equal(encoder.encode(one), before)


def test_the_same_bytes_again(copied):
    files = {file: file.read_bytes() for file in run_folder(copied).iterdir()}
    for file in files:
        file.unlink()
    embed_shapes(copied)
    evaluate(copied)
    assert files == {file: file.read_bytes() for file in run_folder(copied).iterdir()}


def test_the_settings_of_the_workflow_are_enough(trained):
    """A command gets its stage's settings and the runtime ones: what it reads must be in them."""
    runtime = runtime_settings(trained)
    for stage in ("embed-shapes", "evaluate", "baselines", "ablations"):
        told = from_settings(stage_settings(trained, stage), runtime)
        assert told.training.run == trained.training.run
        assert (stage == "embed-shapes") or told.evaluation == trained.evaluation
    assert told.ablations == trained.ablations
    assert told.encoder == trained.encoder
    assert told.training == trained.training


def test_pictures_of_the_meshes_are_asked_with_where_they_are_kept(copied):
    """The first pixel of a picture tells the teacher the kind: as queries they find no better than a kind."""
    before = read(copied, "retrieval")["rows"]
    assert not [row for row in before if "meshes" in row["from"]]
    rows = read_table(copied.output_path / "triplets" / "index.parquet", ["uid", "shard", "category"])
    tars = [copied.output_path / "views" / f"{shard}.tar" for shard in ("00000", "00001")]
    for tar in tars:
        with TarWriter(tar) as out:
            for row in sorted((row for row in rows if row["shard"] == tar.stem), key=lambda row: row["uid"]):
                picture = io.BytesIO()
                Image.new("RGB", (4, 4), (int(row["category"].split()[1]), 0, 0)).save(picture, "PNG")
                for view in range(PICTURES):
                    out.add(f"{row['uid']}/{view:03d}.png", picture.getvalue())
    evaluate(copied)
    after = read(copied, "retrieval")["rows"]
    of_meshes = {(row["task"], row["from"].split()[0]) for row in after if "meshes" in row["from"]}
    assert of_meshes == {
        ("image to 3D", "one"), ("image to 3D", "mean"), ("3D to image", "one"), ("3D to image", "mean"),
        ("text to image", "the"), ("image to text", "the"), ("image to image", "one"),
    }  # fmt: skip
    (by_teacher, _) = (row for row in after if row["task"] == "image to image")
    assert (
        by_teacher["from"]
        == f"one picture of the splats, to the teacher itself, mean of {PICTURES} pictures of the meshes"
    )
    assert [row for row in after if "meshes" not in row["from"]] == before
    assert read(copied, "zeroshot")["rows"][2]["top1"] == 1


def test_every_table_says_whether_lvis_shapes_were_trained_on():
    def told(**catalog):
        return lvis_shapes(configuration.check({"catalog": catalog}))

    assert told(source="objaverse") == {"lvis_shapes": "never trained on"}
    assert told(source="objaverse_xl", objaverse={"lvis": "train"}) == {"lvis_shapes": "may be trained on"}
    assert told(source="procedural") == {}


def classed(config, tmp_path, text):
    """The table with the user's classes."""
    (tmp_path / "classes.txt").write_text(text)
    settings = config.evaluation.model_copy(update={"classes": str(tmp_path / "classes.txt"), "few_shot": []})
    evaluate(config.model_copy(update={"evaluation": settings}))
    return read(config, "zeroshot")


def test_the_users_classes_are_found_in_other_spellings(copied, tmp_path):
    names = [f"kind {i}" for i in range(KINDS)]
    plain = classed(copied, tmp_path, "\n".join(names))
    assert "note" not in plain
    spelt = classed(copied, tmp_path, "\ufeff" + "\r\n".join(name.upper().replace(" ", "_") for name in names))
    assert spelt["class_names"][0] == "KIND_0"
    assert [row["top1"] for row in spelt["rows"]] == [row["top1"] for row in plain["rows"]]
    assert [row["objects"] for row in spelt["rows"]] == [row["objects"] for row in plain["rows"]] == [12, 12]


def test_classes_that_fit_in_part_are_noted_and_those_that_fit_nothing_refused(copied, tmp_path):
    partly = classed(copied, tmp_path, "kind 1\nkind 2\nkindd 3\n")
    assert partly["note"] == "1 of 3 classes are no category of the dataset: kindd 3; did you mean kind 3?"
    assert partly["rows"][0]["classes_with_objects"] == 2
    with pytest.raises(
        UsageError, match=r"names no category of the dataset: chair 1, lamp 2; its categories are kind 0"
    ):
        classed(copied, tmp_path, "chair 1\nlamp 2\n")


def test_a_gallery_without_the_classes_is_not_said_to_have_none(copied, tmp_path):
    """Every object has a category; that of the class is only in the training split."""
    index = copied.output_path / "triplets" / "index.parquet"
    rows = read_table(index)
    for row in rows:
        if row["split"] == "train" and row["category"] == "kind 0":
            row["category"] = "kind 0 only seen"
    import pyarrow.parquet as pq

    write_table(index, rows, pq.read_schema(index).remove_metadata())
    table = classed(copied, tmp_path, "kind 0 only seen\n")
    assert table["rows"] == []
    assert table["missing"] == "no object of the gallery (12) has one of the 1 classes"


def test_another_teacher_is_refused(trained, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(FakeTeacher, "weights_sha256", 64 * "1")
        with pytest.raises(ClipgsError, match="set `teacher` to the run's"):
            evaluate(trained)
    other = {"weights_sha256": FakeTeacher.weights_sha256, "preprocess": "{mean: [0, 0, 0]}"}
    monkeypatch.setattr(FakeTeacher, "about", other)
    with pytest.raises(ClipgsError, match=r"set teacher\.preprocess to the run's"):
        evaluate(trained)
    monkeypatch.setattr(FakeTeacher, "about", {**other, "preprocess": PREPARED, "tokenizer": f"{64 * '1'}, 9 tokens"})
    with pytest.raises(ClipgsError, match=r"the tokenizer numbers, and .* has 1{12}, 9 tokens; set teacher\.tokenizer"):
        evaluate(trained)


@pytest.mark.parametrize("kept", [True, False])
def test_search_finds_the_nearest_by_text_and_by_picture(trained, tmp_path, monkeypatch, caplog, kept):
    caplog.set_level("INFO")
    run = trained.output_path / "runs" / "base"
    file = run_folder(trained) / "embeddings.safetensors"
    known = read_embeddings(file)
    if not kept:
        monkeypatch.setattr("clipgs.report.search._known", lambda *_: None)
    monkeypatch.setattr("clipgs.report.search._shown", lambda *_: np.zeros((8, 8, 3), np.uint8))
    found = search("kind 2", run, k=3, picture=tmp_path / "found.png", device="cpu")
    assert "search: loading small, which reads the query" in caplog.messages
    assert ("search: encoding 32 splats" in caplog.text) != kept
    cosines = known.shapes @ CENTRES[2].numpy()
    order = np.argsort(-cosines)[:3]
    assert [one.uid for one in found] == [known.uids[i] for i in order]
    np.testing.assert_allclose([one.score for one in found], cosines[order], atol=1e-5)
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.width > 400
    Image.new("RGB", (5, 9), (2, 0, 0)).save(tmp_path / "query.png")
    monkeypatch.setattr("clipgs.report.search.square", lambda image: torch.from_numpy(image.copy())[None])
    again = search(str(tmp_path / "query.png"), run, k=3, device="cpu")
    assert [one.uid for one in again] == [one.uid for one in found]


def test_a_query_that_is_no_picture_is_one_line(trained, tmp_path):
    (tmp_path / "query.png").write_text("no picture")
    with pytest.raises(UsageError, match="cannot be read as a picture"):
        search(str(tmp_path / "query.png"), trained.output_path / "runs" / "base")
    with pytest.raises(UsageError, match="empty"):
        search(" ", trained.output_path / "runs" / "base")


def test_baselines_without_files_are_empty_rows(copied):
    baselines(copied)
    table = json.loads((copied.output_path / "evaluation" / "baselines.json").read_text())
    assert table["rows"][0]["ours"]
    assert table["rows"][0]["text_to_3d"] == read(copied, "retrieval")["rows"][0]["R@1"]
    empty = table["rows"][1:10]
    assert [row["model"] for row in empty] == ["Uni3D"] * 3 + ["OpenShape-PointBERT"] * 3 + ["ULIP-2"] * 3
    assert all(row["source"].startswith("no checkpoint: evaluation.baselines.") for row in empty)
    assert not any(isinstance(value, float) for row in empty for value in row.values())


def test_ablations_are_told_in_pairs(ablated):
    table = json.loads((ablated.output_path / "evaluation" / "ablations.json").read_text())
    first, second, third = table["rows"]
    assert "in its place the same point encoder" in first["note"]
    assert "difference" not in first
    for row, before in ((second, first), (third, second)):
        change = row["difference"]
        name = "3D to text R@1, %"
        assert change["mean"] == pytest.approx(row["metrics"][name]["mean"] - before["metrics"][name]["mean"])
        assert change["interval"][0] <= change["mean"] <= change["interval"][1]
        assert len(row["metrics"][name]["values"]) == len(row["seeds"]) == 2
    assert len(list((points_output(ablated) / "runs").iterdir())) == 2


def write_clouds(config):
    """Points of every object, as `sample` leaves them."""
    rng = np.random.default_rng(0)
    for shard in ("00000", "00001"):
        rows = read_table(config.output_path / "triplets" / f"{shard}.parquet", ["uid"])
        arrays = {
            f"{row['uid']}/{name}": rng.random((300, 3), dtype=np.float32)
            for row in rows
            for name in ("xyz", "rgb", "normals")
        }
        write_arrays(config.output_path / "points" / f"{shard}.npz", arrays.items())
