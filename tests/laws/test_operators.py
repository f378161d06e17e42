"""Operators: apply = dense · vec, power(-1) = the inverse, whitening, symmetry, every damping against its formula."""

from __future__ import annotations

import pytest
import torch

from whence.errors import CurvatureError, OptionError
from whence.linalg.damping import absolute, factored, parse_damping, relative
from whence.linalg.matrix_batch import Full
from whence.linalg.operators import Blocks, Dense, Diagonal, Eigenbasis, Identity, Kronecker, eigh

OUT, IN = 3, 4
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def spd(rng: torch.Generator, n: int) -> torch.Tensor:
    x = torch.randn(n, n, generator=rng, dtype=torch.float64)
    return x @ x.T + 0.1 * torch.eye(n, dtype=torch.float64)


def basis(rng: torch.Generator, n: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0]


OPERATORS = {
    "diagonal": lambda rng: Diagonal(torch.rand(OUT, IN, generator=rng, dtype=torch.float64)),
    "kronecker": lambda rng: Kronecker(spd(rng, OUT), spd(rng, IN)),
    "eigenbasis": lambda rng: Eigenbasis(
        basis(rng, OUT), basis(rng, IN), torch.rand(OUT, IN, generator=rng, dtype=torch.float64)
    ),
    "dense": lambda rng: Dense(spd(rng, OUT * IN), OUT, IN),
}


@pytest.fixture(params=OPERATORS)
def operator(request, rng):
    return OPERATORS[request.param](rng)


def batch(rng: torch.Generator) -> Full:
    return Full(torch.randn(5, OUT, IN, generator=rng, dtype=torch.float64))


def test_apply_is_dense_times_row_major_vector(operator, rng):
    x = batch(rng)
    wanted = (x.full().flatten(1) @ operator.dense().T).view(-1, OUT, IN)
    torch.testing.assert_close(operator.apply(x).full(), wanted, **EXACT)


def test_whitened_dot_products_are_the_operator(operator, rng):
    x, y = batch(rng), batch(rng)
    wanted = x.dot(operator.apply(y))
    torch.testing.assert_close(operator.whiten(x).dot(operator.whiten(y)), wanted, **EXACT)


def test_dense_is_symmetric_and_positive(operator):
    torch.testing.assert_close(operator.dense(), operator.dense().T, **EXACT)
    assert torch.linalg.eigvalsh(operator.dense()).min() > -1e-12


@pytest.mark.parametrize("damping", [absolute(0.03), relative(0.1)], ids=str)
def test_power_minus_one_is_the_damped_inverse(operator, damping):
    dense = operator.dense()
    shift = damping.value * (1.0 if damping.kind == "absolute" else float(dense.diagonal().mean()))
    wanted = torch.linalg.inv(dense + shift * torch.eye(OUT * IN, dtype=torch.float64))
    torch.testing.assert_close(operator.power(-1, damping).dense(), wanted, **EXACT)


def test_half_powers_multiply_to_the_inverse(operator):
    damping = relative(0.2)
    half = operator.power(-0.5, damping).dense()
    torch.testing.assert_close(half @ half, operator.power(-1, damping).dense(), **EXACT)


def test_factored_damping_is_martens_and_grosse(rng):
    op, value = Kronecker(spd(rng, OUT), spd(rng, IN)), 0.07
    mean_g, mean_a = op.left_OO.diagonal().mean(), op.right_II.diagonal().mean()
    lam, pi = value * mean_g * mean_a, (mean_a / mean_g).sqrt()
    wanted = torch.kron(
        torch.linalg.inv(op.left_OO + lam.sqrt() / pi * torch.eye(OUT, dtype=torch.float64)),
        torch.linalg.inv(op.right_II + pi * lam.sqrt() * torch.eye(IN, dtype=torch.float64)),
    )
    inverse = op.power(-1, factored(value))
    assert isinstance(inverse, Kronecker), "factored damping keeps gradients in outer-product form"
    torch.testing.assert_close(inverse.dense(), wanted, **EXACT)
    torch.testing.assert_close(op.eigen().power(-1, factored(value)).dense(), wanted, **EXACT)


