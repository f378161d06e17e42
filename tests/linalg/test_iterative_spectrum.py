"""Laws of the low-rank pictures and of the Gram forms, against dense linear algebra in float64."""

from __future__ import annotations

import pytest
import torch

from whence.errors import CurvatureError
from whence.linalg.iterative import (
    conjugate_gradient,
    datainf_damping,
    datainf_inverse,
    datainf_scores,
    kernel_inverse,
    kernel_scores,
    lanczos,
    matrix_apply,
    nystrom,
    shifted,
    woodbury_inverse,
)

TIGHT = 1e-10


def rows(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(size: int, rank: int) -> torch.Tensor:
    half = rows(rank, size, seed=7)
    return half.T @ half / rank


def eye(size: int) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64)


# --- Lanczos ------------------------------------------------------------------------------------------------------


def test_lanczos_with_all_steps_is_the_whole_spectrum():
    matrix = positive(12, 20) - 0.7 * eye(12)  # indefinite on purpose
    pairs = lanczos(matrix_apply(matrix), matrix[0], steps=12, keep=12)
    expected = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(pairs.values_R.sort().values, expected, rtol=0, atol=TIGHT)
    assert (pairs.values_R.abs().diff() <= 1e-12).all(), "sorted by absolute value"
    torch.testing.assert_close(pairs.vectors_RD @ pairs.vectors_RD.T, eye(12), rtol=0, atol=TIGHT)
    torch.testing.assert_close(pairs.vectors_RD @ matrix, pairs.values_R[:, None] * pairs.vectors_RD, rtol=0, atol=1e-9)


def test_lanczos_finds_repeated_eigenvalues_by_restarting():
    matrix = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    pairs = lanczos(matrix_apply(matrix), matrix[0], steps=6, keep=5)
    assert pairs.values_R.tolist() == pytest.approx([3, 3, 3, 1, 1])
    assert "restarts" in pairs.reason


def test_lanczos_residual_is_the_real_one():
    matrix = positive(40, 60)
    pairs = lanczos(matrix_apply(matrix), matrix[0], steps=10, keep=6)
    real = torch.linalg.vector_norm(pairs.vectors_RD @ matrix - pairs.values_R[:, None] * pairs.vectors_RD, dim=1)
    torch.testing.assert_close(pairs.residuals_R, real, rtol=0, atol=TIGHT)


def test_complement_makes_a_full_inverse_of_a_low_rank_matrix():
    matrix, block = positive(20, 5), rows(3, 20, seed=1)
    pairs = lanczos(matrix_apply(matrix), matrix[0], steps=20, keep=5)
    expected = torch.linalg.solve(matrix + 0.1 * eye(20), block.T).T
    torch.testing.assert_close(pairs.inverse(block, 0.1), expected, rtol=0, atol=1e-9)
    within = pairs.inverse_within(block)
    torch.testing.assert_close(within, block @ torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True), rtol=0, atol=1e-8)


