"""Spread, tail, totals: against known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from whence.report import statistics


def test_spread_of_known_numbers():
    effects = np.array([4.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    spread = statistics.describe(effects)
    assert spread.cumulative == ((1, 0.4), (2, 0.7), (3, 0.9), (4, 1.0))
    assert spread.half_in == 2
    assert spread.top_10 == spread.cumulative[-1][1] == 1.0
    assert spread.top_1_percent == 0.4
    assert spread.lorenz == ((0.0, 0.0), (0.25, 0.1), (0.5, 0.3), (0.75, 0.6), (1.0, 1.0))
    assert spread.gini == pytest.approx(0.25)
    assert spread.median == 1.5
    assert sum(spread.counts) == len(effects)
    assert spread.tail is None
    assert statistics.describe(np.array([])) is None


def test_histogram_loses_nothing(rng=None):
    effects = np.random.default_rng(0).standard_t(1.5, 5000) * 1e-3
    spread = statistics.describe(effects)
    assert sum(spread.counts) == 5000
    assert len(spread.edges) == len(spread.counts) + 1
    middle = len(spread.counts) // 2
    assert sum(spread.counts[middle + 1 :]) == (effects >= spread.edges[middle + 1]).sum()


def test_histogram_is_symmetric_and_four_decades_deep():
    spread = statistics.describe(np.array([-2.0, 1e-9, 1.0]))
    edges = np.array(spread.edges)
    np.testing.assert_allclose(edges, -edges[::-1], rtol=1e-12)
    assert len(edges) == 50 and edges[-1] == pytest.approx(2.0) and edges[25] == pytest.approx(2e-4)
    assert spread.counts[0] == 1 and spread.counts[24] == 1  # the strongest opponent, and what is nearly nothing
    nothing = statistics.describe(np.zeros(3))
    assert nothing.edges == (-1.0, 1.0) and nothing.counts == (3,)


def test_tail_exponent_is_recovered():
    random = np.random.default_rng(1)
    tail = statistics.fit_tail(np.sort(random.pareto(1.6, 4000) + 1)[::-1])
    assert tail.count == 400
    assert tail.exponent == pytest.approx(2.6, abs=0.25)
    assert tail.p_value > 0.1
    bounded = statistics.fit_tail(np.sort(random.uniform(10, 11, 4000))[::-1])
    assert bounded.p_value < 0.1


def test_tail_needs_enough_proponents():
    assert statistics.fit_tail(np.ones(19)) is None
    assert statistics.fit_tail(np.ones(100)) is None


def test_totals_by_source():
    effects = np.array([[1.0, 2.0, np.nan, -4.0], [0.0, 0.0, 1.0, 1.0]])
    first, second = statistics.total_by_source(effects, ["a", "a", "b", "b"])
    assert [(t.source, t.rows, t.total, t.top_100) for t in first] == [("b", 2, -4.0, 0), ("a", 2, 3.0, 2)]
    assert [(t.source, t.total) for t in second] == [("b", 2.0), ("a", 0.0)]
    assert first[1].low == 2.0 and first[1].high == 4.0


def test_rank_correlation_is_spearman():
    random = np.random.default_rng(2)
    rows = random.normal(size=(3, 50))
    rows[1, 3] = np.nan
    table = statistics.rank_correlation(rows)
    known = np.isfinite(rows).all(0)
    assert table[0][1] == pytest.approx(stats.spearmanr(rows[0, known], rows[1, known]).statistic)
    assert table[2][2] == pytest.approx(1)
    assert statistics.rank_correlation(rows[:1]) is None
    assert statistics.rank_correlation(np.ones((2, 9)))[0][1] == 0.0


def test_chance_overlap_explains_nothing():
    random = np.random.default_rng(3)
    verdict = statistics.judge_lexical(random.normal(size=12), random.random(12))
    assert verdict.level == "little"  # 6 to 10 of 10 overlap by chance among 12 rows
    assert verdict.expected == pytest.approx(verdict.of**2 / 12)
    few = statistics.judge_lexical(np.array([3.0, 2.0, 1.0, -1.0, -2.0, -3.0]), np.array([3.0, 2, 1, 0, 0, 0]))
    assert few is not None and "cannot be told from chance" in few.sentence and "1.5 would be by chance" in few.sentence
    assert statistics.judge_lexical(np.array([-1.0, -2.0]), np.array([1.0, 2.0])) is None
    assert statistics.judge_lexical(np.array([1.0, 2.0]), np.zeros(2)) is None


def test_short_rows_are_not_spurious():
    assert not statistics.one_token_dominates(np.array([1.0, 0.0]))
    assert not statistics.one_token_dominates(np.zeros(9))
    assert statistics.one_token_dominates(np.array([1.0, 0.0, 0.1]))


@pytest.mark.parametrize(
    ("shared", "level", "said"),
    [
        (2, "little", "does not explain this ranking: 2 of the 10"),
        (3, "partly", "explains part of this ranking: 3 of the 10"),
        (5, "partly", "explains part of this ranking: 5 of the 10"),
        (6, "explains", "explains most of this ranking: 6 of the 10"),
    ],
)
def test_the_overlap_decides_the_verdict(shared, level, said):
    scores = np.linspace(1.0, -1.0, 200)
    lexical = np.zeros(200)
    lexical[:shared] = 2.0
    lexical[100 : 110 - shared] = 3.0  # others share more words
    verdict = statistics.judge_lexical(scores, lexical)
    assert (verdict.level, verdict.overlap, verdict.of, verdict.expected) == (level, shared, 10, 0.5)
    assert said in verdict.sentence
