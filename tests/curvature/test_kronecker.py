"""K-FAC and EK-FAC where theory is exact, with real gradients and small damping; and against an independent library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from conftest import examples, llama
from reference.twins import empirical_fisher, modules_of, per_example_gradients
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import absolute, relative
from whence.scores.score import pairwise, prepare_queries, self_influence
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression


def source_of(model, task, rows, patterns=("*",), budget=1000):
    plan = plan_batches([e.length for e in rows], token_budget=budget)
    return LiveGradients(model, task, rows, plan, find_layers(model, patterns))


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


LENGTHS = torch.tensor([0.2, 0.7, 1.1, 3.0], dtype=torch.float64)


def factorial_rows(model: nn.Linear, scale_OI: torch.Tensor) -> list[Example]:
    """One row per (output, input) direction: its gradient is scale[o, i] u_o v_iᵀ in hidden orthogonal bases u, v.

    The empirical Fisher of these rows is diagonal in the Kronecker basis u ⊗ v by construction: EK-FAC must be exact,
    K-FAC too when the scales factor. Inputs have different lengths, or their covariance would have no basis of its own.
    """
    outputs, inputs = scale_OI.shape
    u, v = orthogonal(outputs, 1), orthogonal(inputs, 2)
    rows = []
    for o in range(outputs):
        for i in range(inputs):
            x = LENGTHS[i] * v[:, i]
            target = (model.weight @ x).detach() - scale_OI[o, i] / LENGTHS[i] * u[:, o]  # residual = output gradient
            rows.append(Example(f"{o}-{i}", {"features": x.numpy()}, target.numpy(), 1, 1))
    return rows


def dense_truth(model, rows, task, damping: float):
    modules = modules_of(model, [""])
    gradients = per_example_gradients(model, task, rows, modules)
    fisher = empirical_fisher(gradients)
    shift = damping * fisher.diagonal().mean()
    return gradients, torch.linalg.inv(fisher + shift * torch.eye(len(fisher), dtype=torch.float64))


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias=False).double()


SCALES = {
    "free": torch.rand(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1,
    "factoring": torch.outer(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64), LENGTHS),
}


@pytest.mark.parametrize(("name", "scale"), [("ekfac", "free"), ("ekfac", "factoring"), ("kfac", "factoring")])
@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_equals_the_dense_inverse_where_theory_is_exact(linear, name, scale, damping):
    task, rows = Regression(), factorial_rows(linear, SCALES[scale])
    gradients, truth = dense_truth(linear, rows, task, damping)
    train = source_of(linear, task, rows)
    method = get_method(name)
    factors = fit(train, method, FitOptions(fisher="empirical"))
    inverse = method.operator(factors, Problem(train)).power(-1, relative(damping))
    found = pairwise(train, prepare_queries(train, inverse))
    wanted = (gradients @ truth @ gradients.T).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)  # off the diagonal the truth is 0
    own = self_influence(train, inverse)
    np.testing.assert_allclose(own, np.diag(wanted), rtol=1e-9)
    # The test has power: no preconditioning at all is far from the truth.
    plain = np.diag((gradients @ gradients.T).numpy())
    scaled = plain * (plain @ np.diag(wanted)) / (plain @ plain)
    assert np.abs(scaled / np.diag(wanted) - 1).max() > 0.5


def test_kfac_is_not_exact_where_eigenvalues_do_not_factor(linear):
    """Guards the test above: were EK-FAC's second pass skipped, it would be this."""
    task, rows = Regression(), factorial_rows(linear, SCALES["free"])
    gradients, truth = dense_truth(linear, rows, task, 1e-3)
    train = source_of(linear, task, rows)
    method = get_method("kfac")
    factors = fit(train, method, FitOptions(fisher="empirical"))
    found = pairwise(train, prepare_queries(train, method.operator(factors, Problem(train)).power(-1, relative(1e-3))))
    assert not np.allclose(found, (gradients @ truth @ gradients.T).numpy(), rtol=0.05)


def test_ekfac_is_nearer_to_the_fisher_than_kfac():
    """In Frobenius norm, on a real model: the property that defines the corrected eigenvalues."""
    model, task = llama(layers=1), CausalLM()
    rows = examples(40, seed=3)
    train = source_of(model, task, rows, ("*q_proj", "*up_proj"))
    for layer in train.layers:
        gradients = per_example_gradients(model, task, rows, modules_of(model, [layer.name]))
        fisher = empirical_fisher(gradients)
        errors = {}
        for name in ("kfac", "ekfac"):
            method = get_method(name)
            factors = fit(train, method, FitOptions(fisher="empirical"))
            dense = method.operator(factors, Problem(train)).layers[layer.name].dense()
            errors[name] = float((dense - fisher).norm())
        assert errors["ekfac"] < errors["kfac"]


