"""The measures that evaluations are made of: correlations, areas, ranks, intervals. Only NumPy and SciPy's ranks.

Ties count as what they are: a tied pair is half in order, and among rows of equal score the expected number found is
used, so that a constant score is worth exactly as much as chance and never as much as the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from whence.errors import DataError

Correlate = Callable[[np.ndarray, np.ndarray], np.ndarray]
GRID = 101  # points of a share-found curve: every percent inspected


@dataclass(frozen=True)
class Interval:
    """A mean with a bootstrap interval; NaN where nothing is known."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def span(self) -> str:
        """The ends for a table cell; a dash where there is no interval."""
        return "–" if np.isnan(self.low) else f"{self.low:.2g} to {self.high:.2g}"


@dataclass(frozen=True)
class Fit:
    """How predictions relate to what happened.

    Attributes:
        slope, intercept: least squares of observed on predicted; slope 1 = right in size, below 1 = predicted too much.
        pearson, spearman: correlations.
        count: pairs used.
        bins: (mean predicted, mean observed, standard error, count) in groups of equal size, ordered by prediction.
    """

    slope: float
    intercept: float
    pearson: float
    spearman: float
    count: int
    bins: tuple[tuple[float, float, float, int], ...]


# --- correlations --------------------------------------------------------------------------------------------------


def spearman(a_QN: np.ndarray, b_QN: np.ndarray) -> np.ndarray:
    """Q rank correlations of rows, ties averaged, over the pairs that are finite; NaN where a row does not vary."""
    return _by_rows(lambda a, b: _pearson(rankdata(a, axis=-1), rankdata(b, axis=-1)), a_QN, b_QN)


def pearson(a_QN: np.ndarray, b_QN: np.ndarray) -> np.ndarray:
    """Q linear correlations of rows over the pairs that are finite; NaN where a row does not vary."""
    return _by_rows(_pearson, a_QN, b_QN)


def _by_rows(correlate: Correlate, a_QN: np.ndarray, b_QN: np.ndarray) -> np.ndarray:
    a_QN, b_QN = np.asarray(a_QN, dtype=np.float64), np.asarray(b_QN, dtype=np.float64)
    known = np.isfinite(a_QN) & np.isfinite(b_QN)
    if known.all():
        return correlate(a_QN, b_QN)
    return np.array([correlate(a[k], b[k]) if k.any() else np.nan for a, b, k in zip(a_QN, b_QN, known, strict=True)])


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a = a - a.mean(-1, keepdims=True)
    b = b - b.mean(-1, keepdims=True)
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(size > 0, (a * b).sum(-1) / np.where(size > 0, size, 1.0), np.nan)


# --- finding things ------------------------------------------------------------------------------------------------


