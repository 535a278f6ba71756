import itertools
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from clipgs.evaluation import retrieval as module
from clipgs.evaluation.retrieval import nearest, ranks, retrieval


def unit(rng, *shape):
    values = rng.standard_normal(shape)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def by_hand(queries, gallery, relevant, k):
    """The definition, one query and one gallery row at a time: the mean over every order of the rows that tie."""
    hits, first = [], []
    for query, answers in zip(queries, relevant, strict=True):
        scores = [
            round(sum(a * b for a, b in zip(query, row, strict=True)) / (sum(a * a for a in query) ** 0.5)
                  / (sum(b * b for b in row) ** 0.5), 10)
            for row in gallery
        ]  # fmt: skip
        best = max(scores[row] for row in answers)
        above = sum(score > best for score in scores)
        tied = [row in answers for row, score in enumerate(scores) if score == best]
        places = [order.index(True) + 1 for order in set(itertools.permutations(tied))]
        hits.append(statistics.fmean(above + place <= k for place in places))
        first.append(above + statistics.fmean(places))
    return statistics.fmean(hits), statistics.median(first)


@pytest.mark.parametrize("kind", ["random", "rounded", "duplicates", "float32", "float16"])
def test_equals_a_double_loop_over_all_orders_of_the_ties(kind):
    rng = np.random.default_rng(3)
    for _ in range(4):
        gallery = rng.standard_normal((14, 6))
        if kind == "rounded":  # a few directions only: ties between different rows, of different lengths too
            gallery = np.sign(gallery) * rng.integers(1, 3, (14, 1))
            gallery[:, 3:] = 1
        if kind == "duplicates":
            gallery = gallery[rng.integers(0, 5, 14)]
        queries = gallery[rng.integers(0, 14, 9)] + 0.8 * rng.standard_normal((9, 6))
        if kind == "rounded":
            queries = np.sign(queries)
        if kind.startswith("float"):
            gallery, queries = gallery.astype(kind), queries.astype(kind)
        relevant = [sorted(rng.choice(14, rng.integers(1, 4), replace=False)) for _ in queries]
        found = retrieval(queries, gallery, relevant, ks=(1, 2, 5), resamples=2)
        for k in (1, 2, 5):
            hit, median = by_hand(queries.astype(float).tolist(), gallery.astype(float).tolist(), relevant, k)
            assert found[f"R@{k}"] == pytest.approx(hit, abs=1e-12)
            assert found["median_rank"] == pytest.approx(median, abs=1e-12)


def test_whole_numbers_are_scored_as_what_they_are():
    rng = np.random.default_rng(6)
    gallery, queries = rng.integers(-3, 4, (40, 5)), rng.integers(1, 4, (9, 5))
    relevant = [[i] for i in range(9)]
    as_floats = ranks(queries.astype(float), gallery.astype(float), relevant)
    assert all(map(np.array_equal, ranks(queries, gallery, relevant), as_floats))
    scores, rows = nearest(queries, torch.from_numpy(gallery), 3)
    again = nearest(queries.astype(float), gallery.astype(float), 3)
    assert np.array_equal(scores, again[0])
    assert np.array_equal(rows, again[1])
    assert scores.dtype == np.float64


def test_equals_scikit_learn_where_nothing_ties():
    rng = np.random.default_rng(0)
    gallery = unit(rng, 50, 16)
    queries = gallery + 0.3 * rng.standard_normal((50, 16))
    found = retrieval(queries, gallery, [[i] for i in range(50)], resamples=2)
    scores = queries @ gallery.T  # a query's length does not change its order
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(top_k_accuracy_score(range(50), scores, k=k))
    assert 0.1 < found["R@1"] < 1


def test_blocks_and_float32_change_nothing(monkeypatch):
    """Rows so close that float32 cannot tell them apart, over many blocks, against float64 in one piece."""
    rng = np.random.default_rng(1)
    centre = unit(rng, 1, 64)
    gallery = (centre + 3e-7 * rng.standard_normal((300, 64))).astype(np.float64)
    queries = centre + 3e-7 * rng.standard_normal((40, 64))
    relevant = [[int(i)] for i in rng.integers(0, 300, 40)]
    monkeypatch.setattr(module, "_GALLERY_ROWS", 37)
    monkeypatch.setattr(module, "_QUERY_ROWS", 11)
    monkeypatch.setattr(module, "_EXACT_BYTES", 64 * 8 * 50)
    found = ranks(queries, gallery, relevant)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(gallery, axis=1)
    scores = queries @ gallery.T / lengths
    best = np.array([scores[i, row] for i, (row,) in enumerate(relevant)])
    assert np.ptp(scores) < 1e-6
    apart = np.abs(scores - best[:, None])
    assert (found.better == ((scores > best[:, None]) & (apart > module.TIE)).sum(1)).all()
    assert (found.wrong + 1 == (apart <= module.TIE).sum(1)).all()


