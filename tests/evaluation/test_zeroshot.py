import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from clipgs.core.errors import UsageError
from clipgs.evaluation.prompts import TEMPLATES, class_embeddings, listed_classes, templates
from clipgs.evaluation.zeroshot import zero_shot
from clipgs.triplets.captions import spoken


def data(rng, objects=200, classes=9, dim=16):
    names = [f"class {i}" for i in range(classes)]
    texts = rng.standard_normal((classes, dim))
    labels = rng.integers(0, classes - 1, objects)  # the last class has no object
    return texts[labels] + 2.5 * rng.standard_normal((objects, dim)), texts, labels, names


def test_equals_scikit_learn():
    shapes, texts, labels, names = data(np.random.default_rng(0))
    found = zero_shot(shapes, texts, labels, names, resamples=2)
    scores = shapes @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    for k in (1, 3, 5):
        assert found[f"top{k}"] == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=range(9)))
        by_class = [top_k_accuracy_score(labels[labels == c], scores[labels == c], k=k, labels=range(9))
                    for c in range(8)]  # fmt: skip
        assert found["by_class"][f"top{k}"] == pytest.approx(np.mean(by_class))
    assert (found["classes"], found["classes_with_objects"]) == (9, 8)
    matrix = confusion_matrix(labels, scores.argmax(1), labels=range(9))
    for pair in found["confusions"]:
        assert matrix[names.index(pair["class"]), names.index(pair["taken_for"])] == pair["objects"]
    assert sum(pair["objects"] for pair in found["confusions"]) == (labels != scores.argmax(1)).sum()
    assert found["per_class"]["class 0"]["objects"] == (labels == 0).sum()


def test_a_constant_encoder_scores_exactly_chance():
    _, _, labels, names = data(np.random.default_rng(1))
    found = zero_shot(np.ones((200, 16)), np.ones((9, 16)), labels, names, resamples=2)
    assert {key: found[key] for key in found["chance"]} == found["chance"]  # to the last bit
    for k in (1, 3, 5):
        assert found["chance"][f"top{k}"] == pytest.approx(k / 9)
        assert found["by_class"][f"top{k}"] == pytest.approx(k / 9)


def test_shuffled_labels_score_chance_in_expectation():
    rng = np.random.default_rng(2)
    shapes, texts, _, names = data(rng)
    drawn = [zero_shot(shapes, texts, rng.integers(0, 9, 200), names, resamples=2)["top3"] for _ in range(100)]
    assert abs(np.mean(drawn) - 1 / 3) < 4 * np.std(drawn) / 10


def test_the_embedding_of_a_class_is_the_mean_of_its_unit_prompts():
    said = []

    def encode(texts):
        said.extend(texts)
        return torch.tensor([[len(text), 1.0, text.count("a")] for text in texts])

    (found,) = class_embeddings(["mug"], ["{}", "a photo of a {}"], encode)
    assert said == ["mug", "a photo of a mug"]
    rows = np.array([[3, 1, 0], [16, 1, 2]])
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), rtol=1e-6)


def test_templates_of_a_user(tmp_path):
    assert templates(None) == TEMPLATES
    assert all(line.count("{}") == 1 for line in TEMPLATES)
    (tmp_path / "lines.txt").write_text("a point cloud of {}.\n\n{}\n")
    (tmp_path / "list.json").write_text(json.dumps(["a point cloud of {}.", "{}"]))
    assert templates(tmp_path / "lines.txt") == templates(tmp_path / "list.json") == ("a point cloud of {}.", "{}")


def test_a_byte_order_mark_is_no_part_of_a_prompt_or_a_class(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffa photo of a {}\r\n".encode())
    assert templates(file) == ("a photo of a {}",)
    file.write_bytes('\ufeff["a {}"]'.encode())
    assert templates(file) == ("a {}",)
    file.write_bytes("\ufeffairplane\r\n\r\nairplane\r\nmug".encode())
    assert listed_classes(file) == ["airplane", "mug"]


def test_a_wrong_prompt_is_named_with_its_line(tmp_path):
    (tmp_path / "t.txt").write_text("a {}\n\na thing\n")
    with pytest.raises(UsageError, match=r"t\.txt, line 3: each prompt needs one \{\} .* 'a thing' has 0"):
        templates(tmp_path / "t.txt")


@pytest.mark.parametrize("text", ["", "a mug\n", "{} {}\n", "[1", None])
def test_a_wrong_file_of_templates_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UsageError, match=r"evaluation\.templates") as error:
        templates(tmp_path / "t.txt")
    assert "\n" not in str(error.value)


def test_names_are_spoken():
    assert spoken("ice_(frozen_water)") == "ice (frozen water)"
    assert spoken("teddy_bear ") == "teddy bear"
