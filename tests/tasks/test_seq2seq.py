"""Encoder and decoder: the model's own loss, two token axes of one length, shapes, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reference.task_models import bart, encoded, t5
from tasks.conftest import byte_level, row
from whence.errors import TaskError
from whence.gradients.capture import Capture
from whence.gradients.layers import find_layers
from whence.tasks.base import RowProblem, Setup
from whence.tasks.seq2seq import Seq2Seq


@pytest.mark.parametrize("make", [t5, bart], ids=["t5", "bart"])
def test_the_loss_is_the_models_own_times_its_tokens(make: Any) -> None:
    model, task, examples, _ = make()
    model.eval()
    for example in examples:
        batch = task.collate([example])
        with torch.no_grad():
            own = model(input_ids=batch.inputs["input_ids"], labels=batch.labels).loss * len(example.labels)
            ours = task.losses(task.outputs(model, batch), batch)
        assert float(ours) == pytest.approx(float(own), rel=1e-9)


def test_two_axes_of_one_length_are_told_apart() -> None:
    """Alone both sides have four tokens; beside a longer row the decoder is one wider."""
    model, task, _, _ = bart()
    texts = [{"input": "the cat sat", "target": "the cat sat"}, {"input": "the cat", "target": "the"}]
    batch = task.collate(encoded(task, texts))
    source, target = batch.other_masks[0], batch.mask
    assert source is not None and target is not None
    assert batch.inputs["input_ids"].shape == source.shape != target.shape
    assert target.shape == batch.labels.shape == batch.inputs["decoder_input_ids"].shape
    assert not target[:, -1].any()
    seen: dict[str, Any] = {}
    layers = find_layers(model)
    capture = Capture(layers, 2, target.shape[1], target, seen.__setitem__, batch.other_masks)
    with capture.attached():
        capture.backward(task.losses(task.outputs(model, batch), batch))
    counts = {name: outer.positions for name, outer in seen.items()}
    assert counts["model.encoder.layers.0.fc1"] == int(source.sum())
    assert counts["model.decoder.layers.0.fc1"] == int(target.sum())
    assert counts["model.decoder.layers.0.encoder_attn.k_proj"] == int(source.sum())
    assert counts["model.decoder.layers.0.encoder_attn.q_proj"] == int(target.sum())


def test_encoder_and_decoder_are_followed() -> None:
    for make in (t5, bart):
        names = find_layers(make()[0]).names
        assert any("encoder" in n for n in names) and any("decoder" in n for n in names)
        assert not any("lm_head" in n for n in names)


def test_shapes_of_rows() -> None:
    task = Seq2Seq(byte_level(), start=2)
    pair = task.encode(row(input="the cat", target="the dog"))
    same = task.encode(row(prompt="the cat", completion="the dog"))
    np.testing.assert_array_equal(pair.inputs["input_ids"], same.inputs["input_ids"])
    np.testing.assert_array_equal(pair.labels, same.labels)
    assert pair.inputs["decoder_input_ids"].tolist() == [2, *pair.labels[:-1].tolist()]
    asked = task.encode(row(instruction="Say hello.", input="the cat", output="the dog"))
    assert task.tokenizer.decode(asked.inputs["input_ids"], skip_special_tokens=True) == "Say hello.\n\nthe cat"
    wrapped = Seq2Seq(byte_level(), start=None).encode(row(input="the cat", target="the dog"))
    assert wrapped.inputs["decoder_input_ids"][0] == wrapped.labels[-1]
    for fields, code in (
        ({"input": "x", "target": None}, "null_text"),
        ({"input": "x"}, "missing_column"),
        ({"input": "\ud800", "target": "x"}, "tokenizer_error"),
    ):
        with pytest.raises(RowProblem) as caught:
            task.encode(row(**fields))
        assert caught.value.code == code


def test_each_side_has_its_limit() -> None:
    long = "the cat sat on the mat and the dog sat on the log"
    task = Seq2Seq(byte_level(), start=2, max_length=9, max_target=5)
    example = task.encode(row(input=long, target=long))
    assert (len(example.inputs["input_ids"]), len(example.labels)) == (9, 5)
    assert example.truncated > 0 and example.notes == ("truncated",)
    with pytest.raises(RowProblem, match="at most 5"):
        Seq2Seq(byte_level(), start=2, max_target=5, overlong="skip").encode(row(input="the", target=long))


def test_made_by_name() -> None:
    model = t5()[0]
    assert Seq2Seq.of(Setup(model, byte_level(), 20), max_target=7).limits() == (20, 7)
    model.config.decoder_start_token_id = None
    with pytest.raises(TaskError, match="how it begins"):
        Seq2Seq.of(Setup(model, byte_level()))