def test_indefinite_and_undamped_inverses_are_explained():
    matrix = torch.diag(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    pairs = lanczos(matrix_apply(matrix), matrix[0], steps=3, keep=2)
    with pytest.raises(CurvatureError, match="indefinite: eigenvalue -1"):
        pairs.inverse(rows(1, 3), 0.5)
    with pytest.raises(CurvatureError, match="directions"):
        pairs.inverse(rows(1, 3), 0.0)
    with pytest.raises(CurvatureError, match="keep 0"):
        lanczos(matrix_apply(matrix), matrix[0], steps=3, keep=0)


# --- Nystrom ------------------------------------------------------------------------------------------------------


def test_nystrom_of_full_rank_is_the_matrix():
    matrix, block = positive(15, 30), rows(4, 15, seed=2)
    pairs = nystrom(matrix_apply(matrix), matrix[0], rank=15)
    again = (pairs.vectors_RD.T * pairs.values_R) @ pairs.vectors_RD
    torch.testing.assert_close(again, matrix, rtol=0, atol=1e-9)
    expected = torch.linalg.solve(matrix + 0.01 * eye(15), block.T).T
    torch.testing.assert_close(pairs.inverse(block, 0.01), expected, rtol=0, atol=1e-8)


def test_nystrom_of_the_matrix_rank_is_exact():
    matrix, block = positive(30, 6), rows(2, 30, seed=2)
    pairs = nystrom(matrix_apply(matrix), matrix[0], rank=8)
    expected = torch.linalg.solve(matrix + 0.01 * eye(30), block.T).T
    torch.testing.assert_close(pairs.inverse(block, 0.01), expected, rtol=1e-8, atol=1e-8)


def test_nystrom_preconditioner_is_the_inverse_up_to_a_factor_and_saves_steps():
    spectrum = torch.logspace(2, -2, 60, dtype=torch.float64)
    q = torch.linalg.qr(rows(60, 60, seed=3))[0]
    matrix, block, damping = (q * spectrum) @ q.T, rows(2, 60, seed=4), 1e-2
    pairs = nystrom(matrix_apply(matrix), matrix[0], rank=40)
    apply = shifted(matrix_apply(matrix), damping)
    plain = conjugate_gradient(apply, block, tolerance=1e-8, max_steps=500)
    fast = conjugate_gradient(apply, block, precondition=pairs.preconditioner(damping), tolerance=1e-8, max_steps=500)
    assert fast.converged and max(fast.steps) * 2 < max(plain.steps)
    full = nystrom(matrix_apply(matrix), matrix[0], rank=60)
    factor = float(full.values_R[-1]) + damping
    torch.testing.assert_close(
        full.preconditioner(damping)(block) / factor, full.inverse(block, damping), rtol=1e-6, atol=1e-6
    )


def test_nystrom_refuses_ranks_and_negative_matrices():
    matrix = -positive(10, 20)
    with pytest.raises(CurvatureError, match="negative curvature"):
        nystrom(matrix_apply(matrix), matrix[0], rank=4)
    for rank in (0, 11):
        with pytest.raises(CurvatureError, match="rank"):
            nystrom(matrix_apply(-matrix), matrix[0], rank=rank)


# --- Gram forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(6, 25), (25, 6), (8, 8)])
def test_woodbury_and_kernel_forms_are_the_dense_inverse(count, size):
    jacobian, block = rows(count, size), rows(3, size, seed=1)
    total = jacobian.T @ jacobian
    torch.testing.assert_close(
        woodbury_inverse(jacobian, block, 0.3),
        torch.linalg.solve(total + 0.3 * eye(size), block.T).T,
        rtol=0,
        atol=TIGHT,
    )
    torch.testing.assert_close(
        kernel_inverse(jacobian, block, 0.3),
        torch.linalg.solve(total / count + 0.3 * eye(size), block.T).T,
        rtol=0,
        atol=TIGHT,
    )


def test_kernel_scores_need_no_gradient():
    fit, queries, train = rows(7, 30), rows(2, 30, seed=1), rows(5, 30, seed=2)
    expected = kernel_inverse(fit, queries, 0.1) @ train.T
    got = kernel_scores(fit @ fit.T, queries @ fit.T, fit @ train.T, queries @ train.T, damping=0.1)
    torch.testing.assert_close(got, expected, rtol=0, atol=TIGHT)


def test_datainf_is_the_mean_of_inverses():
    fit, queries, train, damping = rows(9, 12), rows(2, 12, seed=1), rows(5, 12, seed=2), 0.2
    mean = sum(torch.linalg.inv(torch.outer(g, g) + damping * eye(12)) for g in fit) / 9
    torch.testing.assert_close(datainf_inverse(fit, queries, damping), queries @ mean, rtol=0, atol=TIGHT)
    got = datainf_scores(fit.square().sum(1), queries @ fit.T, fit @ train.T, queries @ train.T, damping=damping)
    torch.testing.assert_close(got, queries @ mean @ train.T, rtol=0, atol=TIGHT)


def test_datainf_of_one_row_is_exact_and_of_huge_damping_the_gradient_dot():
    fit, block = rows(1, 6), rows(2, 6, seed=1)
    torch.testing.assert_close(datainf_inverse(fit, block, 0.1), kernel_inverse(fit, block, 0.1), rtol=0, atol=TIGHT)
    torch.testing.assert_close(datainf_inverse(rows(5, 6), block, 1e9) * 1e9, block, rtol=1e-7, atol=1e-7)


def test_datainf_damping_is_relative_to_the_mean_eigenvalue():
    fit = rows(9, 12)
    mean_eigenvalue = float(torch.linalg.eigvalsh(fit.T @ fit / 9).mean())
    assert datainf_damping(fit.square().sum(1), 12) == pytest.approx(0.1 * mean_eigenvalue)


@pytest.mark.parametrize("inverse", [woodbury_inverse, kernel_inverse, datainf_inverse])
@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_must_be_positive(inverse, damping):
    with pytest.raises(CurvatureError, match="damping"):
        inverse(rows(2, 5), rows(1, 5), damping)