def test_factored_damping_is_never_less_than_relative(rng):
    op = Kronecker(spd(rng, OUT), spd(rng, IN))
    gap = op.power(-1, relative(0.1)).dense() - op.power(-1, factored(0.1)).dense()
    assert torch.linalg.eigvalsh(gap).min() >= -1e-12


def test_damping_is_a_value_and_redamping_never_accumulates(operator):
    before = operator.dense().clone()
    first = operator.power(-1, relative(0.1)).dense()
    operator.power(-1, relative(10.0))
    torch.testing.assert_close(operator.power(-1, relative(0.1)).dense(), first, rtol=0, atol=0)
    torch.testing.assert_close(operator.dense(), before, rtol=0, atol=0)


def test_identity_ignores_damping(rng):
    x = batch(rng)
    assert Identity(OUT, IN).power(-1, relative(0.1)).apply(x) is x


def test_a_layer_without_curvature_contributes_nothing(rng):
    dead = Eigenbasis(basis(rng, OUT), basis(rng, IN), torch.zeros(OUT, IN, dtype=torch.float64))
    assert dead.power(-1, relative(0.1)).apply(batch(rng)).full().abs().max() == 0
    zero = Kronecker(torch.zeros(OUT, OUT, dtype=torch.float64), torch.zeros(IN, IN, dtype=torch.float64))
    assert zero.power(-1, factored(0.1)).apply(batch(rng)).full().abs().max() == 0


def test_relative_damping_is_per_layer(rng):
    """LogIX computes the mean of the first module and reuses it for every later one."""
    small, large = (
        Diagonal(torch.rand(OUT, IN, dtype=torch.float64)),
        Diagonal(1e6 * torch.rand(OUT, IN, dtype=torch.float64)),
    )
    together = Blocks({"small": small, "large": large}).power(-1, relative(0.1))
    torch.testing.assert_close(together.layers["large"].dense(), large.power(-1, relative(0.1)).dense(), **EXACT)


def test_eigh_recomposes_and_clamps(rng):
    a = torch.randn(8, 2, generator=rng, dtype=torch.float32)
    lam, q = eigh(a @ a.T)  # rank 2: in float32 the smallest eigenvalues would come out negative
    assert lam.min() >= 0 and q.dtype == torch.float32
    torch.testing.assert_close((q * lam) @ q.T, a @ a.T, rtol=1e-5, atol=1e-5)


def test_eigh_names_what_is_wrong():
    with pytest.raises(CurvatureError, match="not finite"):
        eigh(torch.full((2, 2), float("nan")))
    with pytest.raises(CurvatureError, match="below 0"):
        eigh(torch.diag(torch.tensor([1.0, -0.5])))


def test_non_finite_curvature_names_the_layer():
    bad = Blocks({"model.layers.0.mlp": Diagonal(torch.full((OUT, IN), float("inf")))})
    with pytest.raises(CurvatureError, match=r"model\.layers\.0\.mlp"):
        bad.power(-1, relative(0.1))


@pytest.mark.parametrize("text", ["0", "relative:0", "absolute:-1", "relative:nan", "relative:inf"])
def test_damping_must_be_above_zero(text):
    with pytest.raises(OptionError, match="damping"):
        parse_damping(text)


@pytest.mark.parametrize("text", ["tikhonov:0.1", "relative:", "much"])
def test_damping_must_be_understood(text):
    with pytest.raises(OptionError):
        parse_damping(text)


def test_damping_is_written_as_it_is_read():
    for damping in (absolute(1e-3), relative(), factored(0.5)):
        assert parse_damping(str(damping)) == damping
    assert parse_damping(0.3) == relative(0.3)
