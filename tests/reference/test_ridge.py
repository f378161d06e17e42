"""The twins themselves: leave-one-out of ridge by refit, in closed form, and by influence with the leverage."""

from __future__ import annotations

import numpy as np
import pytest

from reference.ridge import Ridge, lds


@pytest.fixture(scope="module")
def ridge() -> Ridge:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5))
    return Ridge(x, x @ rng.standard_normal(5) + 0.3 * rng.standard_normal(60), 1e-3)


def test_leave_one_out_has_a_closed_form(ridge):
    for n in (0, 17, 59):
        np.testing.assert_allclose(ridge.leave_one_out_closed(n), ridge.leave_one_out(n), rtol=0, atol=1e-12)


def test_influence_underestimates_by_the_leverage(ridge):
    """Influence / N = refit x (1 - h): slope 1 after the correction."""
    w = ridge.fit()
    gradients = (ridge.x_NF @ w - ridge.y_N)[:, None] * ridge.x_NF
    influence = gradients @ np.linalg.inv(ridge.hessian) / len(ridge.y_N)
    refit = np.stack([ridge.leave_one_out(n) - w for n in range(len(ridge.y_N))])
    np.testing.assert_allclose(influence / (1 - ridge.leverage())[:, None], refit, rtol=0, atol=1e-12)
    assert 0.8 < np.linalg.norm(influence) / np.linalg.norm(refit) < 1.0


def test_brute_force_lds_of_the_truth_is_nearly_one(ridge):
    rng = np.random.default_rng(1)
    queries_x, queries_y = rng.standard_normal((4, 5)), rng.standard_normal(4)
    w = ridge.fit()
    query_gradients = (queries_x @ w - queries_y)[:, None] * queries_x
    gradients = (ridge.x_NF @ w - ridge.y_N)[:, None] * ridge.x_NF
    scores = query_gradients @ np.linalg.inv(ridge.hessian) @ gradients.T
    subsets = [rng.permutation(60) >= 6 for _ in range(40)]

    def measure(keep: np.ndarray) -> np.ndarray:
        return 0.5 * (queries_x @ ridge.fit(keep) - queries_y) ** 2

    assert lds(measure, scores, subsets).min() > 0.9
    assert lds(measure, -scores, subsets).max() < -0.9