def test_corrected_eigenvalues_square_the_sum_over_tokens_not_each_token():
    model, task, rows = llama(layers=1), CausalLM(), examples(9, seed=6)
    train = source_of(model, task, rows, ("*down_proj",), budget=30)
    factors = fit(train, get_method("ekfac"), FitOptions(fisher="empirical")).tensors
    (layer,) = train.layers
    gradients = per_example_gradients(model, task, rows, modules_of(model, [layer.name]))
    matrices = gradients.view(len(rows), layer.outputs, layer.inputs)
    t = factors[layer.name]
    wanted = (t["QG"].T @ matrices @ t["QA"]).square().mean(0)
    torch.testing.assert_close(t["eigenvalues"], wanted, rtol=1e-9, atol=1e-15)


def test_rotating_tokens_or_matrices_gives_the_same_eigenvalues():
    """Long rows rotate the formed matrix, short ones their tokens; one side each, too."""
    model, task = llama(layers=1), CausalLM()
    rows = examples(5, seed=7, shortest=17, longest=18)  # between the two sides of up_proj (20 x 16)
    train = source_of(model, task, rows, ("*up_proj", "*down_proj", "*q_proj"))
    factors = fit(train, get_method("ekfac"), FitOptions(fisher="empirical")).tensors
    for layer in train.layers:
        gradients = per_example_gradients(model, task, rows, modules_of(model, [layer.name]))
        matrices = gradients.view(len(rows), layer.outputs, layer.inputs)
        t = factors[layer.name]
        wanted = (t["QG"].T @ matrices @ t["QA"]).square().mean(0)
        torch.testing.assert_close(t["eigenvalues"], wanted, rtol=1e-9, atol=1e-15)


def test_covariances_count_prompt_positions_and_not_padding():
    model, task = llama(layers=1), CausalLM()
    rows = examples(7, seed=8)  # mixed lengths, every other prompt masked
    captured: dict[str, list[torch.Tensor]] = {"a": [], "g": []}
    module = model.model.layers[0].mlp.up_proj

    def keep(_m, args, output):
        captured["a"].append(args[0].detach()[0])
        output.register_hook(lambda g: captured["g"].append(g[0]))

    for p in model.parameters():
        p.requires_grad_(True)
    handle = module.register_forward_hook(keep)
    for row in rows:
        batch = task.collate([row])
        task.losses(task.outputs(model, batch), batch).sum().backward()
    handle.remove()
    a, g = torch.cat(captured["a"]), torch.cat(captured["g"])
    train = source_of(model, task, rows, ("*up_proj",))
    t = fit(train, get_method("kfac"), FitOptions(fisher="empirical")).tensors["model.layers.0.mlp.up_proj"]
    assert len(a) == sum(e.length for e in rows)
    torch.testing.assert_close(t["A"], a.T @ a / len(a), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(t["G"], g.T @ g / len(rows), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["empirical"])
def test_agrees_with_curvlinops(kind):
    """An independent implementation on a shared case: an MLP classifier, empirical Fisher, biases joined."""
    from curvlinops import EKFACLinearOperator, KFACLinearOperator

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    x = torch.randn(30, 5, dtype=torch.float64)
    y = torch.randn(30, 4, dtype=torch.float64)
    rows = [Example(str(n), {"features": x[n].numpy()}, y[n].numpy(), 1, 1) for n in range(30)]
    train = source_of(model, Regression(), rows, budget=7)
    params = list(model.parameters())
    settings = {"fisher_type": kind, "separate_weight_and_bias": False, "check_deterministic": False}
    # Their loss is summed over outputs as ours is; the mean over examples is taken by dividing by N.
    for name, cls in (("kfac", KFACLinearOperator), ("ekfac", EKFACLinearOperator)):
        theirs = cls(model, nn.MSELoss(reduction="sum"), params, [(x, y)], **settings)
        dense = theirs @ torch.eye(theirs.shape[1], dtype=torch.float64)
        method = get_method(name)
        ours = method.operator(fit(train, method, FitOptions(fisher=kind)), Problem(train))
        start = 0
        for layer_name, module in (("0", model[0]), ("2", model[2])):
            block = ours.layers[layer_name].dense()
            size = len(block)
            their_block = dense[start : start + size, start : start + size]
            start += size
            order = torch.arange(size).view(module.out_features, -1)
            # they flatten weight, then bias; we keep the bias as last column
            split = torch.cat([order[:, :-1].flatten(), order[:, -1]])
            mine = block[split][:, split]
            ratio = float(their_block.norm() / mine.norm())
            torch.testing.assert_close(mine * ratio, their_block, rtol=1e-9, atol=1e-9 * float(their_block.abs().max()))
            # ‖y-h‖² against ½‖y-h‖² quadruples the Fisher; a sum against a mean multiplies it by N.
            assert ratio == pytest.approx(4 * 30, rel=1e-9)


def test_absolute_damping_keeps_its_meaning_across_batch_sizes():
    model, task, rows = llama(layers=1), CausalLM(), examples(8, seed=9)
    found = []
    for budget in (1, 1000):
        train = source_of(model, task, rows, ("*q_proj",), budget=budget)
        method = get_method("ekfac")
        inverse = method.operator(fit(train, method), Problem(train)).power(-1, absolute(1e-2))
        found.append(pairwise(train, prepare_queries(train, inverse)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