def test_rows_that_are_better_are_counted_over_all_blocks(monkeypatch):
    rng = np.random.default_rng(5)
    gallery, queries = unit(rng, 200, 8), unit(rng, 40, 8)
    relevant = [rng.choice(200, 3, replace=False).tolist() for _ in range(40)]
    monkeypatch.setattr(module, "_GALLERY_ROWS", 33)
    monkeypatch.setattr(module, "_QUERY_ROWS", 7)
    found, scores = ranks(queries, gallery, relevant), queries @ gallery.T
    best = np.array([row[answers].max() for row, answers in zip(scores, relevant, strict=True)])
    assert (found.better == (scores > best[:, None]).sum(1)).all()
    assert (found.wrong == 0).all()
    assert (found.right == 1).all()
    assert (found.relevant == 3).all()
    assert found.gallery == 200


@pytest.mark.parametrize("value", [1.0, 0.0, 0.1])
def test_a_constant_encoder_scores_exactly_chance(value):
    rng = np.random.default_rng(0)
    relevant = [rng.choice(120, rng.integers(1, 30), replace=False) for _ in range(77)]
    found = retrieval(np.full((77, 33), value, np.float32), unit(rng, 120, 33), relevant, resamples=2)
    flat = retrieval(unit(rng, 77, 33), np.full((120, 33), value, np.float32), relevant, resamples=2)
    chance = flat["chance"]
    assert {key: flat[key] for key in chance} == chance  # to the last bit
    by_formula = np.mean([len(rows) / 120 for rows in relevant])
    assert chance["R@1"] == pytest.approx(by_formula)
    assert found["chance"] == chance


def test_shuffled_pairs_score_chance_in_expectation():
    rng = np.random.default_rng(0)
    shapes = unit(rng, 60, 16)
    texts = shapes + 0.05 * rng.standard_normal((60, 16))
    captions = rng.integers(0, 45, 60)  # some captions stand for several objects
    relevant = [np.flatnonzero(captions == caption).tolist() for caption in captions]
    assert retrieval(texts, shapes, relevant, resamples=2)["R@1"] > 0.9
    drawn = {key: [] for key in ("R@1", "R@5", "R@10")}
    for _ in range(300):
        found = retrieval(texts[rng.permutation(60)], shapes, relevant, resamples=2)
        for key, values in drawn.items():
            values.append(found[key])
    for key, values in drawn.items():
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - found["chance"][key]) < 4 * error


def test_a_listed_duplicate_is_never_wrong():
    gallery = np.eye(4)[[0, 0, 0, 1]]
    query = np.eye(4)[[0]]
    assert retrieval(query, gallery, [[0, 1, 2]], resamples=2)["R@1"] == 1
    assert retrieval(query, gallery, [[0]], resamples=2)["R@1"] == pytest.approx(1 / 3)
    assert retrieval(query, gallery, [[3]], ks=(3, 4), resamples=2)["R@3"] == 0


def test_intervals_resample_groups_not_queries():
    rng = np.random.default_rng(0)
    gallery = np.eye(40)
    right = rng.random(40) < 0.5
    queries = np.where(right[:, None], gallery, np.roll(gallery, 1, axis=0))
    relevant = [[i] for i in range(40)]
    alone = retrieval(queries, gallery, relevant, seed=1)
    assert alone == retrieval(queries, gallery, relevant, seed=1)
    low, high = alone["interval"]["R@1"]
    expected = 1.96 * np.sqrt(alone["R@1"] * (1 - alone["R@1"]) / 40)
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    # Every query four times, in one group: no more is known than before.
    repeated = np.repeat(np.arange(40), 4)
    more = retrieval(queries[repeated], gallery, [relevant[i] for i in repeated], groups=repeated.astype(str), seed=1)
    assert more["R@1"] == alone["R@1"]
    wide = more["interval"]["R@1"]
    assert wide[1] - wide[0] == pytest.approx(high - low, rel=0.15)
    naive = retrieval(queries[repeated], gallery, [relevant[i] for i in repeated], seed=1)["interval"]["R@1"]
    assert naive[1] - naive[0] < 0.7 * (high - low)


def plain_interval(values, groups, resamples, seed, median):
    """The groups that are drawn, written out one after the other."""
    generator, count = np.random.default_rng(seed), groups.max() + 1
    drawn = []
    for _ in range(resamples):
        chosen = np.concatenate([values[groups == group] for group in generator.integers(0, count, count)])
        drawn.append(np.median(chosen) if median else np.mean(chosen))
    return np.percentile(drawn, (2.5, 97.5))


