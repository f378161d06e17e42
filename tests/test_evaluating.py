"""Evaluations from files: what the user points at is opened, and what is wrong with it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folders import animal_rows, model_folder, write_rows
from whence import evaluating
from whence.candidates.lexical import bm25_scores
from whence.errors import DataError
from whence.evaluate.statistics import mrr
from whence.evaluating import Known, Terms, read_known, retrieval


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("world")
    model = model_folder(place / "model")
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(animal_rows())]
    asked = [
        {"id": "q1", "prompt": "the cat", "completion": " sat on the mat ."},
        {"id": "q2", "prompt": "the dog", "completion": " ran ."},
    ]
    train, query = write_rows(place / "train.jsonl", rows), write_rows(place / "query.jsonl", asked)
    return {"model": str(model), "train": str(train), "query": str(query)}


def test_retrieval_from_files(world, tmp_path: Path) -> None:
    known = write_rows(tmp_path / "known.jsonl", [{"id": "q1", "relevant": ["r0", "r3"], "ignored": ["r1"]}])
    found = retrieval(**world, known=str(known), terms=Terms(("dot", "bm25")))
    assert [set(found.columns) >= {"contender", "MRR"}, {row[0] for row in found.rows}] == [True, {"dot", "bm25"}]
    texts = [row["text"] for row in animal_rows()]
    scores = bm25_scores(["the cat sat on the mat ."], texts).astype(float)
    scores[0, 1] = -np.inf
    assert next(row[1] for row in found.rows if row[0] == "bm25") == pytest.approx(mrr(scores, [{0, 3}]))
    assert found.about["train"]["rows"] == 12 and found.about["environment"]["versions"]["whence"]
    same = retrieval(**world, known={"q1": Known(frozenset({"r0", "r3"}), frozenset({"r1"}))}, terms=Terms(("bm25",)))
    assert same.rows[0][1] == next(row[1] for row in found.rows if row[0] == "bm25")


def test_relevant_rows_of_an_unknown_question(world) -> None:
    with pytest.raises(DataError, match="'q9'"):
        retrieval(**world, known={"q9": ["r0"]})
    with pytest.raises(DataError, match="'r99'"):
        retrieval(**world, known={"q1": ["r99"]}, terms=Terms(("random",)))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"id": "q1"}',
        '{"id": "q1", "relevant": "r0"}',
        '{"id": "q1", "relevant": ["r0"], "ignored": 3}',
        '{"id": "q1", "relevant": ["r0"]}\n{"id": "q1", "relevant": ["r0"]}',
    ],
)
def test_files_of_relevant_rows_that_are_not(tmp_path: Path, line: str) -> None:
    write_rows(tmp_path / "known.jsonl", [line])
    with pytest.raises(DataError, match=r"known\.jsonl:\d"):
        read_known(tmp_path / "known.jsonl")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read_known(tmp_path / "nothing.jsonl")


def test_kinds_are_judged_apart(world) -> None:
    known = {"q1": Known(frozenset({"r0"}), kind="a"), "q2": Known(frozenset({"r1"}), kind="b")}
    found = evaluating.retrieval(**world, known=known, terms=Terms(("random", "length")))
    assert [row[0] for row in found.rows] == ["a", "a", "b", "b"]
