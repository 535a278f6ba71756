import numpy as np
import pytest
import torch

from clipgs.core.errors import ClipgsError
from clipgs.evaluation.fewshot import episodes, few_shot, logistic, probe, unit_rows
from clipgs.evaluation.finetune import _linear


def objects(sizes, first=0, groups=None):
    listed, row = [], first
    for name, size in sizes.items():
        for i in range(size):
            listed.append((row, name, f"{name} {i // groups}" if groups else f"row {row}"))
            row += 1
    return listed


def test_episodes_are_drawn_from_train_and_asked_from_test():
    train, test = objects({"a": 12, "b": 10, "c": 9, "d": 30}), objects({"a": 40, "b": 3, "c": 50, "d": 0, "e": 9}, 100)
    drawn, eligible = episodes(train, test, ways=2, shots=10, seed=3)
    assert eligible == ["a", "b"]  # c has too few to learn from, d none to ask about, e none to learn from
    assert len(drawn) == 10
    name_of = {row: name for row, name, _ in train + test}
    for one in drawn:
        assert len(set(one.support)) == 20
        assert {int(row) for row in one.support} <= {row for row, _, _ in train}
        assert {int(row) for row in one.queries} <= {row for row, _, _ in test}
        assert [name_of[row] for row in one.support] == [one.classes[label] for label in one.support_labels]
        assert [name_of[row] for row in one.queries] == [one.classes[label] for label in one.query_labels]
        assert sorted(np.bincount(one.query_labels)) == [3, 20]
    assert len({one.seed for one in drawn}) == 10
    again, _ = episodes(train, test, ways=2, shots=10, seed=3)
    assert all((a.support == b.support).all() and (a.queries == b.queries).all()
               for a, b in zip(drawn, again, strict=True))  # fmt: skip
    assert [one.seed for one in episodes(train, test, ways=2, shots=10, seed=4)[0]] != [one.seed for one in drawn]


def test_strict_leaves_out_classes_with_fewer_queries():
    train, test = objects({"a": 12, "b": 10, "c": 10}), objects({"a": 40, "b": 19, "c": 20}, 100)
    drawn, eligible = episodes(train, test, ways=2, shots=5, strict=True)
    assert eligible == ["a", "c"]
    assert all((np.bincount(one.query_labels) == 20).all() for one in drawn)


def test_one_split_for_both_never_asks_about_a_group_it_learnt():
    test = objects({"a": 30, "b": 24, "c": 15}, groups=3)
    drawn, eligible = episodes(test, test, ways=2, shots=5)
    assert eligible == ["a", "b"]  # c has five groups, and none left to ask about
    group_of = {row: group for row, _, group in test}
    for one in drawn:
        learnt = [group_of[row] for row in one.support]
        assert len(set(learnt)) == len(learnt)
        assert set(learnt).isdisjoint(group_of[row] for row in one.queries)
        assert len(one.queries)


def test_too_few_classes_is_said():
    with pytest.raises(ClipgsError, match=r"3-way 5-shot needs 3 classes .* there are 2"):
        episodes(objects({"a": 5, "b": 9}), objects({"a": 1, "b": 1}, 100), ways=3, shots=5)


def test_accuracy_is_that_of_the_classifier():
    """Classes that are points are learnt; noise is chance; and mean and deviation are those of the folds."""
    rng = np.random.default_rng(0)
    sizes = {name: 30 for name in "abcdef"}
    listed = objects(sizes)
    drawn, eligible = episodes(listed, listed, ways=5, shots=5)
    centres = {name: rng.standard_normal(32) for name in sizes}
    clear = np.array([centres[name] + 0.1 * rng.standard_normal(32) for _, name, _ in listed])
    assert few_shot(drawn, eligible, logistic(clear))["mean"] == 1
    noise = few_shot(drawn, eligible, logistic(rng.standard_normal((180, 32))))
    assert noise["mean"] == pytest.approx(0.2, abs=0.06)
    assert noise["mean"] == pytest.approx(np.mean(noise["accuracies"]))
    assert noise["std"] == pytest.approx(np.std(noise["accuracies"]))
    assert (noise["chance"], noise["ways"], noise["shots"], noise["folds"]) == (0.2, 5, 5, 10)
    assert noise["queries_a_class"] == [20, 20]
    assert noise["eligible_classes"] == 6


@pytest.mark.parametrize("ways", [2, 5])
def test_fine_tuning_starts_from_the_probe(ways):
    """One layer on unit embeddings says what scikit-learn's pipeline says, standardised features and all."""
    rng = np.random.default_rng(ways)
    labels = np.arange(6 * ways) % ways
    support = unit_rows(rng.standard_normal((ways, 16))[labels] + 0.5 * rng.standard_normal((6 * ways, 16)))
    fitted = probe(support, labels, seed=0)
    queries = unit_rows(rng.standard_normal((40, 16)))
    logits = _linear(fitted)(torch.from_numpy(queries).float())
    np.testing.assert_allclose(logits.softmax(dim=1).detach(), fitted.predict_proba(queries), atol=1e-5)
