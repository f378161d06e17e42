"""Factors in diagonal blocks, the basis of Shampoo, and every damping of K-FAC, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import examples, gpt2, llama
from reference.twins import empirical_fisher, modules_of, per_example_gradients
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import OptionError
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, factored, relative
from whence.linalg.matrix_batch import Full, Outer
from whence.linalg.partition import Partition, Side, SplitEigenbasis
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

DAMPINGS = [absolute(1e-2), relative(1e-3), relative(0.1), factored(0.1)]
PATTERNS = ("*q_proj", "*up_proj")


def source_of(model, rows, patterns=PATTERNS, task=None) -> LiveGradients:
    plan = plan_batches([e.length for e in rows], token_budget=40)
    return LiveGradients(model, task or CausalLM(), rows, plan, find_layers(model, patterns))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def undamped(spec: str, train: LiveGradients):
    method = get_method(spec)
    factors = fit(train, method, FitOptions(fisher="empirical"))
    return factors, method.operator(factors, Problem(train))


def cut_covariances(train: LiveGradients, module: nn.Module, lengths_O, lengths_I) -> tuple[torch.Tensor, torch.Tensor]:
    """G and A from plain hooks and one row at a time, with everything outside the diagonal blocks set to 0."""
    kept: dict[str, list[torch.Tensor]] = {"a": [], "g": []}

    def keep(_module, args, output):
        kept["a"].append(args[0].detach()[0])
        output.register_hook(lambda g: kept["g"].append(g[0]))

    handle = module.register_forward_hook(keep)
    for row in train.examples:
        batch = train.task.collate([row])
        train.task.losses(train.task.outputs(train.model.eval().requires_grad_(True), batch), batch).sum().backward()
    handle.remove()
    train.model.requires_grad_(False)
    a, g = torch.cat(kept["a"]), torch.cat(kept["g"])
    masks = [torch.block_diag(*[torch.ones(n, n, dtype=torch.float64) for n in ns]) for ns in (lengths_O, lengths_I)]
    return g.T @ g / len(train.examples) * masks[0], a.T @ a / len(a) * masks[1]


def dense_inverse(g: torch.Tensor, a: torch.Tensor, damping) -> torch.Tensor:
    matrix = torch.kron(g, a)
    if damping.kind == "factored":  # Martens & Grosse 2015, section 6.3, with lambda = value x mean eigenvalue
        lam = damping.value * matrix.diagonal().mean()
        pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
        eye_o, eye_i = (torch.eye(len(m), dtype=torch.float64) for m in (g, a))
        return torch.linalg.inv(torch.kron(g + lam.sqrt() / pi * eye_o, a + pi * lam.sqrt() * eye_i))
    shift = damping.value * (matrix.diagonal().mean() if damping.kind == "relative" else 1.0)
    return torch.linalg.inv(matrix + shift * torch.eye(len(matrix), dtype=torch.float64))


@pytest.fixture(scope="module")
def train():
    return source_of(llama(layers=1), examples(9, seed=1))


def test_a_side_is_cut_evenly_and_long_ones_further():
    assert Partition(1).cut(7) == (7,)
    assert Partition(2).cut(7) == (4, 3)
    assert Partition(4).cut(18) == (5, 5, 4, 4)
    assert Partition(9).cut(4) == (1, 1, 1, 1)
    assert Partition(1, largest=4).cut(7) == (4, 3)
    assert Partition(1, largest=3).cut(7) == ()
    assert Partition(3, largest=1).cut(5) == (1, 1, 1, 1, 1), "never an empty block"


def test_more_blocks_than_directions_are_told_once():
    sizes = {"a": (3, 8), "b": (8, 5)}
    (told,) = Partition(6).notes(sizes)
    assert told.startswith("blocks=6 is more than the 3 to 5 directions of 2 of 4 sides")
    assert "the 8 directions of 1 of 2" in Partition(1000).notes({"a": (8, 1000)})[0]
    assert Partition(3).notes(sizes) == ()
    for bad in ({"blocks": 0}, {"largest": 0}):
        with pytest.raises(OptionError, match="at least 1"):
            Partition(**bad).checked()
    with pytest.raises(OptionError, match="at least 1"):
        get_method("ekfac:blocks=0")


def test_split_operator_is_its_dense_matrix():
    q = [torch.linalg.qr(random(n, n, seed=n))[0] for n in (2, 3, 4)]
    x, y = Outer(random(2, 3, 5), random(2, 3, 4)), Full(random(3, 5, 4, seed=9))
    for left, right in ((Side((q[0], q[1])), Side((q[2],))), (Side(()), Side((q[0], q[0])))):
        op = SplitEigenbasis(left, right, random(5, 4, seed=1).square())
        dense = op.dense()
        for batch in (x, y):
            flat = batch.full().flatten(1)
            torch.testing.assert_close(op.apply(batch).full().flatten(1), flat @ dense)
            torch.testing.assert_close(op.whiten(batch).dot(op.whiten(batch)), flat @ dense @ flat.T)
        inverse = op.power(-1, absolute(0.3)).dense()
        torch.testing.assert_close(inverse, torch.linalg.inv(dense + 0.3 * torch.eye(20, dtype=torch.float64)))


@pytest.mark.parametrize("damping", DAMPINGS, ids=str)
@pytest.mark.parametrize("spec", ["kfac", "kfac:blocks=2", "kfac:blocks=4", "kfac:largest=9", "kfac:largest=5"])
def test_kfac_is_the_damped_kronecker_product_of_cut_covariances(train, spec, damping):
    partition = Partition(**get_method(spec).settings)
    _, operator = undamped(spec, train)
    for layer in train.layers:
        cuts = [partition.cut(n) or (1,) * n for n in (layer.outputs, layer.inputs)]
        g, a = cut_covariances(train, layer.modules[0], *cuts)
        found = operator.layers[layer.name]
        torch.testing.assert_close(found.dense(), torch.kron(g, a), rtol=1e-9, atol=1e-12)
        truth = dense_inverse(g, a, damping)
        inverse = found.power(-1, damping)
        torch.testing.assert_close(inverse.dense(), truth, rtol=1e-7, atol=1e-9 * float(truth.abs().max()))
        x = Full(random(2, layer.outputs, layer.inputs))
        wanted = x.full().flatten(1) @ truth
        torch.testing.assert_close(inverse.apply(x).full().flatten(1), wanted, rtol=1e-7, atol=1e-6)
        root = inverse.whiten(x).squared_norm()
        torch.testing.assert_close(root, (wanted * x.full().flatten(1)).sum(1), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("spec", ["ekfac", "ekfac:blocks=2", "ekfac:blocks=4", "ekfac:largest=5"])
def test_ekfac_measures_its_eigenvalues_in_the_eigenbasis_of_the_cut_covariances(train, spec):
    partition = Partition(**get_method(spec).settings)
    _, operator = undamped(spec, train)
    for layer in train.layers:
        cuts = [partition.cut(n) or (1,) * n for n in (layer.outputs, layer.inputs)]
        covariances = cut_covariances(train, layer.modules[0], *cuts)
        gradients = per_example_gradients(
            train.model, train.task, train.examples, modules_of(train.model, [layer.name])
        )
        train.model.requires_grad_(False)
        bases = [blockwise_eigenvectors(m, cut) for m, cut in zip(covariances, cuts, strict=True)]
        basis = torch.kron(*bases)
        eigenvalues = (gradients @ basis).square().mean(0)
        found = operator.layers[layer.name]
        truth = basis @ torch.diag(eigenvalues) @ basis.T
        torch.testing.assert_close(found.dense(), truth, rtol=1e-8, atol=1e-10)
        inverse = torch.linalg.inv(truth + 0.1 * eigenvalues.mean() * torch.eye(len(truth), dtype=torch.float64))
        torch.testing.assert_close(found.power(-1, relative(0.1)).dense(), inverse, rtol=1e-7, atol=1e-7)


def blockwise_eigenvectors(matrix: torch.Tensor, cut) -> torch.Tensor:
    blocks, at = [], 0
    for n in cut:
        blocks.append(torch.linalg.eigh(matrix[at : at + n, at : at + n])[1])
        at += n
    return torch.block_diag(*blocks)


LENGTHS = torch.tensor([0.2, 0.7, 1.1, 3.0], dtype=torch.float64)


def factorial_rows(model: nn.Linear, u: torch.Tensor, v: torch.Tensor) -> list[Example]:
    """One row per (output, input) direction of the bases u, v: the Fisher is diagonal in u ⊗ v by construction."""
    scale = torch.rand(len(u), len(v), generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    rows = []
    for o in range(len(u)):
        for i in range(len(v)):
            x = LENGTHS[i] * v[:, i]
            target = (model.weight @ x).detach() - scale[o, i] / LENGTHS[i] * u[:, o]
            rows.append(Example(f"{o}-{i}", {"features": x.numpy()}, target.numpy(), 1, 1))
    return rows


@pytest.mark.parametrize("damping", [1e-3, 0.1])
@pytest.mark.parametrize(
    ("spec", "cut_O", "cut_I"),
    [
        ("shampoo", (4,), (4,)),
        ("ekfac:blocks=2", (2, 2), (2, 2)),
        ("shampoo:blocks=2", (2, 2), (2, 2)),
        ("ekfac:largest=1", (1,) * 4, (1,) * 4),
    ],
)
def test_equals_the_dense_inverse_where_theory_is_exact(spec, cut_O, cut_I, damping):
    """The basis of the Fisher itself is block-diagonal: a basis cut in the same places must find it."""
    torch.manual_seed(0)
    model, task = nn.Linear(4, 4, bias=False).double(), Regression()
    u, v = (
        torch.block_diag(*[torch.linalg.qr(random(n, n, seed=k + s))[0] for k, n in enumerate(cut)])
        for s, cut in ((1, cut_O), (7, cut_I))
    )
    rows = factorial_rows(model, u, v)
    train = source_of(model, rows, ("*",), task)
    gradients = per_example_gradients(model, task, rows, modules_of(model, [""]))
    fisher = empirical_fisher(gradients)
    truth = torch.linalg.inv(fisher + damping * fisher.diagonal().mean() * torch.eye(16, dtype=torch.float64))
    _, operator = undamped(spec, train)
    found = pairwise(train, prepare_queries(train, operator.power(-1, relative(damping))))
    np.testing.assert_allclose(found, (gradients @ truth @ gradients.T).numpy(), rtol=1e-8, atol=1e-8)


def test_shampoo_factors_are_moments_of_whole_gradients(train):
    stage = get_method("shampoo").stages[0]
    factors = fit(train, get_method("shampoo"), FitOptions(fisher="empirical")).tensors
    for layer in train.layers:
        modules = modules_of(train.model, [layer.name])
        x = per_example_gradients(train.model, train.task, train.examples, modules)
        train.model.requires_grad_(False)
        x = x.view(-1, layer.outputs, layer.inputs)
        left, right = (x @ x.transpose(1, 2)).mean(0), (x.transpose(1, 2) @ x).mean(0)
        for name, moment in (("QG", left), ("QA", right)):
            q = factors[layer.name][name]
            turned = q.T @ moment @ q
            torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=1e-9, atol=1e-12)
        found = stage.operator({layer.name: {"G": left, "A": right / right.trace()}}).layers[layer.name].dense()
        fisher_trace = x.square().sum((1, 2)).mean()
        torch.testing.assert_close(found.trace(), fisher_trace)


def test_vocabulary_sized_sides_become_diagonal_and_it_is_said():
    model = gpt2()
    train = source_of(model, examples(6, seed=3), ("lm_head", "*.0.mlp.c_fc"))
    factors, _ = undamped("ekfac:largest=13", train)
    head = factors.tensors["lm_head"]
    assert "QG.1" in head and "QG.2" not in head and head["QA"].shape == (12, 12)
    factors, operator = undamped("ekfac:largest=8", train)
    notes = factors.about["notes"]
    assert any(n.startswith("lm_head: 23 outputs are too many") for n in notes)
    assert any("12 inputs is cut into 2" in n for n in notes)
    assert "QG" not in factors.tensors["lm_head"]
    assert all(torch.isfinite(op.power(-1, relative(0.1)).dense()).all() for op in operator.layers.values())


def test_one_block_is_the_method_without_settings(train):
    plain, split = undamped("ekfac", train)[0].tensors, undamped("ekfac:blocks=1", train)[0].tensors
    for layer, tensors in plain.items():
        assert all(torch.equal(split[layer][name], tensor) for name, tensor in tensors.items())
