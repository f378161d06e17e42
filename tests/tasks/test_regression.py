"""Squared error on feature vectors."""

from __future__ import annotations

import pytest
import torch

from tasks.conftest import row
from whence.errors import TaskError
from whence.tasks.base import RowProblem, Task, get_task, move, task_names
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import SequenceClassification
from whence.tasks.regression import Regression
from whence.tasks.rows import Row, read_rows


def test_half_squared_error_summed_over_outputs():
    task = Regression()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    rows = read_rows([{"features": [1.0, 2, 3], "target": [0.5, -1]}, {"features": [0, 1, 0], "target": [2, 2]}])
    assert rows.shape == "features"
    batch = task.collate([task.encode(r) for r in rows.rows])
    outputs = task.outputs(model, batch)
    expected = 0.5 * ((outputs - batch.labels) ** 2).sum(1)
    torch.testing.assert_close(task.losses(outputs, batch), expected)
    assert batch.mask is None
    assert task.losses(task.outputs(model.float(), batch), batch).dtype == torch.float32


def test_single_numbers_and_flat_predictions():
    task = Regression()
    batch = task.collate([task.encode(row(features=2.0, target=3))])
    assert task.losses(torch.tensor([1.0], dtype=torch.float64), batch).tolist() == [2.0]


def test_faults():
    task = Regression()
    with pytest.raises(RowProblem):
        task.encode(row(features=[float("inf")], target=1))
    with pytest.raises(TaskError, match="one width"):
        task.collate([task.encode(row(features=[1.0], target=1)), task.encode(row(features=[1.0, 2.0], target=1))])
    with pytest.raises(TaskError, match="predicts 2"):
        task.losses(torch.zeros(1, 2), task.collate([task.encode(row(features=[1.0], target=1))]))


def test_sampled_targets_are_normal_around_the_prediction():
    task = Regression()
    rows = [Row(f"r{n}", {"features": [0.0], "target": [0.0, 0.0]}) for n in range(2000)]
    batch = task.collate([task.encode(r) for r in rows])
    drawn = task.sample(torch.full((2000, 2), 5.0), batch, 0).labels
    assert (drawn.mean(0) - 5).abs().max() < 0.1
    assert (drawn.std(0) - 1).abs().max() < 0.1
    alone = task.collate([task.encode(rows[7])])
    assert torch.equal(task.sample(torch.full((1, 2), 5.0), alone, 0).labels[0], drawn[7])


def test_the_folder_is_the_registry():
    assert {"causal_lm", "classification", "regression"} <= set(task_names())
    assert get_task("causal_lm") is CausalLM
    for task in (CausalLM(), SequenceClassification(None), Regression()):
        assert isinstance(task, Task)
        assert task.fingerprint()["task"] == task.name in task_names()


def test_move_keeps_everything():
    batch = Regression().collate([Regression().encode(row(features=[1.0], target=1))])
    assert torch.equal(move(batch, "cpu").labels, batch.labels)
