"""What a classifier says of its labels, against gradients taken row by row with autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whence.errors import OptionError
from whence.evaluate.bag import BagSettings, WordTokenizer, train_bag
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.judging import Terms, judge, judge_unseen, neighbours
from whence.tasks.batches import plan_batches
from whence.tasks.classification import SequenceClassification
from whence.tasks.rows import Row
from whence.watch import Silent

TEXTS = ["fine film", "great plot", "poor film", "dull plot", "great poor film", "fine dull", "awful", "lovely plot"]
LABELS = [1, 1, 0, 0, 1, 0, 2, 1]
PLAIN = Terms(method="identity")  # no curvature: every score is a plain product, up to one factor


@pytest.fixture(scope="module")
def sources() -> tuple[LiveGradients, LiveGradients]:
    tokenizer = WordTokenizer.of(TEXTS)
    task = SequenceClassification(tokenizer, {"a": 0, "b": 1, "c": 2})
    rows = [
        task.encode(Row(f"r{n}", {"text": t, "label": y})) for n, (t, y) in enumerate(zip(TEXTS, LABELS, strict=True))
    ]
    model = train_bag(task, rows, sizes=(tokenizer.size, 3), settings=BagSettings(hidden=4, epochs=2)).double()

    def source(part):
        return LiveGradients(
            model, task, part, plan_batches([e.length for e in part], token_budget=6), find_layers(model, ("*",))
        )

    return source(rows[:6]), source(rows[6:])


def gradient(source: LiveGradients, n: int, label: int | None = None) -> np.ndarray:
    """One row's gradient, perhaps under another label."""
    batch = source.task.collate([source.examples[n]])
    batch = batch if label is None else batch.with_labels(torch.tensor([label]))
    loss = source.task.losses(source.task.outputs(source.model, batch), batch).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(source.model.parameters()))]).numpy()


def proportional(left: np.ndarray, right: np.ndarray) -> None:
    """Equal up to one positive factor (the identity's damping scales everything alike)."""
    factor = float((left * right).sum() / (right * right).sum())
    assert factor > 0
    np.testing.assert_allclose(left, factor * right, rtol=1e-8, atol=1e-12)


def test_suspicions_and_merits_are_products_of_gradients(sources):
    train, held = sources
    found = judge(train, held, PLAIN, classes=3, watch=Silent())
    own = np.array([gradient(train, n) for n in range(6)])
    asked = np.mean([gradient(held, n) for n in range(2)], axis=0)
    proportional(found.parts["self"], (own * own).sum(1))
    proportional(found.parts["validation"], -(own @ asked))
    proportional(found.merits_CN, np.array([[gradient(train, n, c) @ asked for n in range(6)] for c in range(3)]))
    assert found.least == 0.0


def test_rows_never_seen_are_judged_by_their_own_gradient_and_loss(sources):
    train, held = sources
    found = judge_unseen(train, held, PLAIN, classes=3)
    for n, given in enumerate(LABELS[6:]):
        squared = [float((gradient(held, n, c) ** 2).sum()) for c in range(3)]
        np.testing.assert_allclose(found.parts["self"][n], squared[given] / np.mean(squared), rtol=1e-8)
    batch = held.task.collate(held.examples)
    logs = torch.log_softmax(held.task.outputs(held.model, batch), 1).detach().numpy()
    np.testing.assert_allclose(found.merits_CN, logs.T, rtol=1e-10)
    alone = judge(train, None, PLAIN, classes=3, watch=Silent())
    assert set(alone.parts) == {"self"} and alone.least == -np.inf


def test_neighbours_are_the_ends_of_the_relative_scores(sources):
    train, _ = sources
    own = np.array([gradient(train, n) for n in range(6)])
    scores = own @ own.T / np.linalg.norm(own, axis=1)[None]
    found = neighbours(train, ["r4", "r1"], PLAIN, count=2)
    for n in (1, 4):
        others = [m for m in np.argsort(-scores[n]).tolist() if m != n]
        assert found[f"r{n}"][0] == tuple(f"r{m}" for m in others if scores[n, m] > 0)[:2]
        assert found[f"r{n}"][1] == tuple(f"r{m}" for m in others[::-1] if scores[n, m] < 0)[:2]


def test_a_method_without_layers_of_its_own_is_refused(sources):
    with pytest.raises(OptionError, match="block-diagonal"):
        judge(sources[0], None, Terms(method="cg"), classes=3, watch=Silent())
