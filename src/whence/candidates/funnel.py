"""A funnel: cheap stages let few rows through, only those are scored exactly, and what each stage lost is measured.

``bm25:5%,index@index/:200`` reads: of all rows the 5 % with the highest BM25; of those the 200 with the highest score
in an index; those are scored. ``bm25+activation:500`` takes from both in turn. Every question has its own rows.

Grosse et al. 2023 (section 3.2.1) score the first 10,000 rows of a TF-IDF filter, and cannot say what that loses. Here
a random sample of the rows that were *not* let through is scored as well: the strongest of all scored rows, each
sampled one standing for as many as it was drawn from, say how many of the exact top k each stage let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from whence.errors import OptionError, did_you_mean

KINDS = ("bm25", "tfidf", "embedding", "activation", "index")
EXAMPLE = "bm25:5%, tfidf:10000, activation:10%, index@index/:200, or several: bm25:20%,index@index/:200"


@dataclass(frozen=True)
class Stage:
    """One filter.

    Attributes:
        sources: what it goes by: names of ``KINDS``, an index with its folder behind an @.
        keep: rows that go on: a share of all rows below 1, a count from 1.
    """

    sources: tuple[str, ...]
    keep: float

    @property
    def name(self) -> str:
        """As it was asked for, without the number."""
        return "+".join(self.sources)

    def count(self, rows: int) -> int:
        """How many of ``rows`` go on."""
        wanted = round(self.keep * rows) if self.keep < 1 else int(self.keep)
        return max(1, min(rows, wanted))


def parse_funnel(text: str) -> tuple[Stage, ...]:
    """The stages of ``bm25:5%,index@folder:200``, in order.

    Raises:
        OptionError: no such filter, or no number of rows.
    """
    return tuple(_stage(part.strip(), text) for part in text.split(","))


def _stage(part: str, text: str) -> Stage:
    named, colon, number = part.rpartition(":")
    sources = tuple(name.strip() for name in named.split("+"))
    for name in sources:
        kind, at, folder = name.partition("@")
        if colon and (kind not in KINDS or (kind == "index") != bool(at and folder)):
            wrong = f"candidates {text!r}: {name!r}"
            raise OptionError(wrong, wanted=EXAMPLE, try_=did_you_mean(kind, KINDS) if not at else "index@folder:200")
    try:
        keep = float(number.removesuffix("%")) / 100 if number.endswith("%") else float(int(number))
    except ValueError:
        keep = 0.0
    if not colon or not (0 < keep < 1 if number.endswith("%") else keep >= 1):
        raise OptionError(f"candidates {text!r}: how many rows go on from {part!r}?", wanted=EXAMPLE)
    return Stage(sources, keep)


def fused(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Q x N scores of several filters as one that takes from them in turn: a row counts by its best place."""
    if len(parts) == 1:
        return parts[0]
    places = [
        np.argsort(np.argsort(-np.nan_to_num(part, nan=-np.inf), axis=1, kind="stable"), axis=1) for part in parts
    ]
    best = np.min(places, axis=0).astype(np.float64)
    return -(best + np.argmin(places, axis=0) / len(parts))  # of two rows at one place, that of the first filter


def let_through(scores_QN: np.ndarray, alive_QN: np.ndarray, count: int) -> np.ndarray:
    """Q x N booleans: the ``count`` highest of those that are left; among equals those that come first."""
    kept = np.zeros(alive_QN.shape, dtype=bool)
    for q, (scores, alive) in enumerate(zip(scores_QN, alive_QN, strict=True)):
        at = np.flatnonzero(alive)
        values = np.nan_to_num(scores[at].astype(np.float64), nan=-np.inf)
        if len(at) > count:
            limit = np.partition(values, len(at) - count)[len(at) - count]
            above = values > limit
            level = np.flatnonzero(values == limit)[: count - int(above.sum())]
            at = np.concatenate([at[above], at[level]])
        kept[q, at] = True
    return kept


