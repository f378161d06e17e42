"""Every method that works on the whole curvature meets the dense truth, in float64 with real gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference import models, twins
from whence.curvature import arnoldi, cg, datainf, ekfac_cg, exact, lissa, nystrom
from whence.curvature.base import Method, Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import CurvatureError, ResourceError
from whence.linalg.damping import absolute, factored, relative
from whence.linalg.matrix_batch import Full
from whence.linalg.packing import Layout

TIGHT = {"rtol": 1e-8, "atol": 1e-8}
DAMPING = 0.05
LAYERS = ("*.k_proj", "*.v_proj")


@pytest.fixture(scope="module")
def mlp():
    return models.source(models.mlp(), models.number_rows(9))


@pytest.fixture(scope="module")
def llama():
    return models.source(models.tiny_llama(), models.token_rows(6), LAYERS, budget=18)


def dense(source, *, kind: str = "gauss_newton") -> torch.Tensor:
    modules = twins.modules_of(source.model, source.layers.names)
    if kind == "hessian":
        return twins.dense_hessian(source.model, source.task, source.examples, modules)
    if kind == "empirical":
        return twins.empirical_fisher(twins.per_example_gradients(source.model, source.task, source.examples, modules))
    shape = twins.language_hessian if "input_ids" in source.examples[0].inputs else twins.square_hessian
    return twins.dense_gauss_newton(source.model, source.task, source.examples, modules, shape)


def block(source, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, source.layers.parameters, generator=generator, dtype=torch.float64)


def solve(source, method: str | Method, damping=None, *, fisher: str = "sampled", x=None) -> torch.Tensor:
    """The method's damped inverse on a block of vectors, flat."""
    damping = damping or absolute(DAMPING)
    method = get_method(method)
    factors = fit(source, method, FitOptions(fisher=fisher))
    inverse = method.operator(factors, Problem(source, fisher)).power(-1, damping)
    layout = Layout.of(source.layers.sizes)
    x = block(source) if x is None else x
    found = inverse.apply({n: Full(part) for n, part in layout.unpack(x).items()})
    return layout.pack({n: part.full() for n, part in found.items()})


def truth(matrix: torch.Tensor, x: torch.Tensor, damping: float = DAMPING) -> torch.Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), x.T).T


CONVERGED = {
    "exact": "exact",
    "cg": cg.method(steps=500, tolerance=1e-11),
    "ekfac_cg": ekfac_cg.method(steps=500, tolerance=1e-11),
    "ekfac_cg shared": ekfac_cg.method(steps=500, tolerance=1e-12, search="shared"),
    "lissa": lissa.method(depth=60, full_batch=True),
    "nystrom": nystrom.method(rank=10_000),
    "arnoldi": arnoldi.method(steps=120, keep=120),
}


@pytest.mark.parametrize("name", CONVERGED)
@pytest.mark.parametrize("which", ["mlp", "llama"])
def test_converged_methods_are_the_dense_inverse(name, which, request):
    source = request.getfixturevalue(which)
    matrix = dense(source)
    # LiSSA's steps grow with largest eigenvalue / damping: a ratio of 1 keeps the test short
    damping = float(torch.linalg.eigvalsh(matrix)[-1]) if name == "lissa" else DAMPING
    wanted = truth(matrix, block(source), damping)
    torch.testing.assert_close(solve(source, CONVERGED[name], absolute(damping)), wanted, **TIGHT)


def test_block_diagonal_is_the_dense_inverse_of_the_blocks(llama):
    blocks = twins.block_diagonal(dense(llama), [a * b for a, b in llama.layers.sizes.values()])
    torch.testing.assert_close(solve(llama, "exact_block"), truth(blocks, block(llama)), **TIGHT)


@pytest.mark.parametrize("name", ["exact", "kernel", "cg"])
def test_empirical_fisher_is_the_dense_one(name, llama):
    method = CONVERGED.get(name, name)
    wanted = truth(dense(llama, kind="empirical"), block(llama))
    torch.testing.assert_close(solve(llama, method, fisher="empirical"), wanted, **TIGHT)


def test_hessian_is_the_dense_one_when_damped_enough(mlp):
    matrix = dense(mlp, kind="hessian")
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    assert lowest < 0, "the case must be indefinite"
    enough = absolute(-2 * lowest)
    wanted = truth(matrix, block(mlp), enough.value)
    torch.testing.assert_close(solve(mlp, exact.method(curvature="hessian"), enough), wanted, **TIGHT)
    by_cg = solve(mlp, cg.method(curvature="hessian", steps=500, tolerance=1e-11), enough)
    torch.testing.assert_close(by_cg, wanted, **TIGHT)


@pytest.mark.parametrize("module", [exact, cg])
def test_indefinite_hessian_is_explained(module, mlp):
    with pytest.raises(CurvatureError) as error:
        solve(mlp, module.method(curvature="hessian"), absolute(1e-6))
    assert "Gauss-Newton" in (error.value.try_ or "")


@pytest.mark.parametrize("name", ["exact", "cg", "kernel", "nystrom"])
def test_relative_damping_is_per_layer(name, llama):
    """With data labels the trace is no estimate, so every method must add the very same shift."""
    fisher = dense(llama, kind="empirical")
    sizes = [a * b for a, b in llama.layers.sizes.values()]
    shift = torch.cat([part.mean().expand(len(part)) for part in fisher.diagonal().split(sizes)]) * 0.1
    wanted = torch.linalg.solve(fisher + torch.diag(shift), block(llama).T).T
    got = solve(llama, CONVERGED.get(name, name), relative(0.1), fisher="empirical")
    torch.testing.assert_close(got, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))


