"""The funnel end to end: exact scores of fewer rows, told what was lost; questions at a low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whence
from folders import animal_rows, edit_weights, model_folder, tiny_llama, word_tokenizer
from whence.errors import OptionError, StoreError

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran on ."}]


def attribute(model: Any = None, **given: Any) -> whence.Scores:
    settings = {"train": animal_rows(), "query": QUESTION, "tokens": 0, "batch_tokens": 32, "fit_rows": "all", **given}
    return whence.attribute(model or (tiny_llama().double(), word_tokenizer()), **settings)


@pytest.fixture(scope="module")
def truth() -> whence.Scores:
    return attribute()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("funnel") / "i"
    settings = {"train": animal_rows(), "compression": {"budget": 100}, "batch_tokens": 32, "fit_rows": "all"}
    whence.build_index((tiny_llama().double(), word_tokenizer()), out=place, **settings)
    return place


@pytest.mark.parametrize("stages", ["bm25:3", "tfidf:25%", "activation:3", "embedding:3", "bm25+activation:3"])
def test_candidates_are_scored_exactly_and_nobody_else(truth: whence.Scores, stages: str) -> None:
    found = attribute(candidates=stages, audit=0)
    scored = np.isfinite(found.values)
    assert (scored.sum(1) >= 3).all() and not scored.all()
    np.testing.assert_allclose(found.values[scored], truth.values[scored], rtol=1e-9)
    out = {id_ for id_, n in zip(found.train_ids, scored.any(0), strict=True) if not n}
    assert {id_ for id_, view in found.train_rows.items() if view.status == "not a candidate"} == out
    assert found.n_train == truth.n_train and found.about["rows"]["scored"] == int(scored.any(0).sum())
    assert np.isnan(found.about["funnel"]["stages"][0]["recall"])
    assert any("is not known" in warning for warning in found.about["warnings"])


def test_with_all_rows_audited_recall_is_counted(truth: whence.Scores) -> None:
    found = attribute(candidates="bm25:4", audit="all")
    np.testing.assert_allclose(found.values, truth.values, rtol=1e-9)
    stage = found.about["funnel"]["stages"][0]
    order, words = np.argsort(-truth.values, axis=1), truth.lexical
    assert words is not None
    kept = [set(np.argsort(-words[q], kind="stable")[:4].tolist()) for q in range(2)]
    shares = [len(kept[q] & set(order[q][:10].tolist())) / 10 for q in range(2)]
    assert stage["recall"] == pytest.approx(np.mean(shares)) and stage["recall_low"] == stage["recall"]
    assert stage["share"] == pytest.approx(4 / len(truth.train_ids))


def test_an_index_as_a_stage_finds_the_exact_top(truth: whence.Scores, index: Path) -> None:
    found = attribute(candidates=f"bm25:100%,index@{index}:3".replace("100%", "99%"), audit="all", top_k=3)
    for q in range(2):
        best = {line.train_id for line in truth.proponents(q, 3)}
        assert {line.train_id for line in found.proponents(q, 3)} == best
    first, second = found.about["funnel"]["stages"]
    assert second["recall"] == pytest.approx(0.3) and first["recall"] > second["recall"]  # 3 of the exact top 10


def test_mixtures_and_their_filters(index: Path) -> None:
    for stages in ("bm25:3", "activation:3", f"index@{index}:3"):
        found = attribute(candidates=stages, audit=0, combine="mean")
        assert found.values.shape[0] == 1 and np.isfinite(found.values).sum() == 3


def test_other_methods_rank_the_candidates_too() -> None:
    whole = attribute(method="ekfac_cg:steps=2", damping="relative:10")
    found = attribute(method="ekfac_cg:steps=2", damping="relative:10", candidates="bm25:3", audit=0)
    scored = np.isfinite(found.values)
    np.testing.assert_allclose(found.values[scored], whole.values[scored], rtol=1e-6)


def test_what_cannot_be_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="bm26"):
        attribute(model="nowhere", candidates="bm26:5")
    with pytest.raises(OptionError, match="checkpoints"):
        attribute(model="nowhere", candidates="bm25:5", checkpoints=str(tmp_path))


def test_an_index_of_other_rows_or_another_model_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="data"):
        attribute(train=animal_rows()[:-1], candidates=f"index@{index}:3")
    other = model_folder(tmp_path / "m", seed=3)
    edit_weights(other)
    with pytest.raises(StoreError, match="something else"):
        attribute(model=str(other), candidates=f"index@{index}:3")


def test_questions_at_a_low_rank_end_to_end(truth: whence.Scores) -> None:
    near, far = attribute(query_rank=6), attribute(query_rank=1)
    held = far.about["queries"]
    assert held["rank"] == 1 and held["bytes"] < held["whole_bytes"] and 0 < held["lowest_energy"] < 1
    assert "queries" not in truth.about
    errors = [np.abs(s.values - truth.values).max() / np.abs(truth.values).max() for s in (near, far)]
    assert errors[0] < errors[1] and errors[1] > 1e-6
    assert attribute(query_rank="none").values == pytest.approx(truth.values)
