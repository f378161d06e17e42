"""Questions beyond one completion: spans, sets, contrasts, logit differences, measurements, the model's own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import whence
from folders import animal_rows, model_folder, write_rows
from whence.api import trace
from whence.errors import DataError, OptionError, TaskError
from whence.options import trace_request
from whence.tasks.causal_lm import CausalLM
from whence.tasks.measured import with_measurement
from whence.watch import Silent

torch.set_num_threads(1)
PROMPT = "the cat sat on"
SAME = {"dtype": "float64", "method": "identity", "tokens": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(model_folder(tmp_path_factory.mktemp("questions") / "model"))


def values(model, query, **extra):
    return whence.attribute(model, train=animal_rows(6), query=query, **{**SAME, **extra})


def one(response, prompt=PROMPT):
    return {"prompt": prompt, "response": response}


def test_spans_of_a_response_add_up(model):
    whole = values(model, one(" the mat ."))
    parts = [values(model, one(" the mat ."), span=span) for span in ("0:4", "5:10")]
    np.testing.assert_allclose(sum(p.values for p in parts), whole.values, rtol=1e-6, atol=1e-9)
    assert parts[0].about["question"] == {"span": "0:4"}
    track = parts[0].query_tracks["query:1"]
    text = parts[0].query_rows["query:1"].text
    assert [text[a:b] for (a, b), masked in zip(track.spans, track.masked, strict=True) if not masked] == ["the"]


@pytest.mark.parametrize("span", ["nonsense", "3", "5:2"])
def test_a_span_is_characters_of_the_response(model, span):
    with pytest.raises(OptionError, match="span"):
        values(model, one(" the mat ."), span=span)
    with pytest.raises(TaskError, match="no token"):
        values(model, one(" the mat ."), span="900:1000")


def test_a_span_ends_within_a_response(model):
    """Behind the only response, or the longest: refused. Behind a shorter one, or open: all that follows."""
    with pytest.raises(OptionError, match=r"(?s)'0:2000' ends behind.*of which 10 are.*--span 0:10, or 0:"):
        values(model, one(" the mat ."), span="0:2000")
    asked = [one(" the mat ."), one(" the")]
    whole = values(model, asked)
    for span in ("0:10", "0:"):
        np.testing.assert_array_equal(values(model, asked, span=span).values, whole.values)
    with pytest.raises(OptionError, match="0:11"):
        values(model, asked, span="0:11")


def test_a_span_ends_within_the_tokens_that_were_kept(model):
    """A response cut by ``max_length`` is explained as far as it goes; no text is shown without a token."""
    cut, shown = {"max_length": 6}, ""

    class Ear(Silent):
        def note(self, kind, text, **facts):
            nonlocal shown
            shown = facts["characters"] if kind == "span" else shown

    kept = values(model, one(" the mat ."), span="0:", watch=Ear(), **cut)
    assert " the mat .".startswith(shown) and 0 < len(shown) < 10
    np.testing.assert_array_equal(values(model, one(" the mat ."), span=f"0:{len(shown)}", **cut).values, kept.values)
    with pytest.raises(OptionError, match=rf"of which {len(shown)} are in the tokens that were kept"):
        values(model, one(" the mat ."), span="0:10", **cut)


def test_a_set_is_the_mean_of_its_questions(model):
    asked = [one(" the mat ."), one(" the log ."), one(" a tree")]
    each = values(model, asked)
    together = values(model, asked, combine="mean")
    assert together.query_ids == ("all questions together",)
    np.testing.assert_allclose(together.values[0], each.values.mean(0), rtol=1e-6, atol=1e-9)
    assert "the log" in together.query_rows["all questions together"].text
    assert together.token_tracks and not together.query_tracks


def test_a_contrast_is_a_difference(model):
    asked = [one(" the mat ."), one(" the log .")]
    each = values(model, asked)
    against = values(model, asked, combine="contrast")
    np.testing.assert_allclose(against.values[0], each.values[0] - each.values[1], rtol=1e-5, atol=1e-8)
    with pytest.raises(OptionError, match="contrast of 3"):
        values(model, [*asked, one(" a tree")], combine="contrast")


def test_one_response_against_another_is_their_logit_difference(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{row["text"]}"}}\n' for row in animal_rows(6)))
    asked = {"model": model, "data": [str(rows)], "prompt": PROMPT, "response": " mat", "against": " log", **SAME}
    found = trace(trace_request(asked))
    tokenizer = AutoTokenizer.from_pretrained(model)
    mat, log = (tokenizer.convert_tokens_to_ids(word) for word in ("mat", "log"))

    def log_minus_mat(lm, batch):
        logits = lm(**batch.inputs).logits[:, 3]
        return logits[:, log] - logits[:, mat]

    task = with_measurement(CausalLM(tokenizer), log_minus_mat)
    measured = values(model, one(" mat"), task=task)
    np.testing.assert_allclose(found.values, measured.values, rtol=1e-6, atol=1e-9)
    assert measured.about["question"] == {"measurement": "log_minus_mat"}
    assert measured.token_tracks and not measured.query_tracks


@pytest.mark.parametrize("wrong", [lambda m, b: m(**b.inputs).logits.sum(), lambda m, b: torch.zeros(len(b))])
def test_a_measurement_is_one_differentiable_number_each(model, wrong):
    task = with_measurement(CausalLM(AutoTokenizer.from_pretrained(model)), wrong)
    with pytest.raises(TaskError):
        values(model, one(" mat"), task=task)


def test_the_model_answers_for_itself(model):
    found = values(model, {"prompt": PROMPT}, generate=3)
    text = found.query_rows["query:1"].text
    assert text.startswith(PROMPT) and len(text.split()) > len(PROMPT.split())
    again = values(model, one(text.removeprefix(PROMPT)))
    np.testing.assert_allclose(found.values, again.values, rtol=1e-6)


def test_a_file_of_prompts_is_answered_row_by_row(model, tmp_path):
    rows = [
        {"prompt": PROMPT},
        {"id": "own", "prompt": "the dog ran", "response": " on the log ."},
        {"prompt": "a bird"},
    ]
    path = write_rows(tmp_path / "asked.jsonl", rows)
    found = values(model, str(path), generate=3)
    assert found.query_ids == ("asked:1", "own", "asked:3")
    alone = values(model, {"prompt": PROMPT}, generate=3)
    np.testing.assert_allclose(found.values[0], alone.values[0], rtol=1e-9)  # batched with others or not
    assert found.query_rows["own"].text == "the dog ran on the log ."
    complete = write_rows(tmp_path / "complete.jsonl", [{"prompt": PROMPT, "completion": " the mat ."}])
    kept = values(model, str(complete), generate=3)
    assert kept.query_rows["complete:1"].location.endswith("complete.jsonl:1")
    broken = write_rows(tmp_path / "broken.jsonl", [{"prompt": PROMPT}, "{nonsense"])
    with pytest.raises(DataError, match="line 2"):
        values(model, str(broken), generate=3)
