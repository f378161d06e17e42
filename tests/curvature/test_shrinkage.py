"""The share of the fixed rows: found by what predicts held-out rows, between EK-FAC and the rows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference import models
from whence.curvature import ekfac_cg, exact
from whence.curvature.base import Method, Problem, get_method
from whence.curvature.fit import fit
from whence.curvature.shrinkage import Mixture, choose_share
from whence.gradients.fisher import gradient_rows
from whence.linalg.damping import absolute
from whence.linalg.iterative import matrix_apply
from whence.linalg.matrix_batch import Full
from whence.linalg.packing import Layout

SIZE, DAMPING = 30, 0.02


def random_rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    """A root of the true matrix: correlated coordinates, which a diagonal picture misses."""
    return torch.linalg.qr(random_rows(SIZE, 0))[0] * torch.logspace(0, -1.5, SIZE, dtype=torch.float64)


def mixture(truth: torch.Tensor, rows: int) -> tuple[Mixture, torch.Tensor]:
    samples = random_rows(rows, 1) @ truth.T
    halves = [half.T @ half / len(half) for half in (samples[::2], samples[1::2])]
    diagonal = torch.diag((truth @ truth.T).diagonal())
    shift = torch.full((SIZE,), DAMPING, dtype=torch.float64)
    inverse = torch.diag(1 / (diagonal.diagonal() + shift))
    pieces = Mixture([matrix_apply(h) for h in halves], matrix_apply(diagonal), matrix_apply(inverse), shift)
    return pieces, samples.T @ samples / rows


def error(matrix: torch.Tensor, truth: torch.Tensor) -> float:
    """How far scores are from the true ones: 1 - their correlation, for queries and rows like those of the fit."""
    eye = torch.eye(SIZE, dtype=torch.float64)
    queries, rows = random_rows(20, 5) @ truth.T, random_rows(200, 6) @ truth.T
    wanted = torch.linalg.solve(truth @ truth.T + DAMPING * eye, queries.T).T @ rows.T
    got = torch.linalg.solve(matrix + DAMPING * eye, queries.T).T @ rows.T
    return 1 - correlation(got, wanted)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over queries of the correlation over rows."""
    return float(np.mean([np.corrcoef(u, v)[0, 1] for u, v in zip(a, b, strict=True)]))


def test_few_rows_lean_on_structure_and_many_on_themselves(truth):
    shares = [choose_share(mixture(truth, rows)[0], random_rows(8, 2) @ truth.T).value for rows in (10, 60, 5000)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.7 and shares[-1] > 0.95


@pytest.mark.parametrize("rows", [10, 30, 100, 400])
def test_the_chosen_mixture_beats_both_of_its_parts(truth, rows):
    pieces, own = mixture(truth, rows)
    share = choose_share(pieces, random_rows(8, 2) @ truth.T).value
    structured = pieces.structured(torch.eye(SIZE, dtype=torch.float64))
    mixed = error(share * own + (1 - share) * structured, truth)
    assert mixed < error(structured, truth)
    assert mixed <= error(own, truth) * (1 + 1e-9)
    best = min(error(s * own + (1 - s) * structured, truth) for s in np.linspace(0, 1, 21))
    assert mixed < best * 1.1, "near the best share there is"


def test_noise_has_no_say(truth):
    """Two halves that agree on nothing (each sees directions of its own) leave EK-FAC alone."""
    pieces, _ = mixture(truth, 100)
    directions = torch.linalg.qr(random_rows(12, 8).T)[0].T
    noise = [matrix_apply(half.T @ half) for half in (directions[:6], directions[6:])]
    probes = random_rows(6, 2)[:, :12] @ directions
    share = choose_share(Mixture(noise, pieces.structured, pieces.inverse, pieces.shift_D), probes)
    assert share.value < 0.3 and "EK-FAC alone" in share.reason


def test_dependent_probes_are_no_trouble(truth):
    pieces, _ = mixture(truth, 60)
    probes = random_rows(3, 2) @ truth.T
    doubled = torch.cat([probes, probes, torch.zeros_like(probes)])
    assert choose_share(pieces, doubled, depth=5).value > 0


def solve(source, method: Method, damping):
    """The method's damped inverse on gradients of rows like those of the source."""
    operator = method.operator(fit(source, method), Problem(source)).power(-1, damping)
    asked = models.source(source.model, models.number_rows(12, seed=9))
    found = operator.apply({n: Full(x.view(len(x), *asked.layers.sizes[n])) for n, x in gradient_rows(asked).items()})
    return Layout.of(source.layers.sizes).pack({n: part.full() for n, part in found.items()}), operator


@pytest.fixture(scope="module")
def source():
    return models.source(models.mlp(), models.number_rows(60, seed=4))


def test_share_of_zero_is_ekfac(source):
    mixed, _ = solve(source, ekfac_cg.method(share=0.0, rows=12, tolerance=1e-11), absolute(0.05))
    plain, _ = solve(source, get_method("ekfac"), absolute(0.05))
    torch.testing.assert_close(mixed, plain, rtol=1e-8, atol=1e-8)


def test_few_fixed_rows_are_no_worse_than_ekfac_or_than_themselves(source):
    damping = absolute(0.01)
    truth, _ = solve(source, exact.METHOD, damping)

    kept = gradient_rows(source)
    rows = torch.cat([kept[name] for name in source.layers.sizes], 1)

    def distance(x: torch.Tensor) -> float:
        return 1 - correlation(x @ rows.T, truth @ rows.T)

    chosen, operator = solve(source, ekfac_cg.method(rows=12, steps=60), damping)
    alone, _ = solve(source, ekfac_cg.method(rows=12, steps=60, share=1.0), damping)
    plain, _ = solve(source, get_method("ekfac"), damping)
    assert distance(chosen) <= min(distance(alone), distance(plain)) * 1.05
    report = operator.reports[0]
    assert 0 <= report["share"] < 1 and report["rows"] == 12 and "held-out" in report["share_reason"]


def test_the_share_does_not_depend_on_the_queries(source):
    method = ekfac_cg.method(rows=12)
    operator = method.operator(fit(source, method), Problem(source)).power(-1, absolute(0.05))
    layout = Layout.of(source.layers.sizes)
    for scale, rows in ((1.0, 2), (1e3, 5)):
        x = torch.randn(rows, layout.size, dtype=torch.float64) * scale
        operator.apply({n: Full(part) for n, part in layout.unpack(x).items()})
    first, second = operator.reports
    assert first["share"] == second["share"]


def test_one_batch_of_fixed_rows_is_mixed_evenly(source):
    _, operator = solve(source, ekfac_cg.method(rows=1), absolute(0.05))
    assert operator.reports[0]["share"] == 0.5
