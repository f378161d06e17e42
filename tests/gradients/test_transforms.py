"""Transformed gradients: the same numbers as transforming formed gradients one by one, and refusals by name."""

from __future__ import annotations

import pytest
import torch

from conftest import examples, llama
from reference.models import source as small_source
from reference.models import tiny_llama, token_rows
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.errors import LayerError, StoreError
from whence.gradients.fisher import gradient_rows
from whence.gradients.transforms import (
    RowColumn,
    TransformedGradients,
    Whitened,
    elementwise,
    require_same_transforms,
    row_column,
    whitened,
)  # fmt: skip
from whence.linalg.damping import parse_damping
from whence.linalg.matrix_batch import Outer
from whence.linalg.operators import Eigenbasis
from whence.linalg.projection import random_projection
from whence.scores.score import collect, pairwise, prepare_queries


@pytest.fixture
def live():
    return small_source(tiny_llama(), token_rows(7))


@pytest.fixture
def moments(live):
    rows = gradient_rows(live)
    return {n: r.square().mean(0).view(live.layers.sizes[n]) for n, r in rows.items()}


def formed(live):
    return {n: r.view(-1, *live.layers.sizes[n]) for n, r in gradient_rows(live).items()}


def test_projection_then_anything_is_left_x_right_of_every_gradient(live):
    projection = random_projection(live.layers.sizes, size=3, seed=5)
    seen = gradient_rows(TransformedGradients(live, (projection,)))
    for name, x_NOI in formed(live).items():
        sides = projection.sides[name]
        by_hand = torch.stack([sides.left_PO @ x @ sides.right_RI.T for x in x_NOI])
        torch.testing.assert_close(seen[name], by_hand.flatten(1), rtol=1e-12, atol=1e-14)


def test_transforms_compose_in_order_and_keep_outer_products(live, moments):
    normaliser = row_column(moments)
    projection = random_projection(live.layers.sizes, size=3, seed=5)
    both = TransformedGradients(live, (normaliser, projection))
    kinds = []

    class Look:
        def see(self, layer, grads):
            kinds.append(type(grads))

        def close(self, closed):
            pass

    both.visit(Look())
    assert set(kinds) == {Outer}
    seen = gradient_rows(both)
    for name, x_NOI in formed(live).items():
        row, column = normaliser.factors[name]
        sides = projection.sides[name]
        by_hand = sides.left_PO @ (x_NOI * row[:, None] * column) @ sides.right_RI.T
        torch.testing.assert_close(seen[name], by_hand.flatten(1), rtol=1e-11, atol=1e-13)
    assert both.layers.sizes == dict.fromkeys(live.layers.sizes, (3, 3))
    assert both.layers.parameters == 9 * len(live.layers)


def test_normalisers_have_unit_second_moments(live, moments):
    seen = gradient_rows(TransformedGradients(live, (elementwise(moments),)))
    for name, rows in seen.items():
        mean = rows.square().mean(0)
        alive = moments[name].flatten() > 1e-12 * moments[name].mean()
        torch.testing.assert_close(mean[alive], torch.ones_like(mean[alive]))
    # the rank-one form is exact for second moments that are rank one
    row, column = torch.rand(4, dtype=torch.float64) + 0.1, torch.rand(5, dtype=torch.float64) + 0.1
    made = row_column({"a": torch.outer(row, column)})
    torch.testing.assert_close(torch.outer(*made.factors["a"]), torch.outer(row, column).rsqrt())


def test_a_layer_without_gradients_stays_zero(moments):
    nothing = torch.zeros(3, 4, dtype=torch.float64)
    assert not any(factor.any() for factor in row_column({"a": nothing}).factors["a"])
    assert not elementwise({"a": nothing}).factors["a"].any()


def test_kfac_fits_on_projected_gradients_unchanged(live):
    """The one loop: any method runs on a transformed source (K-FAC needs outer products, and gets them)."""
    projection = random_projection(live.layers.sizes, size=3, seed=1)
    small = TransformedGradients(live, (projection,))
    factors = fit(small, get_method("kfac"))
    whole = fit(live, get_method("kfac"))
    for name, tensors in factors.tensors.items():
        left, right = projection.sides[name].left_PO, projection.sides[name].right_RI
        torch.testing.assert_close(tensors["G"], left @ whole.tensors[name]["G"] @ left.T)
        torch.testing.assert_close(tensors["A"], right @ whole.tensors[name]["A"] @ right.T)