def auroc(scores_N: np.ndarray, positive_N: np.ndarray) -> float:
    """Probability that a positive row scores above another one, ties half (Mann-Whitney); NaN without both kinds.

    Rows without a score (NaN) do not count.
    """
    scores, positive = _known(scores_N, positive_N)
    count = int(positive.sum())
    if not 0 < count < len(positive):
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def auroc_interval(
    scores_N: np.ndarray, positive_N: np.ndarray, *, other: np.ndarray | None = None, draws: int = 500, seed: int = 0
) -> Interval:
    """AUROC with a percentile bootstrap over rows; with ``other`` the difference to its AUROC on the same draws."""
    scores, positive = np.asarray(scores_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    if other is not None and np.shape(other) != scores.shape:
        raise DataError(f"scores {scores.shape} and {np.shape(other)}", wanted="two vectors of one length")

    def area(rows: np.ndarray) -> float:
        own = auroc(scores[rows], positive[rows])
        return own if other is None else own - auroc(np.asarray(other)[rows], positive[rows])

    rng = np.random.default_rng(seed)
    found = np.array([area(rng.integers(0, len(scores), len(scores))) for _ in range(draws)])
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return Interval(area(np.arange(len(scores))), float(low), float(high))


def share_found(scores_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the positives found against the share of rows inspected, highest scores first.

    Returns:
        (inspected, found), ``GRID`` points each, both from 0 to 1; a line of slope 1 is chance.

    Raises:
        DataError: no positive among the rows with a score.
    """
    scores, positive = _known(scores_N, positive_N)
    if not positive.any():
        raise DataError("no positive row among those with a score", wanted="at least one")
    found = np.concatenate([[0.0], np.cumsum(_expected(scores, positive))]) / positive.sum()
    grid = np.linspace(0.0, 1.0, GRID)
    return grid, np.interp(grid, np.arange(len(found)) / len(scores), found)


def _known(scores_N: np.ndarray, positive_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    if scores.shape != positive.shape or scores.ndim != 1:
        raise DataError(f"scores {scores.shape} and marks {positive.shape}", wanted="two vectors of one length")
    finite = ~np.isnan(scores)
    return scores[finite], positive[finite]


def _expected(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """N expected hits, highest score first: within a tie, its share of positives at each place."""
    order = np.argsort(-scores, kind="stable")
    _, group, size = np.unique(-scores[order], return_inverse=True, return_counts=True)
    return (np.bincount(group, weights=positive[order], minlength=len(size)) / size)[group]


def reciprocal_ranks(scores_QN: np.ndarray, relevant: Sequence[AbstractSet[int]]) -> np.ndarray:
    """Q values 1 / rank of the first relevant column; unscored (NaN) columns come last.

    A tie shares its mean rank: of T tied columns that start at rank s and hold r relevant ones, the first relevant one
    is expected at s + (T + 1) / (r + 1) - 1, and the reciprocal of that is used. NaN for a query without any relevant.
    """
    return np.array([_reciprocal(row, hits) for row, hits in _judged(scores_QN, relevant)])


def _reciprocal(row: np.ndarray, hits: np.ndarray) -> float:
    if not hits.any():
        return float("nan")
    best = row[hits].max()
    tied = row == best
    above, size, right = int((row > best).sum()), int(tied.sum()), int((tied & hits).sum())
    return 1.0 / (above + (size + 1) / (right + 1))


def mrr(scores_QN: np.ndarray, relevant: Sequence[AbstractSet[int]]) -> float:
    """Mean of ``reciprocal_ranks`` over the queries that have one."""
    return _mean(reciprocal_ranks(scores_QN, relevant))


def recall_at(scores_QN: np.ndarray, relevant: Sequence[AbstractSet[int]], k: int) -> np.ndarray:
    """Q shares of the relevant columns among the first k, out of min(k, relevant): 1 is the best that is possible."""
    return np.array([_hits(r, hits, k) / max(1, min(k, hits.sum())) for r, hits in _judged(scores_QN, relevant)])


def precision_at(scores_QN: np.ndarray, relevant: Sequence[AbstractSet[int]], k: int) -> np.ndarray:
    """Q shares of relevant columns among the first k."""
    return np.array([_hits(r, hits, k) / min(k, len(r)) for r, hits in _judged(scores_QN, relevant)])


def _hits(row: np.ndarray, hits: np.ndarray, k: int) -> float:
    """Expected hits among the first k; NaN for a query without any relevant column."""
    return float(_expected(row, hits)[:k].sum()) if hits.any() else float("nan")


def _judged(scores_QN: np.ndarray, relevant: Sequence[AbstractSet[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    scores_QN = np.nan_to_num(np.asarray(scores_QN, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    if scores_QN.ndim != 2 or len(scores_QN) != len(relevant):
        raise DataError(f"scores {scores_QN.shape} for {len(relevant)} queries", wanted="one row of scores per query")
    marks = np.zeros(scores_QN.shape, dtype=bool)
    for q, columns in enumerate(relevant):
        marks[q, sorted(columns)] = True
    return list(zip(scores_QN, marks, strict=True))


# --- intervals -----------------------------------------------------------------------------------------------------


def mean_interval(values: np.ndarray, *, draws: int = 2000, seed: int = 0, share: float = 0.95) -> Interval:
    """Mean and percentile bootstrap interval over independent values (queries, seeds); NaN values do not count.

    One value has no interval (both ends NaN).
    """
    known = np.asarray(values, dtype=np.float64).ravel()
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return Interval(_mean(known), float("nan"), float("nan"))
    picked = np.random.default_rng(seed).integers(0, len(known), size=(draws, len(known)))
    low, high = np.quantile(known[picked].mean(1), [(1 - share) / 2, (1 + share) / 2])
    return Interval(float(known.mean()), float(low), float(high))


def paired_interval(a: np.ndarray, b: np.ndarray, *, draws: int = 2000, seed: int = 0) -> Interval:
    """``mean_interval`` of a - b, value by value: what two contenders differ by on the *same* queries."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise DataError(f"values {a.shape} and {b.shape}", wanted="pairs")
    return mean_interval(a - b, draws=draws, seed=seed)


def slope_and_calibration(predicted: np.ndarray, observed: np.ndarray, *, groups: int = 10) -> Fit:
    """Least squares of what was observed on what was predicted, correlations, and means in groups of equal size.

    Args:
        predicted: what was foretold, say nats.
        observed: what happened, same unit; pairs with an unknown side do not count.
        groups: bins ordered by prediction.

    Raises:
        DataError: fewer than 2 pairs, or different lengths.
    """
    x, y = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(observed, dtype=np.float64).ravel()
    if x.shape != y.shape:
        raise DataError(f"{len(x)} predictions of {len(y)} observations", wanted="pairs")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < 2:
        raise DataError(f"{len(x)} pairs of prediction and observation", wanted="at least 2")
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else float("nan")
    bins = []
    for part in np.array_split(np.argsort(x, kind="stable"), min(groups, len(x))):
        error = float(y[part].std(ddof=1) / np.sqrt(len(part))) if len(part) > 1 else float("nan")
        bins.append((float(x[part].mean()), float(y[part].mean()), error, len(part)))
    linear, ranked = float(pearson(x[None], y[None])[0]), float(spearman(x[None], y[None])[0])
    return Fit(slope, float(y.mean() - slope * x.mean()), linear, ranked, len(x), tuple(bins))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
