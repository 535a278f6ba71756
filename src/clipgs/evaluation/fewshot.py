"""Few-shot classification: n-way m-shot episodes, and a linear classifier on frozen embeddings.

An episode is drawn as the point-cloud literature draws it (Point-BERT's benchmark): n classes, m objects of each to
learn from out of the training split, 20 of each to be asked about out of the test split, ten folds. Where a split has
fewer, a class is asked about with what there is; `strict` leaves such classes out.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipgs.core.errors import ClipgsError
from clipgs.core.seeds import seed_of

QUERIES = 20  # a class
FOLDS = 10


class Episode(NamedTuple):
    """Rows of the objects to learn from and to be asked about, and the seed that drew them."""

    classes: tuple[str, ...]
    support: np.ndarray  # [n m]
    support_labels: np.ndarray  # [n m] in 0 .. n - 1
    queries: np.ndarray  # [q]
    query_labels: np.ndarray  # [q]
    seed: int


Predict = Callable[[Episode], np.ndarray]  # [q] labels of its queries


def episodes(
    support: Sequence[tuple[int, str, str]],  # row, class, group of each object that may be learnt from
    queries: Sequence[tuple[int, str, str]],  # of each that may be asked about; may be the same objects
    ways: int,
    shots: int,
    *,
    folds: int = FOLDS,
    queries_a_class: int = QUERIES,
    strict: bool = False,
    seed: int = 0,
) -> tuple[list[Episode], list[str]]:
    """Draws the episodes; also returns the eligible classes.

    Classes are shuffled and the first n taken; of each class m objects are learnt from and up to `queries_a_class`
    others are asked about. Where both come from the same objects, one object of each of m groups is learnt from and the
    other groups are asked about, so that no colour variant of a known shape is asked. A class is eligible with m
    objects (then: groups) to learn from and one (strict: `queries_a_class`) left to ask about.

    Raises:
        ClipgsError: fewer than n classes are eligible; it says how many are.
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
    for fold in range(folds):
        fold_seed = seed_of(seed, "fewshot", f"{ways}-way {shots}-shot", str(fold))
        generator = np.random.default_rng(fold_seed)
        classes = [eligible[i] for i in generator.permutation(len(eligible))[:ways]]
        rows: dict[str, list[int]] = {"support": [], "support_labels": [], "queries": [], "query_labels": []}
        for label, name in enumerate(classes):
            order = [learn[name][i] for i in generator.permutation(len(learn[name]))]
            chosen = list({group: (row, group) for row, group in order}.values()) if mixed else order
            chosen = chosen[:shots]
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
    found: dict[str, list[tuple[int, str]]] = {}
    for row, name, group in sorted(objects):
        found.setdefault(name, []).append((row, group))
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
    """scikit-learn's logistic regression at its default strength, each feature standardised; fitted.

    CLIP's own linear probe (Radford et al. 2021, appendix A.3).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed % 2**32))
    return model.fit(support, labels)


def logistic(
    embeddings: np.ndarray,  # [n, D] of all objects
) -> Predict:
    """The classifier that is a linear probe on frozen unit embeddings."""
    unit = unit_rows(embeddings)

    def predict(episode: Episode) -> np.ndarray:
        return probe(unit[episode.support], episode.support_labels, episode.seed).predict(unit[episode.queries])

    return predict


def few_shot(
    drawn: Sequence[Episode], eligible: Sequence[str], predict: Predict, done: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Mean and deviation (population, as the literature's) of the top-1 accuracy over the episodes.

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