def test_the_source_protocol_is_passed_on(live):
    small = TransformedGradients(live, ())
    assert small.ids == live.ids and small.n_batches == live.n_batches
    assert small.batch_size(0) == live.batch_size(0) and small.shuffled(3) == live.shuffled(3)
    counted = []
    small.with_progress(counted.append).visit(type("V", (), {"see": lambda *_: None, "close": lambda *_: None})())
    assert sum(counted) == len(live.ids)


def test_mismatched_sides_are_refused_by_field(live, moments):
    def view(**change):
        settings = {"size": 3, "seed": 5, **change}
        return TransformedGradients(live, (random_projection(live.layers.sizes, **settings),))

    require_same_transforms(view(), view())
    for change, word in (({"seed": 6}, "1.seed"), ({"size": 2}, "1.size"), ({"kind": "gaussian"}, "1.kind")):
        with pytest.raises(StoreError, match=word):
            require_same_transforms(view(**change), view())
    with pytest.raises(StoreError, match=r"1\.version"):
        old = random_projection(live.layers.sizes, size=3, seed=5)
        aged = type(old)(old.sides, {**old.about, "version": 0})
        require_same_transforms(TransformedGradients(live, (aged,)), view())
    with pytest.raises(StoreError, match=r"1\.kind"):
        require_same_transforms(live, view())
    other = {n: 2 * v for n, v in moments.items()}
    with pytest.raises(StoreError, match=r"1\.moments"):
        require_same_transforms(
            TransformedGradients(live, (row_column(other),)), TransformedGradients(live, (row_column(moments),))
        )


def test_a_transform_of_another_model_is_refused(live):
    other = small_source(llama(layers=1), examples(2), ("*q_proj",))
    projection = random_projection(other.layers.sizes, size=3, seed=5)
    with pytest.raises(LayerError, match=r"no such layer|16"):
        _ = TransformedGradients(live, (projection,)).layers


def test_row_column_is_two_diagonals():
    g, a = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    row, column = torch.rand(4, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    x = Outer(g, a)
    found = RowColumn({"a": (row, column)}, {}).one("a", x)
    torch.testing.assert_close(found.full(), x.full() * torch.outer(row, column))


@pytest.mark.parametrize("damping", ["relative:0.1", "absolute:0.003"])
@pytest.mark.parametrize("method", ["ekfac", "ekfac:blocks=2", "kfac", "diagonal", "identity", "logra:size=3"])
def test_a_plain_dot_product_of_whitened_gradients_is_the_score(live, method, damping):
    found = get_method(method)
    inverse = found.operator(fit(live, found), Problem(live)).power(-1, parse_damping(damping))
    queries = small_source(live.model, token_rows(3, seed=9))
    scores = pairwise(live, prepare_queries(queries, inverse))
    transform = whitened(inverse, live.layers.sizes, method=method)
    rows, asked = (collect(TransformedGradients(side, (transform,)), "true").grads for side in (live, queries))
    plain = sum(asked[name].dot(rows[name]) for name in rows)
    torch.testing.assert_close(plain, torch.from_numpy(scores), rtol=1e-9, atol=1e-9 * float(abs(scores).max()))


def test_ekfac_whitening_is_rotation_over_the_root_of_eigenvalue_plus_damping(live):
    ekfac = get_method("ekfac")
    factors = fit(live, ekfac)
    inverse = ekfac.operator(factors, Problem(live)).power(-1, parse_damping("relative:0.1"))
    seen = gradient_rows(TransformedGradients(live, (whitened(inverse, live.layers.sizes),)))
    for name, x_NOI in formed(live).items():
        t = factors.tensors[name]
        values = t["eigenvalues"] + 0.1 * t["eigenvalues"].mean()
        by_hand = torch.stack([t["QG"].T @ x @ t["QA"] / values.sqrt() for x in x_NOI])
        torch.testing.assert_close(seen[name], by_hand.flatten(1), rtol=1e-9, atol=1e-12)


def test_inputs_are_rotated_once_for_the_layers_that_share_them_and_never_confused():
    basis, other = (torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0] for _ in range(2))
    left = torch.eye(4, dtype=torch.float64)
    ones = torch.ones(4, 5).double()
    operators = {n: Eigenbasis(left, b, ones) for n, b in (("q", basis), ("k", basis), ("o", other))}
    transform = Whitened(operators, {})
    a, g = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 4).double()
    for name, inputs in (("q", a), ("k", a), ("o", a), ("k", a.clone()), ("k", a + 1), ("q", a)):
        before = transform._rotated.get("last")
        found = transform.one(name, Outer(g, inputs)).full()
        torch.testing.assert_close(found, operators[name].whiten(Outer(g, inputs)).full())
        reused = transform._rotated["last"] is before
        assert reused == (name == "k" and inputs is a)