def test_datainf_is_the_mean_of_the_inverses(llama):
    modules = twins.modules_of(llama.model, llama.layers.names)
    gradients = twins.per_example_gradients(llama.model, llama.task, llama.examples, modules)
    sizes = [a * b for a, b in llama.layers.sizes.values()]
    parts = []
    for rows, x in zip(gradients.split(sizes, 1), block(llama).split(sizes, 1), strict=True):
        damping = 0.1 * rows.square().mean()  # the paper's lambda = relative:0.1
        eye = torch.eye(rows.shape[1], dtype=torch.float64)
        parts.append(x @ sum(torch.linalg.inv(torch.outer(g, g) + damping * eye) for g in rows) / len(rows))
    got = solve(llama, "datainf", relative(0.1))
    torch.testing.assert_close(got, torch.cat(parts, 1), rtol=1e-8, atol=1e-8 * float(got.abs().max()))


def test_datainf_whitening_is_its_root(llama):
    blocks = datainf.METHOD.operator(fit(llama, datainf.METHOD), Problem(llama)).power(-1, relative(0.1))
    for name, op in blocks.layers.items():
        x = Full(block(llama)[:, : op.dense().shape[0]].reshape(3, *llama.layers.sizes[name]))
        torch.testing.assert_close(op.whiten(x).dot(op.whiten(x)), x.dot(op.apply(x)), rtol=1e-8, atol=1e-8)


def test_projected_inverses_know_only_the_inverse(mlp):
    for name in ("cg", "kernel", "datainf"):
        method = get_method(name)
        operator = method.operator(fit(mlp, method), Problem(mlp))
        with pytest.raises(CurvatureError, match=r"power -0\.5"):
            operator.power(-0.5, relative(0.1))


def test_ridge_leave_one_out_from_the_library():
    """A linear model: influence / N over 1 - leverage is the refit."""
    from reference.ridge import Ridge

    rows = models.number_rows(40, inputs=4, outputs=1, seed=3)
    x, y = np.stack([r.inputs["features"] for r in rows]), np.stack([r.labels for r in rows])[:, 0]
    ridge = Ridge(x, y, 1e-2)
    linear = torch.nn.Linear(4, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(ridge.fit())[None])
    source = models.source(linear, rows)
    gradients = torch.from_numpy((x @ ridge.fit() - y)[:, None] * x)
    steps = solve(source, "exact", absolute(ridge.penalty), x=gradients).numpy() / len(y)
    refits = np.stack([ridge.leave_one_out(n) - ridge.fit() for n in range(len(y))])
    np.testing.assert_allclose(steps / (1 - ridge.leverage())[:, None], refits, rtol=0, atol=1e-8)


def test_a_layer_without_curvature_gets_an_inverse_of_zero():
    model = models.mlp()
    with torch.no_grad():
        model[2].weight.zero_()  # the first layer's gradients vanish
    source = models.source(model, models.number_rows(8))
    first = source.layers.layers["0"].size
    for name in ("exact", "cg", "kernel", "ekfac_cg"):
        fisher = "empirical" if name == "kernel" else "sampled"
        found = solve(source, CONVERGED.get(name, name), relative(0.1), fisher=fisher)
        assert torch.isfinite(found).all() and not found[:, :first].any(), name
        assert found[:, first:].any()


def test_batching_changes_nothing(llama):
    alone = models.source(llama.model, list(llama.examples), LAYERS, budget=1)
    for name in ("cg", "ekfac_cg", "nystrom"):
        method = CONVERGED.get(name, name)
        torch.testing.assert_close(solve(alone, method, absolute(1.0)), solve(llama, method, absolute(1.0)), **TIGHT)


def test_solves_report_what_they_did(mlp):
    method = ekfac_cg.method(steps=2, tolerance=1e-12)
    factors = fit(mlp, method)
    inverse = method.operator(factors, Problem(mlp)).power(-1, relative(0.1))
    layout = Layout.of(mlp.layers.sizes)
    inverse.apply({n: Full(part) for n, part in layout.unpack(block(mlp)).items()})
    (report,) = inverse.reports
    assert report["steps"] == [2, 2, 2] and report["rows"] == 9
    assert "step limit" in report["reason"] and set(report["damping_per_layer"]) == {"0", "2"}


def test_fixed_rows_are_a_seeded_choice(mlp):
    few = cg.method(rows=3, steps=500, tolerance=1e-11)
    operator = few.operator(fit(mlp, few), Problem(mlp))
    assert 3 <= operator.products.rows < 9
    torch.testing.assert_close(solve(mlp, few), solve(mlp, few), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["exact", "cg", "kernel"])
def test_factored_damping_is_refused(name, mlp):
    with pytest.raises(CurvatureError, match="Kronecker"):
        solve(mlp, name, factored(0.1))


def test_lissa_that_diverges_is_explained(mlp):
    largest = float(torch.linalg.eigvalsh(dense(mlp))[-1])
    with pytest.raises(CurvatureError, match="diverged"):
        solve(mlp, lissa.method(scale=largest / 4, full_batch=True), absolute(1e-3))


def test_lissa_on_minibatches_is_near_the_truth(mlp):
    wanted = truth(dense(mlp), block(mlp), 1.0)
    got = solve(mlp, lissa.method(depth=60, repeats=2), absolute(1.0))
    assert float(torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted)) < 0.1


def test_exact_of_a_large_model_is_refused(mlp, monkeypatch):
    monkeypatch.setattr(exact, "MOST_PARAMETERS", 10)
    with pytest.raises(ResourceError, match="cg"):
        solve(mlp, "exact")
