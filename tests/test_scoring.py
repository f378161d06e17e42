"""Methods through the front door: their own norms and measurements, relative scores, and what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import whence
from folders import animal_rows, tiny_llama, word_tokenizer
from whence.errors import OptionError

QUESTION = [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran on ."}]


def ask(**options: Any) -> whence.Scores:
    given = {"train": animal_rows(), "query": QUESTION, "tokens": 0, **options}
    return whence.attribute((tiny_llama().double(), word_tokenizer()), **given)


@pytest.mark.parametrize("method", ["logra:size=3", "logra:size=3,kind=pca", "trackstar:size=3", "projected:size=3",
                                    "trak:size=3"])  # fmt: skip
def test_projected_methods_answer_questions(method: str) -> None:
    found = ask(method=method)
    assert found.values.shape == (2, 12) and np.isfinite(found.values).all()
    assert np.array_equal(ask(method=method).values, found.values)
    assert not np.allclose(ask(method=f"{method}{',seed=1'}").values, found.values) or "pca" in method


def test_a_method_brings_its_own_norm() -> None:
    found = ask(method="trackstar:size=3")
    assert found.about["normalise"] == "cosine" and np.abs(found.values).max() <= 1 + 1e-9
    plain = ask(method="trackstar:size=3,unit=false")
    assert plain.about["normalise"] == "none"
    np.testing.assert_allclose(ask(method="trackstar:size=3,unit=false", normalise="cosine").values, found.values)


def test_a_small_layer_is_said_aloud() -> None:
    said = ask(method="logra:size=8").about["warnings"]
    assert any("kept whole" in warning for warning in said)


def test_theta_and_relative_divide_columns() -> None:
    """Both normalisers are the training row's: the same for both questions."""
    raw = ask().values
    for how in ("relative", "theta"):
        ratio = raw / ask(normalise=how).values
        np.testing.assert_allclose(ratio[0], ratio[1], rtol=1e-6)
        assert (ratio > 0).all() and not np.allclose(ratio[0], ratio[0, 0])
    top = ask(normalise="theta", top_k=2)
    assert [r.train_id for r in top.proponents(0, 2)] == [r.train_id for r in ask(normalise="theta").proponents(0, 2)]


@pytest.mark.parametrize("how", ["cosine", "relative", "theta"])
def test_no_norm_without_layers_of_its_own(how: str) -> None:
    with pytest.raises(OptionError, match="no per-layer inverse"):
        ask(method="trak:size=3", normalise=how)


def test_token_scores_of_a_margin_leave_the_question_out() -> None:
    found = ask(method="trak:size=3", tokens=2)
    assert found.token_tracks and not found.query_tracks
