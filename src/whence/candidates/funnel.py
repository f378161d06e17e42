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

from whence.errors import OptionError, did_you_mean

KINDS = ("bm25", "tfidf", "embedding", "activation", "index")
DRAWS, ENOUGH = 400, 8  # of what was not seen; questions from which a rate of others is learned
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

    Known rows (all candidates of anybody) are ranked exactly. How many rows nobody scored lie above each of them is
    drawn from what the sample says: counts are Poisson, with rates of each question's own between any two known rows.
    Rates are Gamma over questions, by the moments of their counts; of a few questions each has only itself.

    Args:
        scores_QN: exact scores; NaN where a row was not scored.
        kept_QN: what went through.
        weights_N: how many rows each scored one stands for: 1, more for a sampled one, 0 for rows without a score.
        top: k, per question.
    """
    share = 1.0 / max(1.0, float(weights_N.max(initial=1.0)))  # of the rows outside, those that were drawn
    tallies = [_tally(s, k, weights_N, top) for s, k in zip(scores_QN, kept_QN, strict=True)]
    top = min(top, *(len(t.known) for t in tallies))
    if not top:
        return Recall(float("nan"), 0.0, 1.0)
    known_QK, through_QK, missed_QK = (
        np.stack([getattr(t, n)[:top] for t in tallies]).astype(np.int64) for n in ("known", "through", "missed")
    )
    rng, draws = np.random.default_rng(0), DRAWS if share < 1 else 1
    further = _unseen(tallies, top, share, draws=draws, rng=rng)
    kept_share = through_QK.sum() / max(1, (through_QK + missed_QK).sum())
    own_Q1 = (through_QK.sum(1) + kept_share) / ((through_QK + missed_QK).sum(1) + 1)
    through = through_QK + rng.binomial(further, np.broadcast_to(own_Q1[:, None], further.shape))
    found = _within(known_QK, through, through_QK + missed_QK + further, top).mean(1) / top
    low, high = np.quantile(found, [0.025, 0.975])
    if not missed_QK.any():  # perhaps there are none
        high = max(high, _within(known_QK, through_QK[None], through_QK[None], top).mean() / top)
    return Recall(float(found.mean()), float(low), float(high))


def _unseen(tallies: Sequence[_Tally], top: int, share: float, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws x Q x K numbers of rows that nobody scored above each known one, beyond those that were drawn.

    A sampled row that is strong for many questions stands for others that are: what it stands for is drawn once. How
    many questions a row is strong for is known from the candidates, also where the sample has none.
    """
    places, count = np.arange(top), len(tallies)
    above_QMK = np.stack([(t.above[:, None] == places) for t in tallies]).astype(float)
    weight_SM = rng.gamma(1.0, 1.0, (draws, above_QMK.shape[1]))
    stood_for = np.einsum("sm,qmk->sqk", weight_SM, above_QMK)
    counts_Q = above_QMK.sum((1, 2))
    shape, rate_S11 = 0.5, np.zeros((draws, 1, 1))  # of one question nothing is known but its own count
    if count >= ENOUGH:
        firsts = np.concatenate([t.first[:top] for t in tallies])
        together = len(firsts) / len(np.unique(firsts))
        mean_S = (stood_for.sum((1, 2)) + together * rng.gamma(0.5, 1.0, draws)) / count
        mean = max(counts_Q.mean(), together / count)
        shape = mean**2 / max(counts_Q.var(ddof=1) - mean, 1e-3 * mean**2)
        rate_S11 = (shape * share / np.maximum(mean_S, 1e-9))[:, None, None]
    profile_K = (above_QMK.sum((0, 1)) + 1 / top) / (counts_Q.sum() + 1)
    expected = (rng.gamma(shape * profile_K, 1.0, stood_for.shape) + stood_for) / (rate_S11 + share)
    return rng.poisson((1 - share) * expected)


def _within(known_QK: np.ndarray, through: np.ndarray, outside: np.ndarray, top: int) -> np.ndarray:
    """Draws x Q rows of the top that went through; of the rows between two known ones, those outside in any order."""
    ranks = np.arange(known_QK.shape[1])
    down = np.cumsum(outside, axis=2)
    seen = ((down + ranks + 1 <= top) & known_QK.astype(bool)).sum(2)
    room = np.clip(top - (down - outside + ranks), 0, outside)
    return seen + (room * through / np.maximum(1, outside)).sum(2)


@dataclass(frozen=True)
class _Tally:
    """One question, down its first k known rows: was it kept; and sampled rows directly above it, kept or not.

    ``above`` has the place of every sampled row among the known ones, ``first`` are those.
    """

    known: np.ndarray
    through: np.ndarray
    missed: np.ndarray
    above: np.ndarray
    first: np.ndarray


def _tally(scores: np.ndarray, kept: np.ndarray, weights: np.ndarray, top: int) -> _Tally:
    known, drawn = np.flatnonzero(np.isfinite(scores) & (weights == 1)), np.flatnonzero(weights > 1)
    first = known[np.argsort(-scores[known], kind="stable")][:top]
    above = np.searchsorted(-scores[first], -np.nan_to_num(scores[drawn], nan=-np.inf))  # known rows above each
    among = above < len(first)
    sides = (among & kept[drawn], among & ~kept[drawn])
    through, missed = (np.bincount(above[side], minlength=len(first)) for side in sides)
    return _Tally(kept[first], through, missed, above, first)
