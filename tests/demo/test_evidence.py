"""The Almanac as evidence: what is known about its questions, and a small example of proximal responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from whence.demo import evidence
from whence.demo.almanac import almanac, questions
from whence.demo.world import World
from whence.evaluating import PbrfSettings, Sample, Terms
from whence.watch import Silent


@pytest.fixture(scope="module")
def world() -> World:
    book = almanac(0)
    return World(book, questions(book), [], "", Path())


def test_what_is_known(world: World) -> None:
    found = evidence.known(world)
    ids = {document.id for document in world.book.documents}
    assert list(found) == [question.id for question in world.asked]
    for question in world.asked:
        told = found[question.id]
        assert told.relevant == question.relevant and told.relevant <= ids
        assert not told.relevant & told.ignored and told.ignored <= ids
        assert told.kind in ("facts", "habits")
    hidden = set().union(*(told.ignored for told in found.values()))
    roles = {d.role for d in world.book.documents if d.id in hidden}
    assert roles and "states" not in roles


def test_labels_are_volumes(world: World) -> None:
    rows = evidence.labelled()
    assert [row["label"] for row in rows] == [document.source for document in world.book.documents]
    assert len({row["id"] for row in rows}) == len(rows)


def test_responses_of_a_small_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"QUESTIONS": 4, "ROWS": 80, "WORDS": 20, "HIDDEN": 2}.items():
        monkeypatch.setattr(evidence, name, value)
    sample = Sample(4, PbrfSettings(share=0.01, tolerance=1e-6))
    found = evidence.almanac_pbrf(terms=Terms(("dot", "random")), sample=sample, watch=Silent())
    assert found.rows[0][0] == "exact (ceiling)" and found.rows[0][1] > 0.999
    assert found.rows[0][4] == pytest.approx(1.0, abs=0.05)
    assert len(found.values["query_ids"]) == 4 and len(found.values["train_ids"]) == 4
