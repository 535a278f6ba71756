"""The difference between two rows of a table, and how sure it is over seeds, rounds and queries at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from clipgs.evaluation.retrieval import CONFIDENCE


def paired_difference(
    changes: np.ndarray,  # [S, Q] of each seed and query: one row's value minus the other's
    groups: Sequence[Any],  # [Q] queries of one group are no independent witnesses
    rounds: Sequence[Any] | None = None,  # [S] the round of each seed; None: all seeds are of one round
) -> dict[str, Any]:
    """The mean difference and its interval, for other seeds (or rounds) and other queries of the same kind.

    Seeds and groups of queries are crossed random effects. The variance of the mean is that of the analysis of
    variance, and the interval is Student's with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch,
    Variance Components, 1992). Resampling seeds instead would give too short intervals: with three seeds, means of
    resampled ones spread by a third less than means of other seeds. Seeds of several rounds are first averaged in
    their round, because they share its teacher and its fits.

    Returns `mean`, `interval` (two bounds), `confidence`, `over` (what the interval speaks for) and `by_seed` [S]. With
    a single seed the interval is over queries alone, and `over` says so. A single group of queries has none (None).

    Raises:
        ValueError: the rounds have different numbers of seeds.
    """
    changes = np.asarray(changes, float)
    seeds, of_group = changes, np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
    unit = "seeds"
    if rounds is not None and len(set(rounds)) > 1:
        names, sizes = np.unique(np.asarray(rounds), return_counts=True)
        if len(set(sizes.tolist())) > 1:
            raise ValueError(f"each round must have the same number of seeds, not {sizes.tolist()}")
        seeds = np.stack([changes[np.asarray(rounds) == name].mean(axis=0) for name in names])
        unit = "rounds"
    count = int(of_group.max()) + 1
    mean, interval = float(seeds.mean()), None
    if count > 1:
        # A group counts by its queries: these sums have the mean 0, and are a group's own mean where all are of a size.
        away = np.stack([np.bincount(of_group, row - mean, minlength=count) for row in seeds]) * count / seeds.shape[1]
        half = _half_width(away)
        interval = [mean - half, mean + half]
    return {
        "mean": mean,
        "interval": interval,
        "confidence": CONFIDENCE,
        "over": f"{unit} and queries" if len(seeds) > 1 else "queries alone: one seed says nothing of another",
        "by_seed": changes.mean(axis=1).tolist(),
    }


def _half_width(
    away: np.ndarray,  # [S, G] of mean 0
) -> float:
    """Half the interval of the mean of crossed effects."""
    S, G = away.shape
    of_seed, of_group = away.mean(axis=1), away.mean(axis=0)
    groups = S * (of_group**2).sum() / (G - 1)
    if S == 1:
        return float(student.ppf((1 + CONFIDENCE) / 2, G - 1) * np.sqrt(groups / G))
    seeds = G * (of_seed**2).sum() / (S - 1)
    rest = ((away - of_seed[:, None] - of_group) ** 2).sum() / ((S - 1) * (G - 1))
    squares = np.array([seeds, groups, rest])
    total = max(seeds + groups - rest, groups, seeds)
    if total == 0:
        return 0.0
    freedom = total**2 / (squares**2 / [S - 1, G - 1, (S - 1) * (G - 1)]).sum()
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(total / (S * G)))