@pytest.mark.parametrize("median", [False, True])
def test_an_interval_is_that_of_groups_drawn_again(median):
    rng = np.random.default_rng(0)
    values, groups = rng.standard_normal(60), np.concatenate([np.arange(7), rng.integers(0, 7, 53)])
    found = module.interval(values, groups, resamples=40, seed=3, median=median)
    np.testing.assert_allclose(found, plain_interval(values, groups, 40, 3, median), atol=1e-12)
    assert module.interval(values, groups, median=median) == module.interval(
        values, groups, resamples=1000, seed=0, median=median
    )


def test_every_number_by_its_name():
    rng = np.random.default_rng(4)
    gallery, queries = unit(rng, 30, 5), unit(rng, 12, 5)
    relevant, names = [[i, i + 3] for i in range(12)], ["a", "c", "c", "b"] * 3
    of = np.array([0, 2, 2, 1] * 3)
    ranked = ranks(queries, gallery, relevant)
    hits = {f"R@{k}": ranked.hits(k) for k in (1, 4)}
    chance = ranked.chance()
    # So few resamples that their bounds are not those of the default number.
    bounds = {name: plain_interval(values, of, 4, 7, False) for name, values in hits.items()}
    bounds["median_rank"] = plain_interval(ranked.expected, of, 4, 7, True)
    found = retrieval(queries, gallery, relevant, groups=names, ks=(1, 4), resamples=4, seed=7)
    assert found.pop("interval") == {name: pytest.approx(list(values)) for name, values in bounds.items()}
    assert found == {
        **{name: pytest.approx(values.mean()) for name, values in hits.items()},
        "median_rank": np.median(ranked.expected),
        "chance": {
            **{f"R@{k}": pytest.approx(chance.hits(k).mean()) for k in (1, 4)},
            "median_rank": np.median(chance.expected),
        },
        "queries": 12,
        "gallery": 30,
        "groups": 3,
        "confidence": 0.95,
        "resamples": 4,
        "seed": 7,
    }
    assert retrieval(queries, gallery, relevant) == module.summarise(ranked, ks=(1, 5, 10), resamples=1000, seed=0)
    assert module.summarise(ranked) == module.summarise(ranked, seed=0)
    assert module.summarise(ranked) == module.summarise(ranked, groups=[f"{i:02d}" for i in range(12)])


def test_chance_of_chance_is_the_same():
    found = ranks(np.eye(4), np.eye(4), [[0], [1, 2], [2], [3]])
    once, again = found.chance(), found.chance().chance()
    assert all(np.array_equal(one, other) for one, other in zip(once, again, strict=True))
    assert once.gallery == 4


def test_what_a_flat_encoder_makes_near_is_settled_as_it_comes(monkeypatch):
    """All rows are as near: they are not held all at once."""
    best, most = module._best, []

    def spy(query, row, score, k):
        most.append(len(query))
        return best(query, row, score, k)

    monkeypatch.setattr(module, "_best", spy)
    monkeypatch.setattr(module, "_GALLERY_ROWS", 10)
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 100)
    scores, rows = nearest(np.ones((4, 3)), np.ones((400, 3)), 2)
    assert rows.tolist() == [[0, 1]] * 4
    np.testing.assert_allclose(scores, 1, atol=1e-12)
    assert max(most) <= 100 + 4 * 10  # of the 1,600 pairs


def test_most_of_a_spread_gallery_is_never_looked_at_twice(monkeypatch):
    """Only what float32 cannot tell from the k-th best is computed again."""
    exact, looked = module._exact, []

    def spy(queries, gallery, query, row):
        looked.append(len(query))
        return exact(queries, gallery, query, row)

    monkeypatch.setattr(module, "_exact", spy)
    rng = np.random.default_rng(0)
    nearest(unit(rng, 20, 16), unit(rng, 3000, 16), 5)
    assert sum(looked) <= 20 * 6
    looked.clear()
    ranks(unit(rng, 20, 16), unit(rng, 3000, 16), [[i] for i in range(20)])
    assert sum(looked) <= 20 * 3


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32])
def test_relevant_rows_may_be_whole_numbers_of_any_type(kind):
    rng = np.random.default_rng(7)
    gallery, queries = unit(rng, 30, 5), unit(rng, 6, 5)
    relevant = [[i, i + 9] for i in range(6)]
    found = ranks(queries, gallery, [np.array(rows, kind) for rows in relevant])
    assert all(map(np.array_equal, found, ranks(queries, gallery, relevant)))


