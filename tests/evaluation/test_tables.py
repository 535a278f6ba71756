import json

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from clipgs import config as configuration
from clipgs.core.errors import ClipgsError
from clipgs.evaluation.embeddings import Embeddings
from clipgs.evaluation.fewshot import logistic
from clipgs.evaluation.gallery import gallery
from clipgs.evaluation.tables import Pictures, few_shot_table, retrieval_table, split_rows, zero_shot_table

NAMES = ["mug", "chair", "boat"]


def unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def settings(**keys):
    return configuration.check({"evaluation": {"resamples": 20, **keys}}).evaluation


@pytest.fixture
def world():
    """60 objects whose embeddings lie near those of their captions; some captions describe several."""
    rng = np.random.default_rng(0)
    rows = [
        {"uid": f"u{i:02d}", "group": f"g{i // 2}", "split": ("test", "train")[i % 2], "caption": f"thing {i % 40}",
         "category": NAMES[i % 3], "sha256": f"{i:064x}"}
        for i in range(60)
    ]  # fmt: skip
    centres = {f"thing {i}": rng.standard_normal(24) for i in range(40)}
    texts = unit(np.array([centres[row["caption"]] for row in rows]))
    shapes = unit(texts + 0.15 * rng.standard_normal((60, 24)))
    views = unit(texts[:, None] + 0.3 * rng.standard_normal((60, 6, 24)))
    return rows, shapes, texts, views


def test_retrieval_has_a_row_for_each_direction(world):
    rows, shapes, texts, views = world
    made = gallery(rows, settings(split="all"), 6)
    shown = Pictures("splats", views[range(60), made.views], unit(views.mean(1)), 6)
    table = retrieval_table(made, shapes, texts, [shown], settings(split="all"))
    by_name = {(row["task"], row["from"]): row for row in table["rows"]}
    assert [task for task, _ in by_name] == [
        "text to 3D", "3D to text", "image to 3D", "3D to image", "image to 3D", "3D to image", "text to image",
        "image to text",
    ]  # fmt: skip
    text = by_name["text to 3D", "captions"]
    assert (text["queries"], text["gallery"], text["groups"]) == (60, 60, 30)
    right = [max(np.argsort(-(texts[i] @ shapes.T)).tolist().index(j) < 1
                 for j in range(60) if rows[j]["caption"] == rows[i]["caption"]) for i in range(60)]  # fmt: skip
    assert text["R@1"] == pytest.approx(np.mean(right))
    assert text["chance"]["R@1"] == pytest.approx((40 * 2 + 20) / 60 / 60)
    back = by_name["3D to text", "splats"]
    assert (back["queries"], back["gallery"]) == (60, 40)
    labels = [int(row["caption"].split()[1]) for row in rows]
    assert back["R@5"] == pytest.approx(top_k_accuracy_score(labels, shapes @ texts[:40].T, k=5, labels=range(40)))
    mean = by_name["image to 3D", "mean of 6 pictures of the splats"]
    assert mean["R@1"] > by_name["image to 3D", "one picture of the splats"]["R@1"]
    assert mean["R@1"] == pytest.approx(top_k_accuracy_score(range(60), unit(views.mean(1)) @ shapes.T, k=1))
    json.dumps(table)
    for row in table["rows"]:
        for key in ("R@1", "R@5", "R@10", "median_rank"):
            low, high = row["interval"][key]
            assert low <= row[key] <= high
            assert key in row["chance"]
    assert table["gallery"] == made.about()


def test_examples_show_the_nearest(world):
    rows, shapes, texts, views = world
    made = gallery(rows, settings(split="all"), 6)
    shown = Pictures("splats", views[:, 0], views[:, 0], 6)
    table = retrieval_table(made, shapes, texts, [shown], settings(split="all", examples=4))
    assert [example["task"] for example in table["examples"]] == ["text to 3D"] * 4 + ["image to 3D"] * 4
    first = table["examples"][0]
    order = np.argsort(-(texts[0] @ shapes.T))[:5]
    assert [near["uid"] for near in first["nearest"]] == [f"u{i:02d}" for i in order]
    assert [near["right"] for near in first["nearest"]] == [rows[i]["caption"] == "thing 0" for i in order]
    assert table["examples"][4]["view"] == made.views[0]
    assert retrieval_table(made, shapes, texts, [], settings(split="all", examples=0))["examples"] == []


