"""Exact retrieval: ranks in which ties share and duplicates are never wrong, and the nearest rows of a gallery.

A score is the cosine of two rows in float64; two scores within `TIE` are equal. Most scores are computed in float32, in
blocks. Scores within float32's error of the decisive score are computed again in float64. So no rank depends on the
rounding of a BLAS or on the place of a row in its block.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

TIE = 1e-9  # cosines this close are equal: far above float64's rounding, far below the resolution of float32 features
KS = (1, 5, 10)
CONFIDENCE = 0.95
RESAMPLES = 1000
_GALLERY_ROWS, _QUERY_ROWS = 8192, 1024  # per block: 34 MB of scores
_EXACT_BYTES = 64_000_000  # of rows in float64 at a time
_MAX_CANDIDATES = 4_000_000
_SQUARES = (1e-10, 1e15)  # lengths whose squares fit into float32


class Ranks(NamedTuple):
    """The ranks of the best relevant rows of Q queries."""

    better: np.ndarray  # [Q] irrelevant rows with a higher score
    wrong: np.ndarray  # [Q] irrelevant rows with the same score
    right: np.ndarray  # [Q] relevant rows with the same score
    relevant: np.ndarray  # [Q] relevant rows in all
    gallery: int

    @property
    def expected(self) -> np.ndarray:
        """[Q] the mean rank, from 1, of the first relevant row over all orders of the rows that tie."""
        return self.better + (self.wrong + self.right + 1) / (self.right + 1)

    def hits(self, k: int) -> np.ndarray:
        """[Q] the share of all orders of the rows that tie in which a relevant row is among the first k."""
        return _hits(self.better, self.wrong, self.right, k)

    def chance(self) -> "Ranks":
        """The ranks of an encoder that gives every row the same score."""
        none = np.zeros_like(self.relevant)
        return Ranks(none, self.gallery - self.relevant, self.relevant, self.relevant, self.gallery)


def _hits(better: np.ndarray, wrong: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    """1 - C(wrong, m) / C(wrong + right, m), where m = k - better is the number of places left for rows that tie."""
    miss = np.ones(len(better))
    for place in range(k):
        left = np.clip(wrong - place, 0, None) / np.maximum(wrong + right - place, 1)
        miss *= np.where(place < k - better, left, 1.0)
    return 1 - miss


def retrieval(
    queries: Any,  # [Q, D], array or tensor
    gallery: Any,  # [N, D]
    relevant: Sequence[Sequence[int]],  # [Q] rows of the gallery that answer the query
    *,
    groups: Sequence[str] | None = None,  # [Q] queries of one group are resampled together; default: each alone
    ks: Sequence[int] = KS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """R@k and the median rank of the first relevant row, with chance and bootstrap intervals.

    Any relevant row is a right answer, so duplicates among the relevant rows are never wrong. Rows of equal score
    share: a value is the mean over all their orders. So a constant encoder scores exactly chance.

    Returns a dict: `R@1` and so on as fractions, `median_rank` (of the expected ranks, from 1), `chance` and `interval`
    with the same keys (95 %, percentiles over resampled groups of queries), `queries`, `gallery`, `groups`,
    `confidence`, `resamples`, `seed`.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a query has no relevant row. A row of zeros is no
            error: its cosines are 0.
    """
    found = ranks(queries, gallery, relevant)
    return summarise(found, groups=groups, ks=ks, resamples=resamples, seed=seed)


def summarise(
    found: Ranks,
    *,
    groups: Sequence[str] | None = None,
    ks: Sequence[int] = KS,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of `retrieval` from ranks."""
    values = {f"R@{k}": found.hits(k) for k in ks}
    chance = found.chance()
    numbers: dict[str, Any] = {name: float(value.mean()) for name, value in values.items()}
    numbers["median_rank"] = float(np.median(found.expected))
    numbers["chance"] = {f"R@{k}": float(chance.hits(k).mean()) for k in ks}
    numbers["chance"]["median_rank"] = float(np.median(chance.expected))
    of = np.unique(groups if groups is not None else np.arange(len(found.better)), return_inverse=True)[1].reshape(-1)
    numbers["interval"] = {
        name: interval(value, of, resamples=resamples, seed=seed) for name, value in values.items()
    } | {"median_rank": interval(found.expected, of, resamples=resamples, seed=seed, median=True)}
    numbers |= {"queries": len(found.better), "gallery": found.gallery, "groups": int(of.max()) + 1}
    numbers |= {"confidence": CONFIDENCE, "resamples": resamples, "seed": seed}
    return numbers


