"""The funnel's bookkeeping: what is asked for, who goes through, and what is known about the rest."""

from __future__ import annotations

import numpy as np
import pytest

from whence.candidates.funnel import Stage, fused, let_through, parse_funnel, recall, sampled
from whence.errors import OptionError

QUERIES, ROWS, TOP = 24, 600, 10
POOLED = 0.03  # questions differ, and their rankings are estimated as one: a little too high where much is lost


def exact(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((QUERIES, ROWS))


def filtered(truth: np.ndarray, noise: float, count: int) -> np.ndarray:
    scores = truth + noise * np.random.default_rng(1).standard_normal(truth.shape)
    return let_through(scores, np.ones(truth.shape, dtype=bool), count)


def true_recall(truth: np.ndarray, kept: np.ndarray, top: int = TOP) -> float:
    return float(np.mean([kept[q][np.argsort(-truth[q])[:top]].mean() for q in range(len(truth))]))


def test_stages_are_read() -> None:
    assert parse_funnel("bm25:5%") == (Stage(("bm25",), 0.05),)
    two = parse_funnel("bm25+activation:1000, index@a/b:c:20")
    assert two == (Stage(("bm25", "activation"), 1000), Stage(("index@a/b:c",), 20))
    assert two[0].name == "bm25+activation" and two[0].count(400) == 400 and two[1].count(400) == 20
    assert parse_funnel("tfidf:0.1%")[0].count(300) == 1


@pytest.mark.parametrize(
    "text",
    ["", "bm25", "bm25:", "bm25:0", "bm25:150%", "bm25:-3", "bm26:5", "index:5", "index@:5", "bm25@x:5", "bm25:5,"],
)
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as error:
        parse_funnel(text)
    assert "candidates" in str(error.value)


def test_the_highest_go_through_and_the_first_of_equals() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 1.0, np.nan, 1.0]])
    assert let_through(scores, np.ones((1, 6), dtype=bool), 3).tolist() == [[True, True, True, False, False, False]]
    alive = np.array([[False, True, True, True, True, True]])
    assert let_through(scores, alive, 3).tolist() == [[False, True, True, True, False, False]]
    assert let_through(scores, alive, 9).sum() == 5


def test_several_filters_take_turns() -> None:
    one, other = np.array([[9.0, 8, 7, 0, 0, 0]]), np.array([[0.0, 0, 0, 1, 2, 3]])
    both = let_through(fused([one, other]), np.ones((1, 6), dtype=bool), 4)
    assert np.flatnonzero(both[0]).tolist() == [0, 1, 4, 5]
    assert fused([one]) is one


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_recall_is_the_plain_share_when_all_rows_are_scored(noise: float) -> None:
    truth = exact()
    kept = filtered(truth, noise, 30)
    found = recall(truth, kept, np.ones(ROWS), top=TOP)
    assert found.value == pytest.approx(true_recall(truth, kept)) and found.low == found.value == found.high


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.5])
def test_recall_from_a_sample_is_near_on_average_and_its_interval_covers(noise: float) -> None:
    truth = exact()
    kept = filtered(truth, noise, 30)
    others = np.flatnonzero(~kept.any(0))
    values, covered = [], 0
    for seed in range(40):
        drawn = sampled(others, 60, seed)
        weights = kept.any(0).astype(float)
        weights[drawn] = len(others) / len(drawn)
        found = recall(np.where(weights > 0, truth, np.nan), kept, weights, top=TOP)
        values.append(found.value)
        covered += found.low - POOLED <= true_recall(truth, kept) <= found.high + POOLED
    assert len(others) > 100  # else there is nothing to estimate
    assert np.mean(values) == pytest.approx(true_recall(truth, kept), abs=POOLED + 0.01)
    assert covered >= 35


def test_questions_of_which_some_lose_everything_and_others_nothing() -> None:
    truth = exact()
    kept = np.concatenate([filtered(truth, 0.0, 30)[:12], filtered(-truth, 0.0, 30)[12:]])
    others = np.flatnonzero(~kept.any(0))
    covered = 0
    for seed in range(20):
        drawn = sampled(others, 80, seed)
        weights = kept.any(0).astype(float)
        weights[drawn] = len(others) / len(drawn)
        found = recall(np.where(weights > 0, truth, np.nan), kept, weights, top=TOP)
        assert found.value == pytest.approx(0.5, abs=0.05)
        covered += found.low <= 0.5 <= found.high + 0.02
    assert covered >= 17


def test_of_one_question_a_small_sample_says_little() -> None:
    truth = exact()[:1]
    kept = filtered(truth, 0.0, 30)
    drawn = sampled(np.flatnonzero(~kept[0]), 30, 0)
    weights = kept[0].astype(float)
    weights[drawn] = 570 / 30
    found = recall(np.where(weights > 0, truth, np.nan), kept, weights, top=TOP)
    assert found.low < 0.6 and found.high == 1.0


def test_an_early_stage_is_credited_for_rows_that_a_later_one_dropped() -> None:
    truth = exact()
    early = filtered(truth, 0.5, 200)
    late = let_through(-truth, early, 20)  # a filter that keeps the worst
    others = np.flatnonzero(~late.any(0))
    values = {"early": [], "late": []}
    for seed in range(20):
        drawn = sampled(others, 100, seed)
        weights = late.any(0).astype(float)
        weights[drawn] = len(others) / len(drawn)
        scores = np.where(weights > 0, truth, np.nan)
        values["early"].append(recall(scores, early, weights, top=TOP).value)
        values["late"].append(recall(scores, late, weights, top=TOP).value)
    assert np.mean(values["early"]) == pytest.approx(true_recall(truth, early), abs=POOLED + 0.01)
    assert np.mean(values["late"]) == pytest.approx(true_recall(truth, late), abs=POOLED + 0.01)


def test_fewer_rows_than_the_top_and_no_rows() -> None:
    truth = np.array([[3.0, 2.0, np.nan]])
    kept = np.array([[True, False, False]])
    assert recall(truth, kept, np.array([1.0, 1.0, 0.0]), top=TOP).value == pytest.approx(0.5)
    assert np.isnan(recall(np.full((1, 3), np.nan), kept, np.ones(3), top=TOP).value)