def test_a_teacher_that_knows_its_training_captions_by_heart_is_seen(world):
    rows, shapes, texts, _ = world
    rows = [{**row, "split": "train" if int(row["group"][1:]) < 20 else "test"} for row in rows]
    trained = np.array([row["split"] == "train" for row in rows])
    means = np.where(trained[:, None], texts, np.roll(texts, 7, axis=0))  # the teacher is right on train alone
    shown = Pictures("splats", means, means, 6)
    known = Embeddings([row["uid"] for row in rows], shapes, {})
    found = split_rows(rows, texts, shown, known, settings())
    assert [(row["split"], row["from"].split(",")[0]) for row in found] == [
        (split, what) for split in ("train", "test") for what in ("the run", "the teacher itself")
    ]
    assert [row["queries"] for row in found] == [int(trained.sum())] * 2 + [int((~trained).sum())] * 2
    by_heart, unseen = found[1]["R@1"], found[3]["R@1"]
    assert by_heart > 0.9
    assert unseen < 0.3
    test = [i for i in range(60) if not trained[i]]
    own = gallery([rows[i] for i in test], settings(), 6)
    expected = retrieval_table(own, shapes[test], texts[test], [], settings())["rows"][0]
    assert found[2]["R@1"] == expected["R@1"]
    few = Embeddings(known.uids[:1], shapes[:1], {})
    assert split_rows(rows, texts, shown, few, settings()) == []


def test_zero_shot_asks_about_the_objects_of_the_classes(world):
    rows, shapes, _, _ = world
    for row in rows[:5]:
        row["category"] = "nothing"
    rows[6]["category"] = None
    made = gallery(rows, settings(split="all"), 6)
    classes = unit(np.random.default_rng(1).standard_normal((4, 24)))
    table = zero_shot_table(made, {"splats": shapes}, classes, [*NAMES, "plane"], settings(), templates=["{}"])
    (row,) = table["rows"]
    assert (row["objects"], row["classes"], row["classes_with_objects"]) == (54, 4, 3)
    kept = [i for i in range(60) if rows[i]["category"] in NAMES]
    labels = [NAMES.index(rows[i]["category"]) for i in kept]
    assert row["top1"] == pytest.approx(top_k_accuracy_score(labels, shapes[kept] @ classes.T, k=1, labels=range(4)))
    assert table["templates"] == ["{}"]
    with pytest.raises(ClipgsError, match=r"evaluation\.classes"):
        zero_shot_table(made, {"splats": shapes}, classes, ["a", "b", "c", "d"], settings())


def test_few_shot_takes_support_from_train_and_says_what_is_missing(world):
    rows, shapes, _, _ = world
    cells = settings(few_shot=["2-way 5-shot", "5-way 5-shot"])
    table = few_shot_table(rows, {"probe": logistic(shapes)}, cells)
    (row,) = table["rows"]
    assert (row["ways"], row["shots"], row["eligible_classes"]) == (2, 5, 3)
    assert [(gap["ways"], gap["shots"]) for gap in table["missing"]] == [(5, 5)]
    assert table["drawn_from"]["objects"] == 60
    other = few_shot_table([{**row, "sha256": "0"} for row in rows], {}, cells)
    assert other["drawn_from"]["sha256"] != table["drawn_from"]["sha256"]
    same = settings(few_shot=["2-way 5-shot"], few_shot_support="same")
    same = few_shot_table(rows, {"probe": logistic(shapes)}, same)
    assert same["rows"][0]["queries_a_class"] == [5, 5]  # ten groups of each class in the test split
