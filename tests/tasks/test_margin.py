"""Log-odds against their definition, for one label and for tokens."""

from __future__ import annotations

import pytest
import torch

from reference import task_models
from reference.models import mlp, number_rows, source, tiny_llama, token_rows
from whence.errors import TaskError
from whence.tasks.base import Batch
from whence.tasks.causal_lm import CausalLM
from whence.tasks.margin import Margin


def classifier_batch(labels):
    return Batch(tuple(map(str, range(len(labels)))), {}, torch.tensor(labels), None, False)


def test_one_label_is_the_log_odds(rng):
    logits = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    batch = classifier_batch([0, 2, 1, 1])
    p = logits.softmax(-1)[torch.arange(4), batch.labels]
    task = Margin(CausalLM())
    torch.testing.assert_close(task.measurements(logits, batch), -(p / (1 - p)).log())
    torch.testing.assert_close(task.doubts(logits, batch), 1 - p)


def test_a_sure_model_keeps_its_margin_and_gradient():
    """1 - p of a sure model is all rounding in float32; the margin is not."""
    logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    value = Margin(CausalLM()).measurements(logits, classifier_batch([0]))
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == pytest.approx(-40 + 0.6931, abs=1e-3)
    torch.testing.assert_close(slope, torch.tensor([[-1.0, 0.5, 0.5]]))


def test_tokens_are_summed_where_they_are_supervised(rng):
    live = source(tiny_llama(), token_rows(4))
    batch = live.task.collate([live.examples[i] for i in live.plan.batches[0]])
    outputs = live.task.outputs(live.model, batch)
    task = Margin(live.task)
    found, doubts = task.measurements(outputs, batch), task.doubts(outputs, batch)
    for b in range(len(batch)):
        places = [t for t in range(1, batch.labels.shape[1]) if batch.labels[b, t] >= 0]
        p = torch.stack([outputs[b, t - 1].softmax(-1)[batch.labels[b, t]] for t in places])
        torch.testing.assert_close(found[b], -(p / (1 - p)).log().sum())
        torch.testing.assert_close(doubts[b], (1 - p).mean())


@pytest.mark.parametrize("case", [task_models.t5, task_models.bart, task_models.tagger], ids=lambda c: c.__name__)
def test_labels_at_their_own_positions_are_not_shifted(case):
    model, own, examples, _ = case()
    batch, task = own.collate(examples), Margin(own)
    outputs = own.outputs(model, batch)
    found, doubts = task.measurements(outputs, batch), task.doubts(outputs, batch)
    for b in range(len(batch)):
        places = [t for t in range(batch.labels.shape[1]) if batch.labels[b, t] >= 0]
        p = torch.stack([outputs[b, t].softmax(-1)[batch.labels[b, t]] for t in places])
        torch.testing.assert_close(found[b], -(p / (1 - p)).log().sum())
        torch.testing.assert_close(doubts[b], (1 - p).mean())


def test_pairs_have_no_classes():
    model, own, examples, _ = task_models.preference()
    batch = own.collate(examples)
    with pytest.raises(TaskError, match="no classes"):
        Margin(own).measurements(own.outputs(model, batch), batch)


def test_everything_else_is_the_tasks_own():
    live = source(tiny_llama(), token_rows(3))
    task = Margin(live.task)
    batch = task.collate(live.examples)
    outputs = task.outputs(live.model, batch)
    assert torch.equal(task.losses(outputs, batch), live.task.losses(outputs, batch))
    assert torch.equal(task.sample(outputs, batch, 3).labels, live.task.sample(outputs, batch, 3).labels)
    assert task.name == "causal_lm" and task.fingerprint()["measurement"] == "margin"


def test_no_classes_is_explained():
    live = source(mlp(), number_rows(2))
    batch = live.task.collate(live.examples)
    with pytest.raises(TaskError, match="no classes"):
        Margin(live.task).measurements(live.task.outputs(live.model, batch), batch)