def interval(
    values: np.ndarray,  # [Q]
    groups: np.ndarray,  # [Q] int, from 0 without gaps
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    median: bool = False,
) -> list[float]:
    """Bounds of the mean (or median) of `values` over resampled groups, drawn with replacement."""
    generator = np.random.default_rng(seed)
    count = int(groups.max()) + 1
    order = np.argsort(values, kind="stable")
    sums, sizes = np.bincount(groups, values), np.bincount(groups).astype(float)
    drawn = np.empty(resamples)
    for i in range(resamples):
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype(float)
        if median:
            drawn[i] = _weighted_median(values[order], weights[groups][order])
        else:
            drawn[i] = weights @ sums / (weights @ sizes)
    tail = 50 * (1 - CONFIDENCE)
    return [float(bound) for bound in np.percentile(drawn, (tail, 100 - tail))]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The median of sorted `values`, each repeated `weights` times (whole numbers)."""
    ends = np.cumsum(weights)
    lower, upper = np.searchsorted(ends, [(ends[-1] + 1) // 2, ends[-1] // 2 + 1])
    return float(values[lower] + values[upper]) / 2


def ranks(
    queries: Any,  # [Q, D]
    gallery: Any,  # [N, D]
    relevant: Sequence[Sequence[int]],  # [Q]
) -> Ranks:
    """The rank of each query's best relevant row among all rows of the gallery; see `retrieval`."""
    queries, gallery = _rows(queries, "queries"), _rows(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and the gallery has {gallery.shape[1]}")
    if len(relevant) != len(queries):
        raise ValueError(f"there are {len(queries)} queries and {len(relevant)} lists of relevant rows")
    lists = [np.unique(np.asarray(rows, np.int64)) for rows in relevant]
    counts = np.array([len(rows) for rows in lists], np.int64)
    if not len(lists) or counts.min() == 0:
        raise ValueError("every query needs at least one relevant row")
    answers = torch.from_numpy(np.concatenate(lists))
    if int(answers.min()) < 0 or int(answers.max()) >= len(gallery):
        raise ValueError(f"a relevant row is outside the gallery of {len(gallery)} rows")
    asking = torch.from_numpy(np.repeat(np.arange(len(lists)), counts))
    known = asking * len(gallery) + answers  # sorted
    exact = _exact(queries, gallery, asking, answers)
    best = torch.full((len(queries),), -torch.inf, dtype=torch.float64).scatter_reduce_(0, asking, exact, "amax")
    right = torch.zeros(len(queries), dtype=torch.int64)
    right.index_add_(0, asking, (exact >= best[asking] - TIE).long())
    better, wrong = torch.zeros_like(right), torch.zeros_like(right)
    doubt = _float32_error(queries.shape[1]) + TIE
    for first_query, first_row, scores in _scores(queries, gallery):
        mine = slice(first_query, first_query + len(scores))
        high = scores > (best[mine] + doubt).float()[:, None]
        better[mine] += high.view(torch.uint8).sum(1, dtype=torch.int32)  # 13 times as fast as of booleans
        near = (scores >= (best[mine] - doubt).float()[:, None]).logical_xor_(high).nonzero()
        query, row = near[:, 0] + first_query, near[:, 1] + first_row
        irrelevant = ~torch.isin(query * len(gallery) + row, known, assume_unique=True)
        query, row = query[irrelevant], row[irrelevant]
        above = _exact(queries, gallery, query, row) - best[query]
        better.index_add_(0, query, (above > TIE).long())
        wrong.index_add_(0, query, (above.abs() <= TIE).long())
    return Ranks(better.numpy(), wrong.numpy(), right.numpy(), counts, len(gallery))


def nearest(
    queries: Any,  # [Q, D]
    gallery: Any,  # [N, D]
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of the gallery with the highest cosines to each query, exactly; the first ones of equal cosine.

    Returns scores [Q, k] float64, falling, and rows [Q, k] int64; k is at most the gallery's size.
    """
    queries, gallery = _rows(queries, "queries"), _rows(gallery, "gallery")
    k = min(k, len(gallery))
    doubt = 2 * _float32_error(queries.shape[1]) + TIE
    bar = torch.full((len(queries),), -torch.inf)  # the k-th best score of each query so far
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    held = 0
    for first_query, first_row, scores in _scores(queries, gallery):
        mine = slice(first_query, first_query + len(scores))
        if first_row == 0 and scores.shape[1] >= k:
            bar[mine] = scores.topk(k, dim=1).values[:, -1]
        near = (scores >= (bar[mine] - doubt)[:, None]).nonzero()
        kept.append((near[:, 0] + first_query, near[:, 1] + first_row, scores[near[:, 0], near[:, 1]].double()))
        held += len(near)
        if held > _MAX_CANDIDATES:  # of a flat encoder: keep only the nearest rows so far
            query, row = (torch.cat(parts) for parts in list(zip(*kept, strict=True))[:2])
            kept = [_best(query, row, _exact(queries, gallery, query, row), k)]
            held = len(kept[0][0])
    query, row, score = (torch.cat(parts) for parts in zip(*kept, strict=True))
    _, _, rough = _best(query, row, score, k)
    bars = rough.view(len(queries), k)[:, -1] - doubt
    candidates = score >= bars[query]
    query, row = query[candidates], row[candidates]
    _, row, score = _best(query, row, _exact(queries, gallery, query, row), k)
    return score.view(-1, k).numpy(), row.view(-1, k).numpy()


def _best(
    query: torch.Tensor, row: torch.Tensor, score: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k pairs with the highest scores of each query, in falling order; rows of equal score in their own order."""
    # Differences from rounding alone must not decide the order.
    order = np.lexsort((row.numpy(), -np.round(score.numpy() / TIE), query.numpy()))
    ordered = query.numpy()[order]
    starts = np.searchsorted(ordered, ordered)
    chosen = torch.from_numpy(order[np.arange(len(order)) - starts < k])
    return query[chosen], row[chosen], score[chosen]


def _rows(values: Any, what: str) -> torch.Tensor:
    """[N, D] floats on the CPU, without a copy if possible."""
    tensor = torch.as_tensor(values).detach().cpu()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{what} must be [rows, dimensions], not {list(tensor.shape)}")
    return tensor if tensor.is_floating_point() else tensor.double()


def _unit(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The rows at unit length; rows of zeros stay zero. Lengths are float32 if `dtype` is and their squares fit."""
    precision = torch.promote_types(rows.dtype, dtype)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=precision).double()
    odd = ~((lengths > _SQUARES[0]) & (lengths < _SQUARES[1]))[:, 0]
    lengths[odd] = torch.linalg.vector_norm(rows[odd], dim=1, keepdim=True, dtype=torch.float64)
    if not bool(lengths.isfinite().all()):
        raise ValueError("an embedding holds a value that is not finite")
    scale = torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
    return rows.to(dtype) * scale.to(dtype)


def _float32_error(dim: int) -> float:
    """The largest difference between the float32 cosine of unit rows of `dim` numbers and the float64 cosine.

    Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, eq. 3.5, for any order of the sum. The length
    of each operand adds half as much from its sum, and four roundings of root, scale and product. The score that it is
    compared with adds one rounding.
    """
    return (2 * dim + 12) * 2.0**-24


def _exact(
    queries: torch.Tensor,  # [Q, D]
    gallery: torch.Tensor,  # [N, D]
    query: torch.Tensor,  # [M] rows of queries
    row: torch.Tensor,  # [M] rows of gallery
) -> torch.Tensor:  # [M] float64
    step = max(1, _EXACT_BYTES // (8 * queries.shape[1]))
    parts = [torch.empty(0, dtype=torch.float64)]
    for i in range(0, len(query), step):
        left, right = (_unit(rows[of[i : i + step]], torch.float64) for rows, of in ((queries, query), (gallery, row)))
        parts.append((left * right).sum(1))
    return torch.cat(parts)


def _scores(
    queries: torch.Tensor,  # [Q, D]
    gallery: torch.Tensor,  # [N, D]
) -> Any:
    """Yields first query, first row and a block of float32 cosines, which the next block overwrites."""
    asking = _unit(queries, torch.float32)
    buffer = torch.empty(min(_QUERY_ROWS, len(queries)) * min(_GALLERY_ROWS, len(gallery)))
    for first_row in range(0, len(gallery), _GALLERY_ROWS):
        rows = _unit(gallery[first_row : first_row + _GALLERY_ROWS], torch.float32)
        for first_query in range(0, len(queries), _QUERY_ROWS):
            block = asking[first_query : first_query + _QUERY_ROWS]
            scores = buffer[: len(block) * len(rows)].view(len(block), len(rows))
            yield first_query, first_row, torch.mm(block, rows.T, out=scores)
