"""Every row of the table in ``linalg/matrix_batch.py``: Outer against Full, and against plain loops."""

from __future__ import annotations

import pytest
import torch

from whence.linalg import matrix_batch
from whence.linalg.matrix_batch import Full, Outer, concat_rows, concat_tokens

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def outer(rng: torch.Generator, batch: int = 5, tokens: int = 4, outputs: int = 3, inputs: int = 6) -> Outer:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return Outer(draw(batch, tokens, outputs), draw(batch, tokens, inputs))


def looped(x: Outer) -> torch.Tensor:
    """The definition: a sum over tokens of outer products, written as loops."""
    batch, outputs, inputs = x.shape
    result = torch.zeros(batch, outputs, inputs, dtype=torch.float64)
    for b in range(batch):
        for t in range(x.g_BTO.shape[1]):
            result[b] += torch.outer(x.g_BTO[b, t], x.a_BTI[b, t])
    return result


def test_full_is_the_sum_of_outer_products(rng):
    x = outer(rng)
    torch.testing.assert_close(x.full(), looped(x), **EXACT)


def test_sided_multiplies_both_sides(rng):
    x = outer(rng)
    left, right = (torch.randn(n, m, generator=rng, dtype=torch.float64) for n, m in ((2, 3), (4, 6)))
    wanted = torch.einsum("po,boi,ri->bpr", left, looped(x), right)
    torch.testing.assert_close(x.sided(left, right).full(), wanted, **EXACT)
    torch.testing.assert_close(Full(looped(x)).sided(left, right).full(), wanted, **EXACT)
    torch.testing.assert_close(x.sided(None, None).full(), looped(x), **EXACT)


def test_scaled_and_sum_of_squares(rng):
    x, weights = outer(rng), torch.rand(3, 6, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(x.scaled(weights).full(), looped(x) * weights, **EXACT)
    torch.testing.assert_close(x.sum_of_squares(), looped(x).square().sum(0), **EXACT)


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("other_form", ["outer", "full"])
def test_dot_is_the_frobenius_product_on_every_route(rng, tokens, other_form):
    x, y = outer(rng, tokens=tokens), outer(rng, batch=7, tokens=2)
    other = y if other_form == "outer" else Full(looped(y))
    wanted = torch.einsum("boi,qoi->bq", looped(x), looped(y))
    torch.testing.assert_close(x.dot(other), wanted, **EXACT)
    torch.testing.assert_close(other.dot(x), wanted.T, **EXACT)


@pytest.mark.parametrize("tokens", [1, 40])
def test_squared_norm_is_the_diagonal_of_dot(rng, tokens):
    x = outer(rng, tokens=tokens)
    torch.testing.assert_close(x.squared_norm(), x.dot(x).diagonal(), **EXACT)
    torch.testing.assert_close(Full(looped(x)).squared_norm(), x.dot(x).diagonal(), **EXACT)


def test_forming_in_pieces_changes_nothing(rng, monkeypatch):
    x, y = outer(rng, tokens=40), outer(rng, batch=7)
    wanted = x.dot(y), x.squared_norm(), x.sum_of_squares()
    monkeypatch.setattr(matrix_batch, "FORMED_ELEMENTS", 20)  # one matrix has 18 entries
    assert len(list(x.pieces())) == 5
    for value, target in zip((x.dot(y), x.squared_norm(), x.sum_of_squares()), wanted, strict=True):
        torch.testing.assert_close(value, target, **EXACT)


def test_bias_is_a_column_of_ones(rng):
    x = outer(rng)
    with_bias = Outer(x.g_BTO, torch.cat([x.a_BTI, torch.ones(5, 4, 1, dtype=torch.float64)], -1))
    torch.testing.assert_close(with_bias.full()[..., :-1], looped(x), **EXACT)
    torch.testing.assert_close(with_bias.full()[..., -1], x.g_BTO.sum(1), **EXACT)


def test_padding_rows_of_zeros_change_nothing(rng):
    x = outer(rng)
    padded = Outer(torch.nn.functional.pad(x.g_BTO, (0, 0, 0, 3)), torch.nn.functional.pad(x.a_BTI, (0, 0, 0, 3)))
    torch.testing.assert_close(padded.full(), looped(x), **EXACT)
    torch.testing.assert_close(padded.squared_norm(), x.squared_norm(), **EXACT)


def test_tied_uses_are_a_longer_sum(rng):
    x, y = outer(rng), outer(rng, tokens=2)
    torch.testing.assert_close(concat_tokens([x, y]).full(), looped(x) + looped(y), **EXACT)
    assert concat_tokens([x, y]).count == 5 * 4 + 5 * 2


def test_tokens_moved_into_the_batch_add_up(rng):
    x = outer(rng)
    per_token = x.tokens()
    assert per_token.shape == (20, 3, 6)
    torch.testing.assert_close(per_token.full().view(5, 4, 3, 6).sum(1), looped(x), **EXACT)


def test_low_rank_query_is_an_outer_whose_tokens_are_the_rank(rng):
    x, query = outer(rng), torch.randn(3, 6, generator=rng, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(query, full_matrices=False)
    low = Outer((u * s).T[None], vh[None])
    torch.testing.assert_close(x.dot(low), x.dot(Full(query[None])), **EXACT)


def test_rows_times_and_concat_rows(rng):
    x = outer(rng)
    weights = torch.rand(5, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(x.times(weights).full(), looped(x) * weights[:, None, None], **EXACT)
    joined = concat_rows([x.rows(0, 2), Full(looped(x)[2:])])
    torch.testing.assert_close(joined.full(), looped(x), **EXACT)


def test_no_tokens_is_a_zero_gradient():
    x = Outer(torch.zeros(2, 0, 3, dtype=torch.float64), torch.zeros(2, 0, 6, dtype=torch.float64), 0)
    assert x.full().abs().sum() == 0 and x.squared_norm().tolist() == [0, 0] and x.count == 0
