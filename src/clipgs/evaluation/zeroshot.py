"""Zero-shot classification: an object gets the class with the nearest text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clipgs.evaluation.retrieval import CONFIDENCE, RESAMPLES, interval, nearest, ranks

KS = (1, 3, 5)
CONFUSIONS = 100  # pairs of classes in a table, the most frequent


def zero_shot(
    shapes: np.ndarray,  # [n, D]
    classes: np.ndarray,  # [C, D]
    labels: Sequence[int],  # [n], rows of classes
    names: Sequence[str],  # [C]
    *,
    groups: Sequence[str] | None = None,  # [n]
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Top-k accuracy over objects and over classes. Classes of equal score share, as in `retrieval`.

    `by_class` is the mean of the classes' own accuracies, over the classes that have objects. Chance is k / C.
    `interval` belongs to the accuracy over objects and resamples groups.

    Returns a dict: `top1` and so on, `by_class`, `chance` and `interval` with the same keys, `objects`, `classes`,
    `classes_with_objects`, `groups`, `confidence`, `resamples`, `seed`, `per_class` (name to objects and top1) and
    `confusions` (class, taken_for, objects).
    """
    true = np.asarray(labels, np.int64)
    found = ranks(shapes, classes, true[:, None].tolist())
    hits = {f"top{k}": found.hits(k) for k in KS}
    present, of = np.unique(true, return_inverse=True)
    sizes = np.bincount(of)
    numbers: dict[str, Any] = {name: float(values.mean()) for name, values in hits.items()}
    numbers["by_class"] = {name: float((np.bincount(of, values) / sizes).mean()) for name, values in hits.items()}
    numbers["chance"] = {f"top{k}": float(found.chance().hits(k).mean()) for k in KS}
    grouped = np.unique(groups if groups is not None else np.arange(len(true)), return_inverse=True)[1].reshape(-1)
    numbers["interval"] = {
        name: interval(values, grouped, resamples=resamples, seed=seed) for name, values in hits.items()
    }
    numbers |= {"objects": len(true), "classes": len(classes), "classes_with_objects": len(present)}
    numbers |= {"groups": int(grouped.max()) + 1, "confidence": CONFIDENCE, "resamples": resamples, "seed": seed}
    first = np.bincount(of, hits["top1"]) / sizes
    numbers["per_class"] = {
        names[row]: {"objects": int(size), "top1": float(value)}
        for row, size, value in zip(present, sizes, first, strict=True)
    }
    numbers["confusions"] = confusions(true, nearest(shapes, classes, 1)[1][:, 0], names)
    return numbers


def confusions(labels: np.ndarray, taken_for: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent errors: a class, the class that its objects were taken for, and the number of objects."""
    wrong = labels != taken_for
    pairs, counts = np.unique(np.stack([labels[wrong], taken_for[wrong]]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], pairs[0], -counts))[:CONFUSIONS]
    return [{"class": names[pairs[0, i]], "taken_for": names[pairs[1, i]], "objects": int(counts[i])} for i in order]
