"""Laws that every file in ``curvature/`` obeys, on a real tiny model with mixed lengths, prompts and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conftest import examples, llama
from whence.curvature.base import Problem, Sums, get_method, method_names
from whence.curvature.fit import Accumulate, FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, relative
from whence.linalg.operators import Blocks
from whence.scores.score import pairwise, prepare_queries
from whence.scores.sinks import TopK
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

# the others are tested in tests/curvature, against their own truths
FACTOR_METHODS = ("identity", "diagonal", "kfac", "ekfac", "shampoo")
NAMES = [*(name for name in method_names() if name in FACTOR_METHODS), "ekfac:blocks=2"]
LAYERS = ("*self_attn.q_proj", "*self_attn.k_proj", "*mlp.down_proj")


DAMPING = relative(0.1)


def source(rows, *, budget: int = 40, model=None) -> LiveGradients:
    model = model or llama(layers=1)
    plan = plan_batches([e.length for e in rows], token_budget=budget)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model, LAYERS))


def inverse(name: str, train: LiveGradients, damping=DAMPING, **options):
    method = get_method(name)
    factors = fit(train, method, FitOptions(**options))
    return method.operator(factors, Problem(train)).power(-1, damping)


def scores(name: str, train: LiveGradients, query: LiveGradients, damping=DAMPING, **options) -> np.ndarray:
    return pairwise(train, prepare_queries(query, inverse(name, train, damping, **options)))


@pytest.fixture
def rows():
    return examples(12, seed=1)


@pytest.fixture
def query():
    return source(examples(3, seed=2))


def test_all_methods_are_found():
    assert set(FACTOR_METHODS) <= set(method_names())
    for name in method_names():
        method = get_method(name)
        assert method.name == name
        for text in (method.idea, method.reference, method.passes, method.memory, method.exact_when):
            assert text, f"{name} says nothing about itself"


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
@pytest.mark.parametrize("name", NAMES)
def test_batching_and_padding_change_nothing(name, fisher, rows, query):
    alone = scores(name, source(rows, budget=1), query, fisher=fisher)
    together = scores(name, source(rows, budget=1000), query, fisher=fisher)
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-9 * np.abs(alone).max())


@pytest.mark.parametrize("name", NAMES)
def test_order_of_rows_permutes_columns(name, rows, query):
    order = np.random.default_rng(0).permutation(len(rows))
    plain = scores(name, source(rows), query)
    shuffled = scores(name, source([rows[i] for i in order]), query)
    np.testing.assert_allclose(shuffled, plain[:, order], rtol=1e-9, atol=1e-9 * np.abs(plain).max())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "identity"])
def test_merging_two_halves_is_the_whole(name, rows):
    train = source(rows, budget=20)
    tensors = {}
    for stage in get_method(name).stages:
        tensors = stage.prepare(tensors)
        states = []
        for part in (range(train.n_batches), range(2), range(2, train.n_batches)):
            sums = Sums()
            train.visit(Accumulate(stage, tensors, sums), labels="sampled", batches=part)
            states.append(sums)
        whole, merged = states[0], states[1].merged(states[2])
        assert whole.examples == merged.examples == len(rows)
        for layer, terms in whole.tensors.items():
            for key, value in terms.items():
                torch.testing.assert_close(merged.tensors[layer][key], value, rtol=1e-12, atol=1e-12)
        tensors = stage.finish(whole, tensors)


@pytest.mark.parametrize("name", NAMES)
def test_huge_damping_is_the_gradient_dot_product(name, rows, query):
    damped = scores(name, source(rows), query, absolute(1e9))
    plain = scores("identity", source(rows), query)
    scale = 1.0 if name == "identity" else 1e9
    np.testing.assert_allclose(damped * scale, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("name", NAMES)
def test_preconditioner_is_symmetric_and_positive(name, rows):
    blocks = inverse(name, source(rows))
    assert isinstance(blocks, Blocks)
    for op in blocks.layers.values():
        dense = op.dense().double()
        torch.testing.assert_close(dense, dense.T, rtol=1e-8, atol=1e-10)
        assert torch.linalg.eigvalsh(dense).min() > 0


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_given_seeds(name, rows, query):
    assert np.array_equal(scores(name, source(rows), query), scores(name, source(rows), query))


def test_sampled_labels_depend_on_the_seed_only(rows, query):
    first, second = (scores("ekfac", source(rows), query, seed=seed) for seed in (0, 1))
    assert not np.allclose(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_streaming_top_k_is_the_top_of_all_scores(name, rows, query):
    train = source(rows, budget=20)
    queries = prepare_queries(query, inverse(name, train))
    everything = pairwise(train, queries)
    sink = TopK({id_: n for n, id_ in enumerate(train.ids)}, 4, len(queries.ids))
    pairwise(train, queries, sink)
    values, columns = sink.finish()
    for q, row in enumerate(everything):
        best = [n for n in np.argsort(-row, kind="stable")[:4] if row[n] > 0]
        worst = [n for n in np.argsort(row, kind="stable")[:4] if row[n] < 0]
        assert [c for c in columns[q, :4] if c >= 0] == best and [c for c in columns[q, 4:] if c >= 0] == worst
        np.testing.assert_array_equal(values[q, : len(best)], row[best])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "identity"])
def test_redamping_never_refits(name, rows, query):
    train = source(rows)
    method = get_method(name)
    operator = method.operator(fit(train, method), Problem(train))
    first = pairwise(train, prepare_queries(query, operator.power(-1, relative(0.1))))
    operator.power(-1, relative(100.0))
    again = pairwise(train, prepare_queries(query, operator.power(-1, relative(0.1))))
    assert np.array_equal(first, again)


def test_a_converged_fit_stops_early_and_agrees_with_the_full_one():
    rows = examples(400, seed=3, prompts=False, longest=14)
    train, query = source(rows, budget=100), source(examples(6, seed=4))
    from whence.scores.score import collect

    probe = collect(query).grads
    method = get_method("ekfac")
    options = FitOptions(rows="auto", agreement=0.9)
    factors = fit(train, method, options, probe=probe)
    used = [stage["rows"] for stage in factors.about["stages"]]
    assert all(0 < rows_used < len(rows) for rows_used in used), used
    early = pairwise(train, prepare_queries(query, method.operator(factors, Problem(train)).power(-1, relative(0.1))))
    full = scores("ekfac", train, query)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(early, full, strict=True)]
    assert np.mean(correlations) > 0.9


def test_fit_on_a_number_of_rows_uses_about_that_many(rows):
    factors = fit(source(rows, budget=20), get_method("kfac"), FitOptions(rows=5))
    assert 5 <= factors.about["stages"][0]["rows"] < len(rows)
