"""Relative influence: the normaliser is the training example's, in both forms, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.models import source, tiny_llama, token_rows
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import OptionError
from whence.gradients.fisher import gradient_rows
from whence.linalg.damping import relative
from whence.scores.relative import movement, relative_scores, theta_relative_scores
from whence.scores.score import combine, pairwise, prepare_queries, self_influence

PATTERNS = ("*q_proj", "*down_proj")


@pytest.fixture
def train():
    return source(tiny_llama(), token_rows(8), PATTERNS)


@pytest.fixture
def parts(train):
    """Scores, inverse, and the same inverse as dense matrices with flat gradients in the source's order."""
    query = source(tiny_llama(), token_rows(3, seed=8), PATTERNS)
    method = get_method("ekfac")
    inverse = method.operator(fit(train, method, FitOptions()), Problem(train)).power(-1, relative(0.1))
    order = torch.tensor([n for batch in train.plan.batches for n in batch]).argsort()
    rows = {n: r[order] for n, r in gradient_rows(train).items()}
    moved = torch.cat([rows[n] @ inverse.layers[n].dense() for n in rows], dim=1)
    flat = torch.cat(list(rows.values()), dim=1)
    return pairwise(train, prepare_queries(query, inverse)), inverse, moved, flat


def test_theta_is_divided_by_how_far_the_row_moves_the_parameters(train, parts):
    values, inverse, moved, _ = parts
    lengths = movement(train, inverse)
    np.testing.assert_allclose(lengths, moved.norm(dim=1).numpy(), rtol=1e-9)
    np.testing.assert_allclose(theta_relative_scores(values, lengths), values / moved.norm(dim=1).numpy(), rtol=1e-9)


def test_l_is_divided_by_the_root_of_self_influence(train, parts):
    values, inverse, moved, flat = parts
    own = (moved * flat).sum(1).numpy()
    np.testing.assert_allclose(self_influence(train, inverse), own, rtol=1e-9)
    np.testing.assert_allclose(relative_scores(values, own), values / np.sqrt(own), rtol=1e-9)


@pytest.mark.parametrize("scores", [relative_scores, theta_relative_scores])
def test_the_normaliser_belongs_to_the_training_row(scores):
    """One of the query would rescale a row of the matrix, and could not change a ranking: columns it must be."""
    values, norms = np.array([[1.0, 1.0], [3.0, 3.0]]), np.array([4.0, 16.0])
    found = scores(values, norms)
    assert (found[:, 0] > found[:, 1]).all()
    np.testing.assert_allclose(found[1] / found[0], 3.0)


@pytest.mark.parametrize("scores", [relative_scores, theta_relative_scores])
def test_rows_without_any_effect_and_rows_without_a_score(scores):
    values = np.array([[0.0, 1.0, np.nan]])
    found = scores(values, np.array([0.0, np.nan, 1.0]))
    assert found[0, 0] == 0.0 and np.isnan(found[0, 1:]).all()


def test_combine_is_the_weighted_sum():
    parts = [np.array([[1.0, 2.0]]), np.array([[10.0, np.nan]])]
    found = combine(iter(parts), [0.5, 0.1])
    assert found[0, 0] == pytest.approx(1.5) and np.isnan(found[0, 1])
    assert parts[0].tolist() == [[1.0, 2.0]]  # not changed in place
    for wrong in ([], [1.0], [1.0, 1.0, 1.0]):
        with pytest.raises(OptionError, match="one weight per set"):
            combine(iter(parts), wrong)
