"""One step on a row, against the same step written out; nothing is left moved; what is finished is not done again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import examples, llama
from whence.errors import OptionError, StoreError
from whence.evaluate import tailpatch as module
from whence.evaluate.journal import Journal
from whence.evaluate.tailpatch import StepSettings, first_rows, tailpatch
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM


def source_of(model, rows) -> LiveGradients:
    plan = plan_batches([e.length for e in rows], token_budget=40)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model))


@pytest.fixture
def world():
    model = llama(layers=1)
    return source_of(model, examples(6, seed=1)), source_of(model, examples(3, seed=2))


def loss_of(model, source: LiveGradients, n: int) -> torch.Tensor:
    batch = source.task.collate([source.examples[n]])
    return source.task.losses(source.task.outputs(model, batch), batch).sum()


def stepped_by_hand(train: LiveGradients, n: int, rate: float, optimiser: str):
    """A copy of the model after one step on row n; the first AdamW step is rate * g / (|g| + eps)."""
    model = deepcopy(train.model)
    (loss_of(model, train, n) / train.examples[n].loss_tokens).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= rate * (p.grad if optimiser == "sgd" else p.grad / (p.grad.abs() + 1e-8))
    return model


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_it_is_the_step_written_out(world, optimiser) -> None:
    train, queries = world
    state = {name: value.clone() for name, value in train.model.state_dict().items()}
    scores = np.random.default_rng(0).normal(size=(3, 6))
    settings = StepSettings(optimiser, rate=0.05, k=2)
    found = tailpatch(train, queries, {"ekfac": scores}, settings=settings)
    said = found.values["contenders"]["ekfac"]
    for q in range(3):
        best = np.argsort(-scores[q])[:2]
        assert said["rows"][q] == [train.ids[n] for n in best]
        for place, n in enumerate(best):
            after = stepped_by_hand(train, n, 0.05, optimiser)
            wanted = loss_of(train.model, queries, q) - loss_of(after, queries, q)
            assert said["nats"][q, place] == pytest.approx(wanted.item(), rel=1e-6, abs=1e-9)
    assert found.rows[0][1] == pytest.approx(1000 * said["nats"].mean())
    before = np.array([loss_of(train.model, queries, q).item() for q in range(3)])
    points = 100 * (np.exp(-(before[:, None] - said["nats"])) - np.exp(-before)[:, None]).mean()
    assert found.rows[0][3] == pytest.approx(points, rel=1e-6)
    for name, value in train.model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.requires_grad and p.grad is None for p in train.model.parameters())


def test_a_small_step_is_the_gradient_dot_product(world) -> None:
    train, queries = world
    grads = {}
    for which, source in (("row", train), ("query", queries)):
        for n in range(len(source.examples)):
            parts = torch.autograd.grad(loss_of(train.model, source, n), list(train.model.parameters()))
            grads[which, n] = torch.cat([part.flatten() for part in parts])
    found = tailpatch(train, queries, {"x": np.arange(18.0).reshape(3, 6)}, settings=StepSettings("sgd", 1e-6, 6))
    nats = found.values["contenders"]["x"]["nats"] / 1e-6
    for q in range(3):
        for place, n in enumerate(range(5, -1, -1)):
            wanted = grads["query", q] @ grads["row", n] / train.examples[n].loss_tokens
            assert nats[q, place] == pytest.approx(wanted.item(), rel=1e-3, abs=1e-3)


def test_first_rows_breaks_ties_at_random_and_leaves_unknown_out() -> None:
    scores = np.array([[1.0, np.nan, 3.0, 2.0]])
    assert first_rows(scores, 4).tolist() == [[2, 3, 0, -1]]
    tied = np.zeros((400, 10))
    counts = np.bincount(first_rows(tied, 1)[:, 0], minlength=10)
    assert counts.min() > 10 and counts.max() < 90


def test_finished_rows_are_not_stepped_on_again(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, queries = world
    scores = {"x": np.random.default_rng(0).normal(size=(3, 6))}
    settings = StepSettings(rate=0.01, k=2)
    first = tailpatch(train, queries, scores, settings=settings, journal=Journal.open(tmp_path, {"seed": 0}))
    calls = []
    real = module._stepped
    monkeypatch.setattr(module, "_stepped", lambda *given, **how: calls.append(given[1].id) or real(*given, **how))
    again = tailpatch(train, queries, scores, settings=settings, journal=Journal.open(tmp_path, {"seed": 0}))
    assert calls == [] and again.rows == first.rows
    more = {**scores, "y": np.random.default_rng(9).normal(size=(3, 6))}
    journal = Journal.open(tmp_path, {"seed": 0})
    known = set(journal.records)
    wider = tailpatch(train, queries, more, settings=settings, journal=journal)
    assert {name: row for name, *row in wider.rows}["x"] == list(first.rows[0][1:])
    assert set(calls) <= set(train.ids) and len(calls) < 6 and known <= set(journal.records)
    with pytest.raises(StoreError, match="seed"):
        Journal.open(tmp_path, {"seed": 1})
    (tmp_path / "item-zz.json").write_text("{")
    with pytest.raises(StoreError, match="item-zz"):
        Journal.open(tmp_path, {"seed": 0})


@pytest.mark.parametrize("given", [{"optimiser": "adam"}, {"rate": 0.0}, {"k": 0}])
def test_settings_that_cannot_be(given) -> None:
    with pytest.raises(OptionError):
        StepSettings(**given)


def test_of_a_frozen_model_the_followed_layers_move(world) -> None:
    train, queries = world
    for p in train.model.parameters():
        p.requires_grad_(False)
    followed = source_of(train.model, train.examples)
    layers = find_layers(train.model, ("*q_proj",))
    found = tailpatch(
        LiveGradients(train.model, train.task, train.examples, train.plan, layers),
        queries,
        {"x": np.eye(3, 6)},
        settings=StepSettings("sgd", 0.05, 1),
    )
    weight = followed.layers.layers[layers.names[0]].modules[0].weight.requires_grad_(True)
    (grad,) = torch.autograd.grad(loss_of(train.model, train, 0) / train.examples[0].loss_tokens, weight)
    before = loss_of(train.model, queries, 0).item()
    with torch.no_grad():
        weight -= 0.05 * grad
        after = loss_of(train.model, queries, 0).item()
    assert found.values["contenders"]["x"]["nats"][0, 0] == pytest.approx(before - after, rel=1e-6)