def sampled(others: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` of the rows that nobody let through (all, if there are no more), by chance."""
    return np.sort(np.random.default_rng(seed).permutation(others)[:count])


@dataclass(frozen=True)
class Recall:
    """The share of the exact top k that a stage let through, and its 95 % interval.

    The interval is about the rows that were neither let through nor sampled; when all rows were scored it is the value.
    """

    value: float
    low: float
    high: float


def recall(scores_QN: np.ndarray, kept_QN: np.ndarray, weights_N: np.ndarray, *, top: int) -> Recall:
    """How much of the exact top k went through, over all questions.

    Known rows (all candidates of anybody) are ranked exactly. How many rows nobody scored lie above the first, second
    ... of them is estimated from the sample, over all questions together: of one question a sample says too little.
    Where questions differ much this is a little too high (by 0.02 at a recall of 0.35, by 0.007 at 0.83 in the tests).

    Args:
        scores_QN: exact scores; NaN where a row was not scored.
        kept_QN: what went through.
        weights_N: how many rows each scored one stands for: 1, more for a sampled one, 0 for rows without a score.
        top: k, per question.
    """
    heavy = max(1.0, float(weights_N.max(initial=1.0)))
    tallies = [_tally(s, k, weights_N, top) for s, k in zip(scores_QN, kept_QN, strict=True)]
    ranking = _Ranking.of(tallies, heavy, min(top, *(t.ranked for t in tallies)))
    if not ranking.top:
        return Recall(float("nan"), 0.0, 1.0)
    value = ranking.recall()
    if heavy <= 1:
        return Recall(value, value, value)
    count, rows = sum(t.missed_K[-1] for t in tallies), frozenset[int]().union(*(t.rows for t in tallies))
    least, most = _expected(count, count / max(1, len(rows)))
    low = ranking.recall(further=(most - count) * heavy / len(tallies))
    return Recall(value, low, ranking.recall(least / count) if count else value)


@dataclass(frozen=True)
class _Ranking:
    """Means over questions of ``_Tally``, a sampled row counting for all that it stands for."""

    known_K: np.ndarray
    through_K: np.ndarray
    missed_K: np.ndarray
    top: int

    @staticmethod
    def of(tallies: Sequence[_Tally], heavy: float, top: int) -> _Ranking:
        through, missed = (heavy * np.mean([getattr(t, n) for t in tallies], axis=0) for n in ("through_K", "missed_K"))
        return _Ranking(np.mean([t.known_K for t in tallies], axis=0), through, missed, top)

    def recall(self, factor: float = 1.0, *, further: float = 0.0) -> float:
        """Recall if the unseen misses were ``factor`` times as many, and ``further`` ones lay at the very top."""
        ranks = np.arange(len(self.known_K), dtype=np.float64)
        whole_K = ranks + self.through_K + factor * self.missed_K + further * (ranks > 0)  # down to each known row
        at = float(np.interp(self.top, whole_K, ranks))
        return min(1.0, float(np.interp(at, ranks, self.known_K + self.through_K)) / self.top)


@dataclass(frozen=True)
class _Tally:
    """One question, down its ranking of known rows: what was kept, and what the sample shows in between (K + 1)."""

    known_K: np.ndarray
    through_K: np.ndarray
    missed_K: np.ndarray
    ranked: int
    rows: frozenset[int]


def _tally(scores: np.ndarray, kept: np.ndarray, weights: np.ndarray, top: int) -> _Tally:
    finite = np.isfinite(scores)
    known, drawn = np.flatnonzero(finite & (weights == 1)), np.flatnonzero(finite & (weights > 1))
    first = known[np.argsort(-scores[known], kind="stable")][:top]
    ranked = len(first)
    padded = np.zeros(top + 1)
    padded[1 : ranked + 1] = np.cumsum(kept[first])
    padded[ranked + 1 :] = padded[ranked]
    above = np.searchsorted(-scores[first], -scores[drawn])  # known rows above each sampled one
    among = above < ranked
    curves = [
        np.cumsum(np.bincount(above[among & side] + 1, minlength=top + 1)) for side in (kept[drawn], ~kept[drawn])
    ]
    return _Tally(padded, curves[0], curves[1], ranked, frozenset(drawn[among & ~kept[drawn]].tolist()))


def _expected(count: float, cluster: float) -> tuple[float, float]:
    """95 % interval of an expected count (Garwood 1936); counts that come in clusters are worth fewer."""
    cluster = max(1.0, cluster)
    n = count / cluster
    low = float(chi2.ppf(0.025, 2 * n)) / 2 if n > 0 else 0.0
    return low * cluster, float(chi2.ppf(0.975, 2 * n + 2)) / 2 * cluster
