"""One search space for many dampings: exact when it is the whole space, honest about its residual when it is not."""

from __future__ import annotations

import pytest
import torch

from reference import models, twins
from whence.curvature import ekfac_cg
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.evaluate.damping import sweep
from whence.linalg.damping import absolute
from whence.linalg.matrix_batch import Full
from whence.linalg.packing import Layout
from whence.scores.score import collect

DAMPINGS = tuple(map(absolute, (0.01, 0.1, 1.0)))


@pytest.fixture(scope="module")
def world():
    source = models.source(models.mlp(), models.number_rows(9))
    modules = twins.modules_of(source.model, source.layers.names)
    matrix = twins.dense_gauss_newton(source.model, source.task, source.examples, modules, twins.square_hessian)
    method = get_method("ekfac_cg")
    return source, matrix, method.operator(fit(source, method), Problem(source)), Layout.of(source.layers.sizes)


def vectors(layout: Layout, count: int) -> torch.Tensor:
    return torch.randn(count, layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def solved(matrix: torch.Tensor, x: torch.Tensor, damping: float) -> torch.Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), x.T).T


def test_a_whole_space_is_the_dense_inverse_at_every_damping(world) -> None:
    _, matrix, operator, layout = world
    x = vectors(layout, layout.size)
    space = operator.together(DAMPINGS, x)
    assert len(space.basis_SD) == layout.size
    for damping in DAMPINGS:
        inverse = space.power(-1, damping)
        found = inverse.apply({n: Full(part) for n, part in layout.unpack(x).items()})
        got = layout.pack({n: part.full() for n, part in found.items()})
        torch.testing.assert_close(got, solved(matrix, x, damping.value), rtol=1e-8, atol=1e-8)
        assert max(inverse.reports[0]["relative_residuals"]) < 1e-9


def test_a_small_space_says_how_far_it_is(world) -> None:
    _, matrix, operator, layout = world
    x = vectors(layout, 2)
    inverse = operator.together(DAMPINGS, x).power(-1, DAMPINGS[0])
    found = inverse.apply({n: Full(part) for n, part in layout.unpack(x).items()})
    got = layout.pack({n: part.full() for n, part in found.items()})
    damped = matrix + DAMPINGS[0].value * torch.eye(len(matrix), dtype=matrix.dtype)
    wanted = torch.linalg.vector_norm(x - got @ damped, dim=1) / torch.linalg.vector_norm(x, dim=1)
    assert float(wanted.min()) > 1e-6, "the case must be unfinished"
    assert inverse.reports[0]["relative_residuals"] == pytest.approx(wanted.tolist(), rel=1e-8)


def test_it_is_nearer_than_the_preconditioner_at_every_end(world) -> None:
    """EK-FAC's answers at the ends and the middle are in the space, and the answer is the best of the space."""
    source, matrix, operator, layout = world
    x = vectors(layout, 2)
    space, method = operator.together(DAMPINGS, x), get_method("ekfac")
    rough = method.operator(fit(source, method), Problem(source))
    given = {n: Full(part) for n, part in layout.unpack(x).items()}
    for damping in DAMPINGS:
        damped = matrix + damping.value * torch.eye(len(matrix), dtype=matrix.dtype)
        lengths = []
        for inverse in (space.power(-1, damping), rough.power(-1, damping)):
            away = layout.pack({n: p.full() for n, p in inverse.apply(given).items()}) - solved(
                matrix, x, damping.value
            )
            lengths.append((away @ damped * away).sum(1).sqrt())
        assert bool((lengths[0] < lengths[1]).all())


def test_a_sweep_takes_the_products_of_one_solve(world, monkeypatch) -> None:
    source, _, operator, layout = world
    seen = []
    apply = type(operator.products).apply
    monkeypatch.setattr(type(operator.products), "apply", lambda self, x: (seen.append(len(x)), apply(self, x))[1])
    asked = collect(source.sample(2))
    rows = collect(source, "true")
    found = sweep(operator, DAMPINGS, queries=(asked.ids, asked.grads), rows=(rows.ids, rows.grads))
    assert sum(seen) <= 2 * (3 + ekfac_cg.DEPTH - 1)
    space = operator.together(DAMPINGS, layout.pack({n: g.full() for n, g in asked.grads.items()}))
    for n, damping in enumerate(DAMPINGS):
        inverse = space.power(-1, damping)
        solution = inverse.apply(asked.grads)
        wanted = sum(solution[name].dot(rows.grads[name]) for name in solution)
        torch.testing.assert_close(torch.from_numpy(found.scores_DLQN[n].sum(0)), wanted, rtol=1e-10, atol=1e-12)
        assert found.residuals[n] == pytest.approx(max(inverse.reports[0]["relative_residuals"]))
