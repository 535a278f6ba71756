"""Few-shot classification: n-way m-shot episodes, and a linear classifier on frozen embeddings.

Episodes follow the point-cloud literature (Point-BERT's benchmark): n classes, m support objects per class from the
training split, 20 query objects per class from the test split, ten folds. A class may have fewer queries; `strict`
leaves such classes out.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipgs.core.errors import ClipgsError
from clipgs.core.seeds import seed_of

QUERIES = 20  # a class
FOLDS = 10


class Episode(NamedTuple):
    """Rows of the support and query objects, and the seed that drew them."""

    classes: tuple[str, ...]
    support: np.ndarray  # [n m]
    support_labels: np.ndarray  # [n m] in 0 .. n - 1
    queries: np.ndarray  # [q]
    query_labels: np.ndarray  # [q]
    seed: int


Predict = Callable[[Episode], np.ndarray]  # [q] labels of its queries


def episodes(
    support: Sequence[tuple[int, str, str]],  # row, class and group of each possible support object
    queries: Sequence[tuple[int, str, str]],  # the same of each possible query object; may be the same objects
    ways: int,
    shots: int,
    *,
    queries_a_class: int = QUERIES,
    strict: bool = False,
    seed: int = 0,
) -> tuple[list[Episode], list[str]]:
    """Draws `FOLDS` episodes; also returns the eligible classes.

    An episode has n random classes (`ways`), and of each class m support objects (`shots`) and up to `queries_a_class`
    query objects. If both come from the same objects, the support is one object of each of m groups and the queries are
    of other groups, so that no query is a colour variant of a support object. A class is eligible if it has m support
    objects (groups, in that case) and one query object, or `queries_a_class` with `strict`.

    Raises:
        ClipgsError: fewer than n classes are eligible; the text says how many are.
    """
    learn, ask = _by_class(support), _by_class(queries)
    mixed = not {group for _, _, group in support}.isdisjoint(group for _, _, group in queries)
    least = queries_a_class if strict else 1

    def enough(name: str) -> bool:
        groups = {group for _, group in learn[name]}
        if mixed:
            return len(groups) >= shots + least
        return len(learn[name]) >= shots and len(ask[name]) >= least

    eligible = [name for name in sorted(learn.keys() & ask.keys()) if enough(name)]
    if len(eligible) < ways:
        raise ClipgsError(
            f"{ways}-way {shots}-shot needs {ways} classes with {shots} objects to learn from and {least} more to ask "
            f"about; there are {len(eligible)}"
        )
    drawn = []
    for fold in range(FOLDS):
        fold_seed = seed_of(seed, "fewshot", f"{ways}-way {shots}-shot", str(fold))
        generator = np.random.default_rng(fold_seed)
        classes = [eligible[i] for i in generator.permutation(len(eligible))[:ways]]
        rows: dict[str, list[int]] = {"support": [], "support_labels": [], "queries": [], "query_labels": []}
        for label, name in enumerate(classes):
            order = [learn[name][i] for i in generator.permutation(len(learn[name]))]
            chosen = (list({group: (row, group) for row, group in order}.values()) if mixed else order)[:shots]
            used = {group for _, group in chosen} if mixed else set()
            left = [row for row, group in ask[name] if group not in used]
            asked = [left[i] for i in generator.permutation(len(left))[:queries_a_class]]
            rows["support"] += [row for row, _ in chosen]
            rows["support_labels"] += [label] * shots
            rows["queries"] += asked
            rows["query_labels"] += [label] * len(asked)
        arrays = {key: np.array(values, np.int64) for key, values in rows.items()}
        drawn.append(Episode(tuple(classes), seed=fold_seed, **arrays))
    return drawn, eligible


def _by_class(objects: Sequence[tuple[int, str, str]]) -> dict[str, list[tuple[int, str]]]:
    found = defaultdict(list)
    for row, name, group in sorted(objects):
        found[name].append((row, group))
    return found


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """[n, D] float64 of unit length."""
    rows = np.asarray(embeddings, np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)


def probe(
    support: np.ndarray,  # [n m, D]
    labels: np.ndarray,  # [n m]
    seed: int,
) -> Any:
    """A fitted logistic regression of scikit-learn at its default strength, on standardised features.

    CLIP's linear probe (Radford et al. 2021, appendix A.3).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed % 2**32))
    return model.fit(support, labels)


def logistic(
    embeddings: np.ndarray,  # [n, D] of all objects
) -> Predict:
    """Classifies by a linear probe on frozen unit embeddings."""
    unit = unit_rows(embeddings)

    def predict(episode: Episode) -> np.ndarray:
        return probe(unit[episode.support], episode.support_labels, episode.seed).predict(unit[episode.queries])

    return predict


def few_shot(
    drawn: Sequence[Episode], eligible: Sequence[str], predict: Predict, done: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Mean and standard deviation (of the population, as in the literature) of the top-1 accuracy over the episodes.

    Args:
        done: called after each episode.

    Returns a dict: `mean`, `std`, `accuracies` and `seeds` by fold, `ways`, `shots`, `chance` (1 / n),
    `queries_a_class` (fewest, most), `eligible_classes`, `folds`.
    """
    accuracies = []
    for one in drawn:
        accuracies.append(float((predict(one) == one.query_labels).mean()))
        done()
    ways = len(drawn[0].classes)
    asked = np.concatenate([np.bincount(one.query_labels, minlength=ways) for one in drawn])
    return {
        "ways": ways,
        "shots": len(drawn[0].support) // ways,
        "folds": len(drawn),
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies)),
        "chance": 1 / ways,
        "accuracies": accuracies,
        "seeds": [one.seed for one in drawn],
        "queries_a_class": [int(asked.min()), int(asked.max())],
        "eligible_classes": len(eligible),
    }
