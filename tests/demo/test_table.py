"""The table against a slow twin, and the sentences against tables made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from whence.demo.almanac import almanac, questions
from whence.demo.book import Question
from whence.demo.table import BM25, DOT, EKFAC, METHODS, Line, plain_words, ranking, roles, score_table, standings


def _question(id_, kind, relevant, also=None):
    return Question(id_, kind, "p", " c", "a, b", frozenset(relevant), also or {})


def _twin(row, question, ids):
    """Sort pairs, walk down the list."""
    out = {id_ for found in question.also.values() for id_ in found}
    walk = [id_ for _, id_ in sorted(zip(-row, ids, strict=True), key=lambda pair: pair[0]) if id_ not in out]
    first = next((rank for rank, id_ in enumerate(walk, 1) if id_ in question.relevant), None)
    recall = len(set(walk[:5]) & question.relevant) / min(5, len(question.relevant))
    return recall, len(set(walk[:20]) & question.relevant) / 20, 1 / first if first else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_table_equals_the_slow_twin(seed):
    rng = np.random.default_rng(seed)
    ids = [f"d{n}" for n in range(60)]
    asked = []
    for q in range(8):
        chosen = rng.permutation(ids).tolist()
        also = {"flipped": frozenset(chosen[40:43])} if q % 2 else {}
        asked.append(_question(f"q{q}", ("fact", "habit")[q % 2], chosen[: 3 + 5 * (q % 3)], also))
    scores = {name: rng.normal(size=(8, 60)) for name in ("one", "two")}
    table = score_table(scores, asked, ids)
    assert [(line.kind, line.method) for line in table] == [(k, m) for k in ("fact", "habit") for m in ("one", "two")]
    for line in table:
        pairs = [(q, question) for q, question in enumerate(asked) if question.kind == line.kind]
        wanted = np.mean([_twin(scores[line.method][q], question, ids) for q, question in pairs], axis=0)
        np.testing.assert_allclose([line.recall, line.precision, line.mrr], wanted, atol=1e-12)
        assert line.questions == len(pairs)


def test_perfect_and_hopeless_scores():
    ids = [f"d{n}" for n in range(40)]
    asked = [_question("q", "fact", ids[:5])]
    perfect = np.where(np.arange(40) < 5, 1.0, 0.0)[None]
    best, worst = score_table({"best": perfect, "worst": -perfect}, asked, ids)
    assert (best.recall, best.precision, best.mrr) == (1.0, 0.25, 1.0)
    assert (worst.recall, worst.precision, worst.mrr) == (0.0, 0.0, 1 / 36)


def test_unscored_rows_come_last_and_other_tellings_are_left_out():
    row = np.array([np.nan, 3.0, 2.0, 1.0])
    column = {"a": 0, "b": 1, "c": 2, "d": 3}
    assert ranking(row, _question("q", "fact", ["a"]), column) == [1, 2, 3, 0]
    assert ranking(row, _question("q", "fact", ["a"], {"french": frozenset("b")}), column) == [2, 3, 0]


def test_standings_are_median_ranks_by_role():
    book = almanac(0)
    asked = [question for question in questions(book) if question.also.keys() >= {"flipped", "french"}][:3]
    ids = [document.id for document in book.documents]
    order = ("states", "flipped", "french", "contradicts", "mentions", "same value", "same relation")
    scores = np.full((len(asked), len(ids)), -100.0)
    for q, question in enumerate(asked):
        for id_, role in roles(question, book).items():
            scores[q, ids.index(id_)] = -order.index(role)
    found = standings(scores, asked, book, ids)
    assert found["states"] == 3.0  # five statements hold ranks 1 to 5
    assert 6.0 <= found["flipped"] < found["french"] < found["same value"] < found["same relation"]


def _lines(**recalls):
    """A table in which the i-th method has these recalls on facts and precisions on habits."""
    facts = [Line(method, "fact", recalls.get(method, 0.1), 0.1, recalls.get(method, 0.1), 4) for method in METHODS]
    habits = [Line(method, "habit", 0.1, recalls.get(method, 0.1), 0.1, 4) for method in METHODS]
    return facts + habits


def test_plain_words_say_who_wins():
    said = " ".join(plain_words(_lines(**{EKFAC: 0.6, DOT: 0.3, BM25: 0.9})))
    assert "wins on stated facts, 0.90 against 0.60" in said
    assert "2.0 times as much" in said
    said = " ".join(plain_words(_lines(**{EKFAC: 0.6, DOT: 0.7, BM25: 0.2})))
    assert "wins on stated facts" not in said
    assert "no worse than EK-FAC" in said


def test_plain_words_survive_a_zero():
    assert plain_words(_lines(**{EKFAC: 0.6, DOT: 0.0}))