def test_scores_exactly_as_far_apart_as_a_tie_may_be_are_equal(monkeypatch):
    monkeypatch.setattr(module, "TIE", 1.0)  # a difference that cosines have without rounding
    found = ranks(np.eye(3)[:1], np.eye(3)[[0, 1, 2]], [[0, 1]])
    assert (found.better, found.wrong, found.right) == (0, 1, 2)
    found = ranks(np.eye(3)[:1], np.eye(3)[[0, 1, 2]], [[1]])  # the first row scores 1, the right one 0
    assert (found.better, found.wrong, found.right) == (0, 2, 1)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_scores_are_exact_whatever_the_rows_are_kept_in(kind):
    rng = np.random.default_rng(8)
    gallery, queries = rng.standard_normal((50, 24)).astype(kind), rng.standard_normal((6, 24)).astype(kind)
    scores, rows = nearest(queries, gallery, 4)
    wide = nearest(queries.astype(float), gallery.astype(float), 4)
    assert np.array_equal(rows, wide[1])
    np.testing.assert_allclose(scores, wide[0], rtol=0, atol=1e-14)


def test_rows_of_floats_are_not_copied():
    for kind in (np.float16, np.float32, np.float64):
        rows = np.ones((4, 3), kind)
        assert np.shares_memory(module._rows(rows, "rows").numpy(), rows)


def test_float32_errs_within_the_bound():
    flat, steep = torch.full((1, 20000), 0.1), torch.full((1, 20000), 1e-3)
    steep[0, 0] = 1
    for rows in (flat, steep):
        ((_, _, score),) = module._scores(rows, rows)
        exact = module._exact(rows, rows, torch.tensor([0]), torch.tensor([0]))
        assert abs(score.double() - exact) <= module._float32_error(20000)


def test_weighted_median_is_that_of_repeated_values():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, weights = np.sort(rng.integers(0, 9, 7)).astype(float), rng.integers(0, 4, 7).astype(float)
        weights[rng.integers(7)] += 1
        assert module._weighted_median(values, weights) == np.median(np.repeat(values, weights.astype(int)))


@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
@pytest.mark.parametrize("k", [1, 4, 250])
def test_nearest_equals_a_sort(monkeypatch, kind, k):
    rng = np.random.default_rng(2)
    gallery, queries = rng.standard_normal((200, 12)), rng.standard_normal((30, 12))
    if kind == "ties":
        gallery = gallery[rng.integers(0, 40, 200)]
    if kind == "constant":
        gallery[:] = 1
    monkeypatch.setattr(module, "_GALLERY_ROWS", 33)
    monkeypatch.setattr(module, "_QUERY_ROWS", 7)
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 500)
    scores, rows = nearest(queries, torch.from_numpy(gallery), k)
    exact = queries @ gallery.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    order = np.argsort(-exact.round(9), axis=1, kind="stable")[:, :k]
    assert (rows == order).all()
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), atol=1e-12)


def test_lengths_whose_squares_float32_does_not_hold_change_nothing():
    rng = np.random.default_rng(3)
    queries, gallery = (rng.standard_normal((count, 16), np.float32) for count in (20, 60))
    scores, rows = nearest(queries, gallery, 5)
    for scale in (1e-30, 1e-12, 1e18, 1e30):
        some = np.where(np.arange(60) % 3 == 0, np.float32(scale), np.float32(1))[:, None]
        scaled_scores, scaled_rows = nearest(queries * np.float32(scale), gallery * some, 5)
        assert (scaled_rows == rows).all()
        np.testing.assert_allclose(scaled_scores, scores, atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "gallery", "relevant", "words"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), [[0], [0]], "queries have 3 dimensions and the gallery has 5"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0]], "there are 2 queries and 1 lists of relevant rows"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0], []], "every query needs at least one relevant row"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0], [4]], "a relevant row is outside the gallery of 4 rows"),
        (np.ones((2, 3)), np.ones((4, 3)), [[0], [-1]], "a relevant row is outside the gallery of 4 rows"),
        (np.ones((2, 3)), np.full((4, 3), np.nan), [[0], [1]], "an embedding holds a value that is not finite"),
        (np.ones(3), np.ones((4, 3)), [[0]], "queries must be [rows, dimensions], not [3]"),
        (np.ones((2, 3)), np.ones((0, 3)), [[0], [0]], "gallery must be [rows, dimensions], not [0, 3]"),
    ],
)
def test_what_cannot_be_scored_is_refused(queries, gallery, relevant, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text is compared)
        retrieval(queries, gallery, relevant)
    assert str(error.value) == words
    if queries.ndim != 2 or not len(gallery):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            nearest(queries, gallery, 1)
        assert str(error.value) == words
