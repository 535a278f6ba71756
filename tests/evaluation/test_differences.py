import numpy as np
import pytest

from clipgs.evaluation.differences import paired_difference

EFFECT = 0.02


def made_up(generator, effect, seeds=3, rounds=1, of_round=0.0, of_seed=0.01, queries=400, a_group=2):
    """Differences [S, Q] as rows of an ablation have them: of each query, of each seed and of each round."""
    groups = np.arange(queries) // a_group
    of_rounds = np.repeat(np.arange(rounds), seeds)
    units = generator.normal(0, of_round, rounds)[of_rounds] + generator.normal(0, of_seed, rounds * seeds)
    of_group = generator.normal(0, 0.2, groups.max() + 1)[groups]
    return effect + units[:, None] + of_group + generator.normal(0, 0.4, (rounds * seeds, queries)), groups, of_rounds


@pytest.mark.parametrize("effect", [0.0, EFFECT])
@pytest.mark.parametrize(
    "world",
    [{}, {"of_seed": 0.03}, {"seeds": 5, "a_group": 1}, {"rounds": 3, "of_round": 0.015}, {"seeds": 1, "of_seed": 0.0}],
    ids=str,
)
def test_95_percent_intervals_hold_the_truth_19_times_in_20(effect, world):
    generator, held = np.random.default_rng(0), 0
    for _ in range(1000):
        low, high = paired_difference(*made_up(generator, effect, **world))["interval"]
        held += low <= effect <= high
    assert 930 <= held <= 970


def test_queries_alone_would_be_too_sure():
    """As it was: seeds were averaged, and queries alone resampled."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(400):
        changes, groups, _ = made_up(generator, EFFECT, of_seed=0.03)
        low, high = paired_difference(changes.mean(axis=0, keepdims=True), groups)["interval"]
        held += low <= EFFECT <= high
    assert held < 360


def test_a_large_effect_is_seen_and_none_is_not():
    generator = np.random.default_rng(2)
    seen = [paired_difference(*made_up(generator, 0.1, seeds=5))["interval"][0] > 0 for _ in range(100)]
    assert sum(seen) > 95


def test_a_group_counts_by_its_queries():
    changes = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    found = paired_difference(changes, ["a", "a", "a", "b"])
    assert found["mean"] == 0.75
    assert found["by_seed"] == [0.75, 0.75]
    assert found["over"] == "seeds and queries"


def test_what_cannot_be_said_is_not():
    assert paired_difference(np.ones((2, 3)), ["one"] * 3)["interval"] is None
    assert "one seed" in paired_difference(np.ones((1, 3)), [0, 1, 2])["over"]
    assert paired_difference(np.ones((2, 3)), [0, 1, 2])["interval"] == [1, 1]
    with pytest.raises(ValueError, match="same number of seeds"):
        paired_difference(np.ones((3, 4)), range(4), [0, 0, 1])
