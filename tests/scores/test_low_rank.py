"""Questions held at a low rank: which layers, how well, and that both contractions agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import examples, llama
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg import matrix_batch
from whence.linalg.damping import relative
from whence.linalg.matrix_batch import Full, Outer
from whence.scores import low_rank
from whence.scores.low_rank import Cut, Load, cut_for, held_queries, lowered, told
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

SIZES = {"square": (64, 64), "wide": (64, 256), "tiny": (8, 4)}


def source(count: int, seed: int) -> LiveGradients:
    model, rows = llama(), examples(count, seed=seed)
    plan = plan_batches([e.length for e in rows], token_budget=30)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model))


@pytest.fixture(scope="module")
def sides():
    train, query = source(12, 0), source(5, 1)
    method = get_method("ekfac")
    inverse = method.operator(fit(train, method), Problem(train)).power(-1, relative(0.1))
    return train, query, inverse


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("exact", [True, False])
def test_lowered_is_the_best_of_its_rank(rng, monkeypatch, rank: int, exact: bool) -> None:
    if not exact:
        monkeypatch.setattr(low_rank, "EXACT_SIDE", 0)
    decay = torch.diag(2.0 ** -torch.arange(6.0)).double()  # a subspace iteration needs singular values that differ
    x = torch.randn(4, 8, 6, generator=rng).double() @ decay
    cut, length = lowered(Full(x), rank)
    u, s, vh = torch.linalg.svd(x)
    best = (u[:, :, :rank] * s[:, None, :rank]) @ vh[:, :rank]
    torch.testing.assert_close(cut.full(), best)
    torch.testing.assert_close(length, s[:, :rank].square().sum(1))


def test_full_rank_changes_nothing(sides) -> None:
    train, query, inverse = sides
    whole = prepare_queries(query, inverse)
    held = held_queries(query, inverse, Cut(99, frozenset(query.layers.names)))
    assert held.ids == whole.ids and held.held["energy"] == pytest.approx(1.0)
    np.testing.assert_allclose(held.measurements, whole.measurements)
    assert held.self_influence is not None and whole.self_influence is not None
    np.testing.assert_allclose(held.self_influence, whole.self_influence)
    np.testing.assert_allclose(pairwise(train, held), pairwise(train, whole), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["ekfac", "ekfac_cg:steps=2"])
def test_scores_of_cut_questions_are_those_of_the_cut_matrices(sides, spec: str) -> None:
    train, query, inverse = sides
    if spec != "ekfac":
        method = get_method(spec)
        inverse = method.operator(fit(train, method), Problem(train, "sampled", 0, query)).power(-1, relative(10.0))
    some = frozenset(list(query.layers.names)[::2])
    held, whole = held_queries(query, inverse, Cut(2, some)), prepare_queries(query, inverse)
    kept = total = torch.zeros(len(query.ids)).double()
    for name, grads in whole.grads.items():
        x = grads.full()
        u, s, vh = torch.linalg.svd(x)
        cut = (u[:, :, :2] * s[:, None, :2]) @ vh[:, :2] if name in some else x
        kept, total = kept + cut.square().sum((1, 2)), total + x.square().sum((1, 2))
        assert isinstance(held.grads[name], Outer) == (name in some)
        torch.testing.assert_close(held.grads[name].full(), cut)
    share = (kept / total).numpy()
    assert held.held["energy"] == pytest.approx(share.mean()) and held.held["lowest_energy"] == pytest.approx(
        share.min()
    )
    formed = type(held)(held.ids, {n: Full(g.full()) for n, g in held.grads.items()}, held.measurements)
    np.testing.assert_allclose(pairwise(train, held), pairwise(train, formed), rtol=1e-9, atol=1e-12)
    assert f"rank 2 in {len(some)} of" in told(held.held)


def test_no_cut_is_the_usual_way(sides) -> None:
    train, query, inverse = sides
    held = held_queries(query, inverse, cut_for("none", query.layers.sizes, Load(5, 7.0)))
    assert held.held["rank"] is None and "held whole" in told(held.held)
    assert np.array_equal(pairwise(train, held), pairwise(train, prepare_queries(query, inverse)))


def test_auto_cuts_only_what_does_not_fit_and_the_cheapest_first() -> None:
    load = Load(100, 10.0)
    whole = 4 * 100 * sum(o * i for o, i in SIZES.values())
    assert cut_for("auto", SIZES, load, held=whole).layers == frozenset()
    assert cut_for("auto", SIZES, load, held=whole - 1) == Cut(32, frozenset({"wide"}))
    # 32 (64 + 64) numbers are as many as 64 x 64: cutting a square layer of that size saves nothing
    assert cut_for("auto", SIZES, load, held=0).layers == frozenset({"wide"})


def test_a_number_cuts_every_layer_that_gets_smaller() -> None:
    assert cut_for(4, SIZES, Load(1, 1.0)).layers == frozenset({"square", "wide"})
    assert cut_for(1, SIZES, Load(1, 1.0)).layers == frozenset(SIZES)
    assert cut_for("none", SIZES, Load(10**6, 1.0)).layers == frozenset()


def test_many_cut_questions_are_multiplied_in_bounded_pieces(rng, monkeypatch) -> None:
    left, right = (
        Outer(torch.randn(n, t, 9, generator=rng).double(), torch.randn(n, t, 8, generator=rng).double())
        for n, t in ((3, 4), (7, 2))
    )
    monkeypatch.setattr(matrix_batch, "FORMED_ELEMENTS", 3 * 4 * 2 * 2)  # two questions at once
    truth = torch.einsum("boi,qoi->bq", left.full(), right.full())
    torch.testing.assert_close(matrix_batch._gram_dot(left, right), truth)
    torch.testing.assert_close(left.dot(right), truth)
