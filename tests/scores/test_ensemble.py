"""TRAK over models: kernel and doubts apart, and with one model the method itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.classes import Classes
from reference.models import mlp
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.curvature.trak import margins
from whence.errors import OptionError
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.ensemble import TrakPart, doubts, trak_part, trak_scores, with_model
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches


def source(model, count, seed):
    rng = np.random.default_rng(seed)
    rows = [
        Example(f"{seed}-{n}", {"features": rng.standard_normal(4)}, np.asarray(rng.integers(0, 3)), 1, 1)
        for n in range(count)
    ]
    plan = plan_batches([1] * count, token_budget=4)
    return LiveGradients(model, Classes(), rows, plan, find_layers(model, ("*",)))


@pytest.fixture
def sides():
    model = mlp(outputs=3)
    return source(model, 3, 1), source(model, 11, 0)


def test_one_model_is_the_method(sides):
    query, train = sides
    part = trak_part(query, train, method="trak:size=3,seed=2", damping=relative(0.2))
    method = get_method("trak:size=3,seed=2")
    inverse = method.operator(fit(train, method), Problem(train)).power(-1, relative(0.2))
    wanted = pairwise(train, prepare_queries(margins(query), inverse))
    np.testing.assert_allclose(part.scores, wanted, rtol=1e-9)
    np.testing.assert_allclose(trak_scores([part]), wanted, rtol=1e-9)


def test_doubts_are_one_minus_p(sides):
    _, train = sides
    features = torch.from_numpy(np.stack([e.inputs["features"] for e in train.examples]))
    p = train.model(features).softmax(-1)[torch.arange(11), torch.tensor([int(e.labels) for e in train.examples])]
    np.testing.assert_allclose(doubts(train), (1 - p).detach().numpy(), rtol=1e-12)
    assert all(parameter.requires_grad for parameter in train.model.parameters())


def test_averages_are_taken_apart():
    kernels, q = np.random.default_rng(0).standard_normal((2, 3, 4)), np.random.default_rng(1).random((2, 4))
    found = trak_scores(TrakPart(k, d) for k, d in zip(kernels, q, strict=True))
    np.testing.assert_allclose(found, (kernels[0] + kernels[1]) / 2 * (q[0] + q[1]) / 2)
    assert not np.allclose(found, (kernels[0] * q[0] + kernels[1] * q[1]) / 2)


def test_the_same_rows_on_another_model(sides):
    _, train = sides
    other = mlp(outputs=3)
    with torch.no_grad():
        other[0].weight.mul_(2.0)
    moved = with_model(train, other)
    assert moved.ids == train.ids and moved.layers.names == train.layers.names
    assert not np.allclose(doubts(moved), doubts(train))


def test_no_models_and_other_methods_are_explained(sides):
    with pytest.raises(OptionError, match="no models"):
        trak_scores([])
    with pytest.raises(OptionError, match="ensemble of ekfac"):
        trak_part(*sides, method="ekfac")
