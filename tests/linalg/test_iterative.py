"""Laws of the solvers: each against dense linear algebra in float64."""

from __future__ import annotations

import pytest
import torch

from whence.errors import CurvatureError
from whence.linalg.iterative import (
    LissaSettings,
    block_conjugate_gradient,
    conjugate_gradient,
    lissa,
    lissa_scale,
    matrix_apply,
    neumann_filter,
    power_iteration,
    shifted,
    true_residuals,
)
from whence.linalg.packing import Layout

TIGHT = 1e-10


def positive(size: int, *, rank: int | None = None, seed: int = 0) -> torch.Tensor:
    """A positive semi-definite matrix with a spectrum spread over three decades."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, -3, size, dtype=torch.float64)
    if rank is not None:
        values[rank:] = 0.0
    return (q * values) @ q.T


def block(rows: int, size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- packing ------------------------------------------------------------------------------------------------------


def test_layout_packs_and_unpacks_without_moving_a_number():
    layout = Layout.of({"a": (2, 3), "b": (4, 1)})
    parts = {"b": block(5, 4).view(5, 4, 1), "a": block(5, 6, seed=2).view(5, 2, 3)}
    flat = layout.pack(parts)
    assert flat.shape == (5, layout.size) == (5, 10)
    back = layout.unpack(flat)
    assert all(torch.equal(back[name], parts[name]) for name in parts)
    assert layout.spread({"a": 2.0, "b": 3.0}, flat).tolist() == [2.0] * 6 + [3.0] * 4


# --- conjugate gradients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", [conjugate_gradient, block_conjugate_gradient])
def test_cg_is_the_dense_solve(solve):
    matrix, rhs = positive(30) + 1e-2 * torch.eye(30, dtype=torch.float64), block(4, 30)
    solution = solve(matrix_apply(matrix), rhs, tolerance=1e-12, max_steps=200)
    assert solution.converged
    torch.testing.assert_close(solution.x_KD, torch.linalg.solve(matrix, rhs.T).T, rtol=0, atol=1e-9)
    measured = true_residuals(matrix_apply(matrix), solution.x_KD, rhs)
    assert float(measured.max()) < 1e-9
    assert solution.history.shape == (max(solution.steps) + 1, 4)


def test_cg_steps_are_optimal_in_the_energy_norm():
    """After j steps CG minimises the energy over the Krylov space: compare with the explicit Galerkin solve."""
    matrix, rhs = positive(20) + 1e-2 * torch.eye(20, dtype=torch.float64), block(1, 20)
    for steps in (1, 3, 5):
        krylov = torch.stack([torch.linalg.matrix_power(matrix, j) @ rhs[0] for j in range(steps)])
        basis = torch.linalg.qr(krylov.T)[0]
        expected = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ rhs[0])
        got = conjugate_gradient(matrix_apply(matrix), rhs, max_steps=steps, tolerance=1e-15).x_KD[0]
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)


def test_a_column_does_not_depend_on_its_company():
    matrix, rhs = positive(25) + 1e-2 * torch.eye(25, dtype=torch.float64), block(3, 25)
    rhs[1] *= 1e6
    together = conjugate_gradient(matrix_apply(matrix), rhs, max_steps=7)
    for k in range(3):
        alone = conjugate_gradient(matrix_apply(matrix), rhs[k : k + 1], max_steps=7)
        torch.testing.assert_close(together.x_KD[k], alone.x_KD[0], rtol=1e-12, atol=0)
        assert together.steps[k] == alone.steps[0]


def test_shared_search_space_needs_fewer_products():
    matrix, rhs = positive(60) + 1e-4 * torch.eye(60, dtype=torch.float64), block(12, 60)
    single = conjugate_gradient(matrix_apply(matrix), rhs, tolerance=1e-8, max_steps=200)
    shared = block_conjugate_gradient(matrix_apply(matrix), rhs, tolerance=1e-8, max_steps=200)
    assert single.converged and shared.converged
    assert max(shared.steps) * 3 < max(single.steps)


def test_shared_search_space_survives_duplicate_and_zero_queries():
    matrix, rhs = positive(20) + 1e-2 * torch.eye(20, dtype=torch.float64), block(4, 20)
    rhs[1], rhs[3] = rhs[0], 0.0
    solution = block_conjugate_gradient(matrix_apply(matrix), rhs, tolerance=1e-11, max_steps=60)
    assert solution.converged
    torch.testing.assert_close(solution.x_KD, torch.linalg.solve(matrix, rhs.T).T, rtol=0, atol=1e-8)


def test_a_good_preconditioner_saves_steps_and_changes_no_answer():
    matrix = positive(40) * 100 + 1e-2 * torch.eye(40, dtype=torch.float64)
    close = matrix + 0.01 * torch.diag(torch.linspace(0, 1, 40, dtype=torch.float64))
    inverse, rhs = torch.linalg.inv(close), block(2, 40)
    plain = conjugate_gradient(matrix_apply(matrix), rhs, tolerance=1e-10, max_steps=400)
    fast = conjugate_gradient(
        matrix_apply(matrix), rhs, precondition=matrix_apply(inverse), tolerance=1e-10, max_steps=400
    )
    assert max(fast.steps) * 2 < min(plain.steps)
    torch.testing.assert_close(fast.x_KD, plain.x_KD, rtol=1e-6, atol=1e-7)
    values, vectors = torch.linalg.eigh(inverse)
    half = (vectors * values.sqrt()) @ vectors.T
    shared = block_conjugate_gradient(
        matrix_apply(matrix), rhs, half_precondition=matrix_apply(half), tolerance=1e-12, max_steps=400
    )
    torch.testing.assert_close(shared.x_KD, plain.x_KD, rtol=1e-6, atol=1e-7)


def test_cg_says_why_it_has_not_converged():
    matrix = positive(50) + 1e-9 * torch.eye(50, dtype=torch.float64)
    solution = conjugate_gradient(matrix_apply(matrix), block(2, 50), tolerance=1e-12, max_steps=3)
    assert solution.statuses == ("max_steps", "max_steps") and solution.steps == (3, 3)
    assert "2 of 2 stopped at the step limit" in solution.reason and "more steps" in solution.reason
    with pytest.raises(CurvatureError, match="step limit"):
        solution.require()
    assert solution.require("max_steps") is solution
    assert solution.report()["steps"] == [3, 3]


@pytest.mark.parametrize("solve", [conjugate_gradient, block_conjugate_gradient])
def test_indefinite_matrix_is_noticed_and_explained(solve):
    values = torch.linspace(-0.5, 2, 20, dtype=torch.float64)
    solution = solve(matrix_apply(torch.diag(values)), block(2, 20), max_steps=50)
    assert "indefinite" in solution.statuses
    assert "negative curvature" in solution.reason and "Gauss-Newton" in solution.reason
    with pytest.raises(CurvatureError) as error:
        solution.require()
    assert "larger damping" in error.value.try_
    assert torch.isfinite(solution.x_KD).all()


def test_zero_right_hand_side_needs_no_step():
    rhs = torch.zeros(2, 10, dtype=torch.float64)
    rhs[0] = 1.0
    solution = conjugate_gradient(matrix_apply(torch.eye(10, dtype=torch.float64) * 3), rhs)
    assert solution.steps == (1, 0) and solution.converged
    assert torch.equal(solution.x_KD[1], rhs[1])
    empty = conjugate_gradient(matrix_apply(torch.eye(10, dtype=torch.float64)), rhs[:0])
    assert empty.x_KD.shape == (0, 10) and empty.reason == "nothing to solve"


def test_a_preconditioner_that_is_not_positive_is_refused():
    with pytest.raises(CurvatureError, match="not positive"):
        conjugate_gradient(lambda x: x, block(1, 5), precondition=lambda x: -x)


@pytest.mark.parametrize("bad", [{"tolerance": 0.0}, {"tolerance": -1.0}, {"max_steps": 0}])
def test_settings_that_cannot_work_are_refused(bad):
    with pytest.raises(CurvatureError, match="tolerance"):
        conjugate_gradient(lambda x: x, block(1, 5), **bad)


def test_float32_reaches_float32_accuracy():
    matrix = (positive(30) + 1e-2 * torch.eye(30, dtype=torch.float64)).float()
    solution = conjugate_gradient(matrix_apply(matrix), block(2, 30).float(), tolerance=1e-4, max_steps=200)
    assert solution.converged and solution.x_KD.dtype == torch.float32


# --- LiSSA --------------------------------------------------------------------------------------------------------


def test_power_iteration_finds_the_largest_size():
    matrix = torch.diag(torch.tensor([-5.0, 3.0, 1.0], dtype=torch.float64))
    found = power_iteration(matrix_apply(matrix), matrix[0], steps=200, tolerance=1e-10)
    assert found.value == pytest.approx(-5.0, abs=1e-8) and found.residual <= 1e-10
    assert power_iteration(lambda x: 0 * x, matrix[0]).value == 0.0


def test_lissa_converges_to_the_damped_solve():
    matrix, rhs = positive(15), block(3, 15)
    scale = lissa_scale([matrix_apply(matrix)], rhs[0], damping=0.05)
    assert scale >= 1.05
    solution = lissa(lambda _, x: x @ matrix, rhs, LissaSettings(scale=scale, damping=0.05, depth=2000))
    expected = torch.linalg.solve(matrix + 0.05 * torch.eye(15, dtype=torch.float64), rhs.T).T
    assert solution.converged
    torch.testing.assert_close(solution.x_KD, expected, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("depth", [1, 7, 100])
def test_stopping_early_is_exactly_the_spectral_filter(depth):
    matrix, rhs = positive(15), block(2, 15)
    settings = LissaSettings(scale=1.5, damping=0.05, depth=depth, tolerance=1e-12)
    solution = lissa(lambda _, x: x @ matrix, rhs, settings)
    values, vectors = torch.linalg.eigh(matrix)
    gain = neumann_filter(values + 0.05, scale=1.5, depth=depth)
    torch.testing.assert_close(solution.x_KD, ((rhs @ vectors) * gain) @ vectors.T, rtol=0, atol=TIGHT)
    assert solution.about["extra_damping"] == pytest.approx(1.5 / depth)
    assert "extra damping of about" in solution.reason


def test_filter_without_curvature_counts_the_steps():
    assert neumann_filter(torch.zeros(1), scale=2.0, depth=9).item() == pytest.approx(5.0)


def test_divergence_is_proved_and_explained():
    matrix = positive(10) * 100
    solution = lissa(lambda _, x: x @ matrix, block(2, 10), LissaSettings(scale=10.0, damping=0.1, depth=5000))
    assert set(solution.statuses) == {"diverged"} and solution.steps[0] < 100
    assert "larger scale" in solution.reason and torch.isfinite(solution.x_KD).all()
    with pytest.raises(CurvatureError, match="diverged"):
        solution.require("max_steps")


def test_unfinished_series_says_so():
    matrix = positive(10)
    solution = lissa(lambda _, x: x @ matrix, block(1, 10), LissaSettings(scale=2.0, damping=1e-3, depth=10))
    assert solution.statuses == ("max_steps",) and "step limit" in solution.reason


def test_minibatches_average_to_the_solve():
    """Changing matrices: the expectation over repeats is near the solve of the mean matrix."""
    halves = [positive(8, seed=s) for s in (3, 4)]
    mean, rhs = (halves[0] + halves[1]) / 2, block(1, 8)
    scale = lissa_scale([matrix_apply(h) for h in halves], rhs[0], damping=0.5) * 5
    settings = LissaSettings(scale=scale, damping=0.5, depth=300, repeats=4)
    solution = lissa(lambda j, x: x @ halves[j % 2], rhs, settings)
    expected = torch.linalg.solve(mean + 0.5 * torch.eye(8, dtype=torch.float64), rhs.T).T
    torch.testing.assert_close(solution.x_KD, expected, rtol=0, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "bad", [{"scale": 0.0}, {"damping": -0.1}, {"depth": 0}, {"repeats": 0}, {"scale": 0.01, "damping": 0.1}]
)
def test_lissa_refuses_settings_that_cannot_converge(bad):
    settings = {"scale": 1.0, "damping": 0.1, "depth": 10, "repeats": 1} | bad
    with pytest.raises(CurvatureError, match="LiSSA"):
        lissa(lambda _, x: x, block(1, 4), LissaSettings(**settings))


def test_shifted_takes_one_number_per_coordinate():
    damping = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(shifted(lambda x: 0 * x, damping)(torch.ones(1, 3, dtype=torch.float64))[0], damping)
