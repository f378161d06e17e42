"""Retrieval against the demo's own judgement, question by question, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from whence.demo.book import Question
from whence.demo.table import score_table
from whence.errors import DataError
from whence.evaluate.comparing import is_baseline, lead
from whence.evaluate.retrieval import Provenance, retrieval

IDS = tuple(f"row-{n}" for n in range(60))


def provenance(rng: np.random.Generator, count: int) -> tuple[Provenance, list[Question]]:
    relevant, ignored, asked = [], [], []
    for q in range(count):
        drawn = rng.permutation(60)
        mine, other = (frozenset(IDS[n] for n in part) for part in (drawn[:5], drawn[5:9]))
        relevant.append(mine)
        ignored.append(other)
        kind = "fact" if q % 2 else "habit"
        asked.append(Question(f"q{q}", kind, "", "", "", mine, {"mentions": other}))
    kinds = tuple(question.kind for question in asked)
    return Provenance(tuple(relevant), tuple(ignored), kinds), asked


def test_it_judges_as_the_demo_does():
    rng = np.random.default_rng(0)
    known, asked = provenance(rng, 12)
    scores = {"ekfac": rng.normal(size=(12, 60)), "random": rng.random((12, 60))}
    scores["ekfac"][:, 7] = np.nan
    found = retrieval(scores, known, train_ids=IDS, query_ids=[q.id for q in asked], k=5)
    wanted = {(line.kind, line.method): line for line in score_table(scores, asked, IDS)}
    assert found.columns[:3] == ("questions", "contender", "MRR")
    assert len(found.rows) == 4
    for kind, name, mrr, _, recall, _ in found.rows:
        assert mrr == pytest.approx(wanted[kind, name].mrr)
        assert recall == pytest.approx(wanted[kind, name].recall)
    assert [row[0] for row in found.rows] == ["habit", "habit", "fact", "fact"]
    curve = found.charts[1].curves[0]
    assert curve.y[curve.x.index(5.0)] == pytest.approx(wanted["habit", curve.name].recall)  # 5 of 5 relevant fit in 5
    growing = [curve.y[curve.x.index(k)] for k in (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)]
    assert growing == sorted(growing)


def test_the_best_comes_first_and_the_lead_is_said():
    known = Provenance((frozenset({"a"}),) * 8)
    good, bad = np.tile([3.0, 2, 1], (8, 1)), np.tile([1.0, 2, 3], (8, 1))
    found = retrieval({"bm25": bad, "ekfac": good}, known, train_ids=("a", "b", "c"), query_ids=list("12345678"))
    assert [row[0] for row in found.rows] == ["ekfac", "bm25"]
    assert [row[1] for row in found.rows] == pytest.approx([1.0, 1 / 3])
    assert "best method ekfac 1" in found.words[0] and "the method is ahead" in found.words[0]
    turned = retrieval({"bm25": good, "ekfac": bad}, known, train_ids=("a", "b", "c"), query_ids=list("12345678"))
    assert "the baseline is ahead" in turned.words[0]


def test_a_question_about_nothing_does_not_count():
    known = Provenance((frozenset({"a"}), frozenset()))
    found = retrieval({"x": np.array([[1.0, 0], [0, 1]])}, known, train_ids=("a", "b"), query_ids=("p", "q"))
    assert found.rows[0][1] == 1.0
    assert any("1 questions have no relevant row" in sentence for sentence in found.words)
    with pytest.raises(DataError):
        retrieval({"x": np.zeros((1, 2))}, Provenance((frozenset(),)), train_ids=("a", "b"), query_ids=("q",))


def test_unknown_ids_are_named():
    known = Provenance((frozenset({"row-60"}),))
    with pytest.raises(DataError, match="'row-60'"):
        retrieval({"x": np.zeros((1, 60))}, known, train_ids=IDS, query_ids=("q",))
    with pytest.raises(DataError):
        retrieval({"x": np.zeros((2, 60))}, Provenance((frozenset({IDS[0]}),)), train_ids=IDS, query_ids=("p", "q"))


def test_a_lead_within_chance_is_no_lead():
    rng = np.random.default_rng(1)
    a = rng.normal(size=30)
    said = lead({"ekfac": a + 0.01 * rng.normal(size=30), "bm25": a}, "MRR")
    assert "could be chance" in said
    assert lead({"ekfac": a}, "MRR") == ""
    assert [is_baseline(n) for n in ("bm25", "shuffled", "shuffled:dot", "neighbours:bm25", "dot")] == [True] * 4 + [
        False
    ]
