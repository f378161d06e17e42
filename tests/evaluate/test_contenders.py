"""Everybody's scores against the long way round: autograd row by row, hidden states, a fit by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import examples, llama
from whence.candidates.lexical import bm25_scores, tfidf_scores
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.errors import OptionError
from whence.evaluate.baselines import baselines, gradient_norms, model_baselines, shuffled_query
from whence.evaluate.contenders import EVERYONE, Contest, contenders, parse_contender
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, relative
from whence.scores.relative import relative_scores
from whence.scores.score import pairwise, prepare_queries, self_influence
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

LAYERS = ("*q_proj", "*down_proj")


def source_of(model, rows) -> LiveGradients:
    plan = plan_batches([e.length for e in rows], token_budget=40)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model, LAYERS))


@pytest.fixture(scope="module")
def world():
    model = llama(layers=1)
    return source_of(model, examples(9, seed=1)), source_of(model, examples(3, seed=2))


def autograd(source: LiveGradients, *, measurement: bool = False) -> np.ndarray:
    """N x P gradients, one row at a time."""
    weights = [layer.modules[0].weight for layer in source.layers]
    found = []
    for example in source.examples:
        batch = source.task.collate([example])
        outputs = source.task.outputs(source.model, batch)
        loss = (source.task.measurements if measurement else source.task.losses)(outputs, batch).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).numpy())
    return np.stack(found)


def units(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_text_baselines():
    queries, rows = ["a cat sat"], ["the cat", "a dog sat down", ""]
    found = baselines(queries, rows, seed=3)
    np.testing.assert_allclose(found["bm25"], bm25_scores(queries, rows), rtol=1e-6)
    np.testing.assert_allclose(found["tfidf"], tfidf_scores(queries, rows), rtol=1e-6)
    assert found["length"].tolist() == [[2.0, 4.0, 0.0]]
    assert found["random"].shape == (1, 3)
    np.testing.assert_array_equal(found["random"], baselines(queries, rows, seed=3)["random"])
    assert (found["random"] != baselines(queries, rows, seed=4)["random"]).all()


def test_gradient_norms_are_autograd(world):
    train, _ = world
    np.testing.assert_allclose(gradient_norms(train), (autograd(train) ** 2).sum(1), rtol=1e-9)


def test_embedding_and_activation_by_hand(world):
    train, queries = world
    model = train.model
    vectors = {}
    for name, source in (("train", train), ("query", queries)):
        embedded, states = [], []
        for example in source.examples:
            ids = torch.from_numpy(example.inputs["input_ids"])[None]
            with torch.no_grad():
                embedded.append(model.model.embed_tokens(ids)[0].mean(0).numpy())
                states.append(model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0).numpy())
        vectors[name] = {"embedding": np.stack(embedded), "activation": np.stack(states)}
    found = model_baselines(train, queries)
    for name in ("embedding", "activation"):
        rows, asked = vectors["train"][name], vectors["query"][name]
        wanted = units(asked - rows.mean(0)) @ units(rows - rows.mean(0)).T
        np.testing.assert_allclose(found[name], wanted, atol=1e-9)
    losses = [train.losses()[id_] for id_ in train.ids]
    np.testing.assert_allclose(found["loss"], [losses] * 3, rtol=1e-12)
    assert list(found) == ["embedding", "activation", "gradient_norm", "loss"]


def test_a_model_of_features_has_its_features_as_embedding():
    rng = np.random.default_rng(0)
    rows = [Example(f"r{n}", {"features": rng.normal(size=3)}, rng.normal(size=1), 1, 1) for n in range(5)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    source = LiveGradients(model, Regression(), rows, plan_batches([1] * 5, token_budget=3), find_layers(model))
    found = model_baselines(source, source.only(["r1", "r3"]), ("embedding", "activation"))
    x = np.stack([e.inputs["features"] for e in rows])
    hidden = torch.tanh(model[0](torch.from_numpy(x))).detach().numpy()
    for name, values in (("embedding", x), ("activation", hidden)):
        centred = units(values - values.mean(0))
        np.testing.assert_allclose(found[name], centred[[1, 3]] @ centred.T, atol=1e-12)


def test_nobody_keeps_their_own_scores_when_shuffled():
    scores = np.arange(12.0).reshape(6, 2)
    for seed in range(20):
        found = shuffled_query(scores, seed=seed)
        assert not (found == scores).all(1).any()
        assert sorted(found[:, 0]) == sorted(scores[:, 0])
    with pytest.raises(OptionError):
        shuffled_query(scores[:1])


def test_methods_are_what_they_are_alone(world):
    train, queries = world
    names = ("ekfac", "relative:ekfac", "kfac@absolute:0.01", "dot", "cosine", "shuffled", "shuffled:dot", "random")
    found = contenders(names, train, queries, Contest(damping="relative:0.3", seed=5))
    assert list(found) == list(names)
    method = get_method("ekfac")
    inverse = method.operator(fit(train, method, None), Problem(train)).power(-1, relative(0.3))
    same = contenders(("ekfac", "relative:ekfac"), train, queries, Contest(damping="relative:0.3"))
    wanted = pairwise(train, prepare_queries(queries, inverse))
    np.testing.assert_allclose(same["ekfac"], wanted, rtol=1e-9)
    np.testing.assert_allclose(
        same["relative:ekfac"], relative_scores(wanted, self_influence(train, inverse)), rtol=1e-9
    )
    rows, asked = autograd(train), autograd(queries, measurement=True)
    scale = 1 / (found["dot"][0, 0] / (asked @ rows.T)[0, 0])  # the identity is divided by what its damping adds
    np.testing.assert_allclose(found["dot"] * scale, asked @ rows.T, rtol=1e-9)
    np.testing.assert_allclose(found["cosine"], units(asked) @ units(rows).T, rtol=1e-9)
    damped = contenders(("kfac",), train, queries, Contest(damping=str(absolute(0.01)), seed=5))
    np.testing.assert_array_equal(damped["kfac"], found["kfac@absolute:0.01"])
    assert (found["kfac@absolute:0.01"] != contenders(("kfac",), train, queries, Contest(seed=5))["kfac"]).any()
    np.testing.assert_array_equal(found["shuffled"], shuffled_query(found["ekfac"], seed=5))
    np.testing.assert_array_equal(found["shuffled:dot"], shuffled_query(found["dot"], seed=5))


def test_everybody_takes_part(world):
    train, queries = world
    texts = Contest(query_texts=("a",) * 3, row_texts=("a b",) * 9)
    found = contenders(EVERYONE, train, queries, texts)
    assert list(found) == list(EVERYONE)
    assert all(values.shape == (3, 9) and np.isfinite(values).all() for values in found.values())
    alone = contenders(EVERYONE, train, queries.only([queries.ids[0]]))
    assert "shuffled" not in alone and "bm25" not in alone and "length" not in alone and "random" in alone


@pytest.mark.parametrize("name", ["ekfacc", "relative:nothing", "ekfac@half", "ekfac:colour=red", "relative"])
def test_nobody_of_that_name(name):
    with pytest.raises(OptionError):
        parse_contender(name)


def test_names_that_do_not_fit(world):
    train, queries = world
    with pytest.raises(OptionError, match="per-layer"):
        contenders(("relative:cg",), train, queries)
    with pytest.raises(OptionError, match="shuffled"):
        contenders(("shuffled:ekfac", "dot"), train, queries)
    with pytest.raises(OptionError, match="shuffled"):
        contenders(("bm25", "shuffled"), train, queries)
