"""Scores by layer are each layer's own, in every precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.models import source, tiny_llama, token_rows
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.linalg.damping import relative
from whence.scores.score import Pairwise, prepare_queries
from whence.scores.sinks import AllScores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_add_up_and_are_what_each_scores_alone(dtype):
    """In float32 on the CPU, the layer seen first once shared its memory with the running sum and became the total."""
    model = tiny_llama().to(dtype)
    train, query = source(model, token_rows(5)), source(model, token_rows(2, seed=3))
    method = get_method("identity")
    inverse = method.operator(fit(train, method), Problem(train)).power(-1, relative(0.1))
    queries = prepare_queries(query, inverse)

    def scores(names):
        sink = AllScores.empty(2, train.ids, len(names))
        chosen = source(model, token_rows(5), tuple(names))
        grads = {name: queries.grads[name] for name in names}
        chosen.visit(Pairwise(type(queries)(queries.ids, grads, queries.measurements), sink, keep_layers=True))
        return sink

    names = list(queries.grads)
    together = scores(names)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6  # layers are kept in float32
    np.testing.assert_allclose(together.per_layer.sum(-1), together.values, rtol=tolerance, atol=tolerance)
    for n, name in enumerate(names):
        np.testing.assert_allclose(together.per_layer[..., n], scores([name]).values, rtol=tolerance, atol=tolerance)
