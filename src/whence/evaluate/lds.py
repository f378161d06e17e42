"""The linear datamodelling score: does the sum of the scores of the rows kept predict the loss after retraining?

Per query, the rank correlation over subsets of what was predicted with what retraining on each subset gave, averaged
over seeds (Park et al. 2023, definition 2.4). Positive scores lower the loss, so the prediction is minus their sum.
Only comparable within one bank: the value depends on the recipe, the subsets and the seeds.

Uncertainty comes from both sides, which subsets were drawn and which queries were asked, so both are resampled; the
same resamples serve every method, which makes differences between methods paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.errors import DataError
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.evaluate.statistics import Interval, mean_interval, spearman

DRAWS = 2000
SHARE = 0.95
FEWEST = 3  # subsets: below, a rank correlation says nothing
CUSTOMARY = 100  # subsets of published boards


@dataclass(frozen=True, eq=False)
class Standing:
    """One method on a bank.

    Attributes:
        name: of the method.
        per_query: Q rank correlations.
        interval: their mean, and where it lies when subsets and queries are drawn again.
        draws: D such means, in the same draws for all methods of a board.
    """

    name: str
    per_query: np.ndarray
    interval: Interval
    draws: np.ndarray


@dataclass(frozen=True)
class Ceiling:
    """What the seeds' noise leaves to be predicted.

    Attributes:
        single: mean over queries of the rank correlation between two seeds of the same subsets.
        reliability: the same for the mean over R seeds (Spearman-Brown).
        best: mean over queries of the square root of that: no method can be expected above it.
    """

    single: float
    reliability: float
    best: Interval


@dataclass(frozen=True)
class Board:
    """Methods on one bank, best first.

    Attributes:
        standings: of all methods.
        ceiling: None with a single seed.
        subsets, seeds, queries, rows: sizes of the bank.
        dropped: subsets left out because a training diverged.
        unscored: (method, rows without a score), counted as 0.
    """

    standings: tuple[Standing, ...]
    ceiling: Ceiling | None
    subsets: int
    seeds: int
    queries: int
    rows: int
    dropped: int
    unscored: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> Standing:
        return next(standing for standing in self.standings if standing.name == name)

    def paired(self, first: str, second: str) -> Interval:
        """First minus second, on the same subsets and queries in every draw."""
        a, b = self[first], self[second]
        known = np.isfinite(a.per_query) & np.isfinite(b.per_query)
        mean = float((a.per_query - b.per_query)[known].mean()) if known.any() else float("nan")
        return _interval(mean, a.draws - b.draws)


def predictions(scores_QN: np.ndarray, kept_MN: np.ndarray) -> np.ndarray:
    """Q x M predicted losses, up to a constant and a factor; rows without a score count as 0."""
    return -np.nan_to_num(scores_QN) @ np.asarray(kept_MN, dtype=np.float64).T


def lds_per_query(scores_QN: np.ndarray, kept_MN: np.ndarray, losses_MQ: np.ndarray) -> np.ndarray:
    """Q rank correlations over the subsets.

    Raises:
        DataError: shapes that do not belong together.
    """
    _check(scores_QN, kept_MN, losses_MQ)
    return spearman(predictions(scores_QN, kept_MN), np.asarray(losses_MQ).T)


def board(
    scores: Mapping[str, np.ndarray],
    kept_MN: np.ndarray,
    losses_MRQ: np.ndarray,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Board:
    """Judge methods on one bank.

    Args:
        scores: method -> Q x N scores.
        kept_MN: rows of each subset.
        losses_MRQ: measurements after each training; a subset with an unfinished or diverged training is left out.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        DataError: no method, fewer than 3 usable subsets, or shapes that do not belong together.
    """
    usable = np.isfinite(losses_MRQ).all((1, 2))
    kept_MN, losses_MRQ = np.asarray(kept_MN)[usable], np.asarray(losses_MRQ, dtype=np.float64)[usable]
    if not scores or len(kept_MN) < FEWEST:
        raise DataError(f"{len(scores)} methods and {len(kept_MN)} usable subsets", wanted=f"1, and at least {FEWEST}")
    truth_QM = losses_MRQ.mean(1).T
    resample = _Resample.of(truth_QM, draws, seed)
    standings = []
    for name, values in scores.items():
        per_query = lds_per_query(values, kept_MN, truth_QM.T)
        drawn = resample.means(predictions(values, kept_MN))
        known = per_query[np.isfinite(per_query)]
        mean = float(known.mean()) if len(known) else float("nan")
        standings.append(Standing(name, per_query, _interval(mean, drawn), drawn))
    standings.sort(key=lambda s: -np.nan_to_num(s.interval.mean, nan=-2.0))
    rows = kept_MN.shape[1]
    unscored = tuple((name, int((~np.isfinite(v)).any(0).sum())) for name, v in scores.items())
    return Board(
        tuple(standings),
        ceiling(losses_MRQ),
        subsets=len(kept_MN),
        seeds=losses_MRQ.shape[1],
        queries=len(truth_QM),
        rows=rows,
        dropped=int((~usable).sum()),
        unscored=tuple(item for item in unscored if item[1]),
    )


def ceiling(losses_MRQ: np.ndarray) -> Ceiling | None:
    """How well the seeds agree about the subsets, and what that allows; None with one seed.

    With single-seed reliability r, R seeds have R r / (1 + (R - 1) r), and a perfect prediction of the noiseless
    losses correlates with their noisy mean by the square root of that.
    """
    seeds = losses_MRQ.shape[1]
    if seeds < 2:
        return None
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    single_Q = np.mean([spearman(losses_MRQ[:, a].T, losses_MRQ[:, b].T) for a, b in pairs], axis=0)
    single_Q = np.clip(single_Q, 0.0, 1.0)
    mean_Q = seeds * single_Q / (1 + (seeds - 1) * single_Q)
    return Ceiling(float(np.nanmean(single_Q)), float(np.nanmean(mean_Q)), mean_interval(np.sqrt(mean_Q)))


# --- the bootstrap -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Resample:
    """D draws of subsets (as counts) and of queries, and the ranks of the truth in each."""

    counts_DM: np.ndarray
    queries_DQ: np.ndarray
    truth: Sequence[np.ndarray]

    @classmethod
    def of(cls, truth_QM: np.ndarray, draws: int, seed: int) -> _Resample:
        queries, subsets = truth_QM.shape
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=draws).astype(np.float64)
        asked = rng.integers(0, queries, size=(draws, queries))
        return cls(counts, asked, [_centred(truth, counts) for truth in truth_QM])

    def means(self, predicted_QM: np.ndarray) -> np.ndarray:
        """D means over the drawn queries of the rank correlation over the drawn subsets."""
        found = np.stack([self._correlations(q, row) for q, row in enumerate(predicted_QM)], axis=1)
        picked = np.take_along_axis(found, self.queries_DQ, axis=1)
        known = np.isfinite(picked)
        return np.where(known, picked, 0.0).sum(1) / np.maximum(known.sum(1), 1)

    def _correlations(self, query: int, predicted_M: np.ndarray) -> np.ndarray:
        a, b, weights = _centred(predicted_M, self.counts_DM), self.truth[query], self.counts_DM
        size = np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))
        return np.where(size > 0, (weights * a * b).sum(1) / np.where(size > 0, size, 1.0), np.nan)


def _centred(values_M: np.ndarray, counts_DM: np.ndarray) -> np.ndarray:
    """D x M ranks, ties averaged, in samples where value m occurs ``counts[d, m]`` times; minus their mean."""
    _, group = np.unique(values_M, return_inverse=True)
    member = np.zeros((len(values_M), group.max() + 1))
    member[np.arange(len(values_M)), group] = 1.0
    sizes_DG = counts_DM @ member
    ranks_DG = np.cumsum(sizes_DG, axis=1) - sizes_DG + (sizes_DG + 1) / 2
    return ranks_DG[:, group] - (counts_DM.sum(1, keepdims=True) + 1) / 2


def _interval(mean: float, draws: np.ndarray) -> Interval:
    low, high = np.nanquantile(draws, [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return Interval(mean, float(low), float(high))


def _check(scores_QN: np.ndarray, kept_MN: np.ndarray, losses_MQ: np.ndarray) -> None:
    (queries, rows), subsets = scores_QN.shape, len(kept_MN)
    if kept_MN.shape[1:] != (rows,) or losses_MQ.shape != (subsets, queries):
        raise DataError(
            f"{queries} x {rows} scores, subsets {kept_MN.shape} and losses {losses_MQ.shape}",
            wanted="one loss per subset and query, of subsets of the scored rows",
        )


# --- what is told --------------------------------------------------------------------------------------------------


def lds_outcome(found: Board, *, reference: str = "", about: Mapping[str, Any] | None = None) -> Outcome:
    """Table, chart and sentences.

    Args:
        found: the board.
        reference: the method that the others are compared with, pair by pair; by default the best.
        about: settings.
    """
    names = [s.name for s in found.standings]
    reference = reference if reference in names else names[0]
    pairs = {name: found.paired(name, reference) for name in names if name != reference}
    rows = tuple(
        (s.name, round(s.interval.mean, 3), _ends(s.interval), _difference(pairs.get(s.name)), _share(s, found.ceiling))
        for s in found.standings
    )
    columns = ("method", "LDS", "95 %", f"minus {reference} (95 %)", "of the ceiling")
    return Outcome(
        "lds",
        f"How well scores predict the losses of models retrained on {found.subsets} subsets of {found.rows:,} rows",
        columns,
        rows,
        (_chart(found),),
        {
            "lds": {s.name: _numbers(s.interval) for s in found.standings},
            "per_query": {s.name: s.per_query for s in found.standings},
            "paired": {a: {b: _numbers(found.paired(a, b)) for b in names if b != a} for a in names},
            "ceiling": None if found.ceiling is None else _ceiling_numbers(found.ceiling),
            "sizes": {k: getattr(found, k) for k in ("subsets", "seeds", "queries", "rows", "dropped")},
        },
        tuple(_words(found, pairs, reference)),
        dict(about or {}),
    )


def _words(found: Board, pairs: Mapping[str, Interval], reference: str) -> list[str]:
    said = [
        f"Rank correlation of predicted with measured losses, mean over {found.queries} queries; {found.seeds} "
        "training(s) per subset. Only comparable within this bank."
    ]
    if found.ceiling is None:
        said.append("One seed only: how much of the losses is noise is not known. Train a second seed.")
    else:
        said.append(
            f"Two seeds agree to {found.ceiling.single:.2f}, the mean of {found.seeds} to "
            f"{found.ceiling.reliability:.2f}: no method can be expected above {found.ceiling.best.mean:.2f}."
        )
    worse = [name for name, each in pairs.items() if each.high < 0]
    better = [name for name, each in pairs.items() if each.low > 0]
    level = [name for name in pairs if name not in (*worse, *better)]
    for phrase, some in (("Clearly below", worse), ("Clearly above", better), ("Not told apart from", level)):
        if some:
            said.append(f"{phrase} {reference} (the paired 95 % interval): {', '.join(some)}.")
    if found.subsets < CUSTOMARY:
        said.append(f"{found.subsets} subsets; published boards have {CUSTOMARY} or more, and narrower intervals.")
    if found.dropped:
        said.append(f"{found.dropped} subsets were left out: a training diverged or is not finished.")
    said += [f"{name}: {count} rows have no score and count as 0." for name, count in found.unscored]
    return said


def _chart(found: Board) -> Chart:
    names, ends = tuple(s.name for s in found.standings), [s.interval for s in found.standings]
    places = tuple(float(n) for n in range(len(names)))
    means, low, high = (tuple(getattr(e, part) for e in ends) for part in ("mean", "low", "high"))
    curves = [Curve("LDS", places, means, low=low, high=high)]
    if found.ceiling is not None:
        best = found.ceiling.best.mean
        curves.append(Curve("noise ceiling", (places[0], places[-1]), (best, best), drawn="line"))
    title = "Linear datamodelling score by method"
    return Chart(title, "method", "LDS", tuple(curves), kind="bars", groups=names)


def _ends(found: Interval) -> str:
    return f"{found.low:.3f} to {found.high:.3f}"


def _difference(found: Interval | None) -> str:
    return "" if found is None else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _share(standing: Standing, found: Ceiling | None) -> str:
    return "" if found is None or not found.best.mean > 0 else f"{standing.interval.mean / found.best.mean:.0%}"


def _numbers(found: Interval) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _ceiling_numbers(found: Ceiling) -> dict[str, Any]:
    return {"single": found.single, "reliability": found.reliability, "best": _numbers(found.best)}
