"""The projected family against brute force: every number again from formed gradients, flat and in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reference.models import source, tiny_llama, token_rows
from whence.curvature import trackstar, trak
from whence.curvature.base import Problem, Sums, get_method
from whence.curvature.fit import Accumulate, FitOptions, fit
from whence.errors import CurvatureError, OptionError
from whence.gradients.fisher import gradient_rows
from whence.linalg.compressed import Compressed, Squeeze
from whence.linalg.damping import absolute, factored, relative
from whence.linalg.matrix_batch import Full, Outer
from whence.linalg.operators import Dense
from whence.linalg.projection import Sides, random_projection
from whence.scores.relative import cosine_scores
from whence.scores.score import pairwise, prepare_queries, self_influence

PATTERNS = ("*q_proj", "*down_proj")
EMPIRICAL = FitOptions(fisher="empirical")
DAMPING = relative(0.1)


@pytest.fixture
def train():
    return source(tiny_llama(), token_rows(9), PATTERNS)


@pytest.fixture
def query():
    return source(tiny_llama(), token_rows(3, seed=8), PATTERNS)


def flat(live, labels="true"):
    """Gradients in the source's order (they arrive batch after batch)."""
    order = torch.tensor([n for batch in live.plan.batches for n in batch]).argsort()
    return {n: r[order] for n, r in gradient_rows(live, labels=labels).items()}


def inverse(spec, live, damping=DAMPING, queries=None):
    method = get_method(spec)
    return method.operator(fit(live, method, EMPIRICAL), Problem(live, "empirical", 0, queries)).power(-1, damping)


def damped(matrix, damping):
    shift = damping.value * (matrix.diagonal().mean() if damping.kind == "relative" else 1.0)
    return torch.linalg.inv(matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype))


def kron(sides: Sides, size):
    left = torch.eye(size[0]).double() if sides.left_PO is None else sides.left_PO
    right = torch.eye(size[1]).double() if sides.right_RI is None else sides.right_RI
    return torch.kron(left, right)


# --- the operator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("short", ["both", "left", "right", "none"])
def test_compressed_is_its_dense_matrix(short, weighted, rng):
    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    outputs, inputs = 5, 4
    left = draw(3, outputs) if short in ("both", "left") else None
    right = draw(2, inputs) if short in ("both", "right") else None
    squeeze = Squeeze(Sides(left, right), outputs, inputs, draw(outputs, inputs) if weighted else None)
    p, r = squeeze.sides.shape(outputs, inputs)
    half = draw(p * r, p * r)
    damped_once = Compressed(squeeze, Dense(half @ half.T, p, r)).power(-1, absolute(0.3))
    inner = torch.linalg.inv(half @ half.T + 0.3 * torch.eye(p * r, dtype=torch.float64))
    both = kron(squeeze.sides, (outputs, inputs))
    if weighted:
        both = both * squeeze.weights_OI.flatten()
    truth = both.T @ inner @ both
    torch.testing.assert_close(damped_once.dense(), truth)
    x, y = Outer(draw(3, 6, outputs), draw(3, 6, inputs)), Full(draw(2, outputs, inputs))
    wanted = x.full().flatten(1) @ truth
    torch.testing.assert_close(damped_once.apply(x).full().flatten(1), wanted)
    whitened = damped_once.whiten(x).dot(damped_once.whiten(y))
    torch.testing.assert_close(whitened, wanted @ y.full().flatten(1).T)


def test_a_layer_without_curvature_scores_nothing():
    squeeze = Squeeze(Sides(None, None), 2, 3)
    dead = Compressed(squeeze, Dense(torch.zeros(6, 6, dtype=torch.float64), 2, 3)).power(-1, relative(0.1))
    x = Full(torch.ones(1, 2, 3, dtype=torch.float64))
    assert not dead.apply(x).full().any() and not dead.whiten(x).full().any()


def test_factored_damping_is_explained(train):
    with pytest.raises(CurvatureError, match=r"Gram.*(?s:.*)relative:0.1"):
        inverse("logra:size=3", train, factored(0.1))


# --- logra, projected ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_logra_is_the_damped_gram_of_projected_gradients(kind, train, query):
    found = pairwise(train, prepare_queries(query, inverse(f"logra:size=3,kind={kind},seed=7", train)))
    projection = random_projection(train.layers.sizes, size=3, kind=kind, seed=7)
    rows, asked, truth = flat(train), flat(query, "measurement"), 0.0
    for name, size in train.layers.sizes.items():
        both = kron(projection.sides[name], size)
        small, small_q = rows[name] @ both.T, asked[name] @ both.T
        truth = truth + small_q @ damped(small.T @ small / len(small), DAMPING) @ small.T
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-9, atol=1e-12)


def test_pca_sides_are_the_top_kfac_eigenvectors(train, query):
    found = pairwise(train, prepare_queries(query, inverse("logra:size=3,kind=pca", train)))
    kfac = fit(train, get_method("kfac"), EMPIRICAL).tensors
    rows, asked, truth = flat(train), flat(query, "measurement"), 0.0
    for name in train.layers.sizes:
        left, right = (torch.linalg.eigh(kfac[name][which])[1][:, -3:].T for which in ("G", "A"))
        both = torch.kron(left.contiguous(), right.contiguous())
        small, small_q = rows[name] @ both.T, asked[name] @ both.T
        truth = truth + small_q @ damped(small.T @ small / len(small), DAMPING) @ small.T
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-9, atol=1e-12)


def test_unprojected_logra_is_the_exact_block_of_the_empirical_fisher(train, query):
    """A projection that is not smaller than the layer is left out, and said so."""
    method = get_method("logra:size=100")
    factors = fit(train, method, EMPIRICAL)
    assert any("kept whole" in note for note in factors.about["notes"])
    assert not get_method("logra:size=2").notes(train.layers.sizes)
    operator = method.operator(factors, Problem(train)).power(-1, DAMPING)
    found = pairwise(train, prepare_queries(query, operator))
    rows, asked = flat(train), flat(query, "measurement")
    truth = sum(asked[n] @ damped(rows[n].T @ rows[n] / len(rows[n]), DAMPING) @ rows[n].T for n in rows)
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-8, atol=1e-10)


def test_one_side_too_short_is_kept_and_the_other_projected(train):
    sizes = train.layers.sizes
    name, (outputs, inputs) = max(sizes.items(), key=lambda item: item[1][1] - item[1][0])
    size = min(outputs, inputs)
    assert outputs != inputs
    factors = fit(train, get_method(f"logra:size={size}"), EMPIRICAL)
    kept = {side for side in ("left", "right") if side not in factors.tensors[name]}
    assert kept == ({"left"} if outputs < inputs else {"right"})


def test_projected_is_the_dot_product_of_projected_gradients(train, query):
    operator = inverse("projected:size=3,seed=2", train)
    queries = prepare_queries(query, operator)
    found = pairwise(train, queries)
    projection = random_projection(train.layers.sizes, size=3, seed=2)
    rows, asked = flat(train), flat(query, "measurement")
    small = torch.cat([rows[n] @ kron(projection.sides[n], s).T for n, s in train.layers.sizes.items()], 1)
    small_q = torch.cat([asked[n] @ kron(projection.sides[n], s).T for n, s in train.layers.sizes.items()], 1)
    np.testing.assert_allclose(found, (small_q @ small.T).numpy(), rtol=1e-9, atol=1e-12)
    cosine = cosine_scores(found, self_influence(train, operator), queries.self_influence)
    unit = torch.nn.functional.normalize(small_q, dim=1) @ torch.nn.functional.normalize(small, dim=1).T
    np.testing.assert_allclose(cosine, unit.numpy(), rtol=1e-9)
    assert get_method("projected:unit=true").normalise == "cosine"


def test_bad_settings_are_explained():
    for spec, word in (("logra:size=0", "size=0"), ("logra:kind=fjlt", "kind"), ("projected:kind=pca", "pca"),
                       ("trackstar:share=2", "share=2"), ("trackstar:normaliser=x", "normaliser")):  # fmt: skip
        with pytest.raises(OptionError, match=word):
            get_method(spec)


def test_seeds_change_random_sides_only_by_seed(train, query):
    first, again, other = (
        pairwise(train, prepare_queries(query, inverse(f"logra:size=3,seed={seed}", train))) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other)


# --- trackstar -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normaliser", ["row_column", "elementwise", "none"])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_trackstar_by_hand(normaliser, share, train, query):
    spec = f"trackstar:size=3,seed=4,normaliser={normaliser},share={share}"
    operator = inverse(spec, train, queries=query)
    queries = prepare_queries(query, operator)
    found = cosine_scores(pairwise(train, queries), self_influence(train, operator), queries.self_influence)
    projection = random_projection(train.layers.sizes, size=3, seed=4)
    rows, asked = flat(train), flat(query, "measurement")
    whitened, whitened_q = [], []
    for name, size in train.layers.sizes.items():
        v = rows[name].square().mean(0).view(size)
        if normaliser == "row_column":
            v = torch.outer(v.mean(1), v.mean(0)) / v.mean()
        scale = torch.ones(v.numel()).double() if normaliser == "none" else v.flatten().rsqrt()
        both = kron(projection.sides[name], size)
        small, small_q = (rows[name] * scale) @ both.T, (asked[name] * scale) @ both.T
        r = share * small_q.T @ small_q / len(small_q) + (1 - share) * small.T @ small / len(small)
        root = torch.linalg.cholesky(damped(r, DAMPING))
        whitened.append(small @ root)
        whitened_q.append(small_q @ root)
    unit, unit_q = (torch.nn.functional.normalize(torch.cat(parts, 1), dim=1) for parts in (whitened, whitened_q))
    np.testing.assert_allclose(found, (unit_q @ unit.T).numpy(), rtol=1e-8, atol=1e-10)
    assert get_method(spec).normalise == "cosine"
    assert get_method("trackstar:unit=false").normalise == "none"


def test_the_balance_of_both_parts(rng):
    a, b = (torch.randn(5, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    asked, train = {"x": a @ a.T}, {"x": b @ b.T}
    share = trackstar.balanced(asked, train, rank=3)
    third = [torch.linalg.eigvalsh(m["x"])[-3] for m in (asked, train)]
    assert share * third[0] == pytest.approx(float((1 - share) * third[1]))
    assert trackstar.balanced({"x": torch.zeros(2, 2)}, {"x": torch.eye(2)}) == 0.0


def test_zero_norm_gives_zero_in_float32_too():
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    found = cosine_scores(values, np.array([0.0, 1.0], dtype=np.float32), np.array([1.0], dtype=np.float32))
    assert found.tolist() == [[0.0, 1.0]]


# --- trak ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [relative(0.1), absolute(0.01)])
def test_trak_kernel_of_margins_against_loss_gradients(damping, train, query):
    operator = inverse("trak:size=3,seed=6", train, damping)
    found = pairwise(train, prepare_queries(trak.margins(query), operator))
    projection = random_projection(train.layers.sizes, size=3, seed=6)

    def small(rows):
        return {n: rows[n] @ kron(projection.sides[n], s).T for n, s in train.layers.sizes.items()}

    phi, loss, asked = (
        small(flat(trak.margins(train), "measurement")),
        small(flat(train)),
        small(flat(trak.margins(query), "measurement")),
    )
    shifts = {
        n: damping.value * (float(p.square().sum() / p.numel()) if damping.kind == "relative" else 1.0)
        for n, p in phi.items()
    }
    spread = torch.cat([torch.full((phi[n].shape[1],), shifts[n], dtype=torch.float64) for n in phi])
    rows, losses, questions = (torch.cat([part[n] for n in phi], 1) for part in (phi, loss, asked))
    kernel = torch.linalg.inv(rows.T @ rows / len(rows) + torch.diag(spread))
    np.testing.assert_allclose(found, (questions @ kernel @ losses.T).numpy(), rtol=1e-8, atol=1e-12)


def test_more_rows_than_numbers_takes_the_other_form(query):
    many = source(tiny_llama(), token_rows(25), ("*q_proj",))
    asked = source(tiny_llama(), token_rows(2, seed=8), ("*q_proj",))
    operator = inverse("trak:size=3", many)
    assert operator.inner.fisher.rows_ND.shape == (25, 9)
    queries = prepare_queries(trak.margins(asked), operator)
    phi = operator.inner.fisher.rows_ND
    raw = flat(trak.margins(asked), "measurement")
    projection = random_projection(many.layers.sizes, size=3)
    ((name, size),) = many.layers.sizes.items()
    both = kron(projection.sides[name], size)
    truth = raw[name] @ both.T @ damped(phi.T @ phi / 25, DAMPING) @ both
    torch.testing.assert_close(queries.grads[name].full().flatten(1), truth)


# --- laws of a fit -------------------------------------------------------------------------------------------------

FITTED = ["logra:size=3", "logra:size=3,kind=pca", "trackstar:size=3", "trackstar:size=3,normaliser=elementwise",
          "trak:size=3", "projected:size=3"]  # fmt: skip


@pytest.mark.parametrize("spec", FITTED)
def test_batching_padding_and_order_change_nothing(spec, query):
    rows = token_rows(9)
    order = np.random.default_rng(0).permutation(len(rows))

    def scores(chosen, budget):
        live = source(tiny_llama(), chosen, PATTERNS, budget=budget)
        return pairwise(live, prepare_queries(query, inverse(spec, live)))

    plain = scores(rows, 12)
    np.testing.assert_allclose(scores(rows, 1), plain, rtol=1e-8, atol=1e-10 * np.abs(plain).max())
    np.testing.assert_allclose(
        scores([rows[n] for n in order], 100), plain[:, order], rtol=1e-8, atol=1e-10 * np.abs(plain).max()
    )


@pytest.mark.parametrize("spec", ["logra:size=3", "logra:size=3,kind=pca", "trackstar:size=3"])
def test_merging_two_halves_is_the_whole(spec, train):
    method = get_method(spec)
    tensors = method.begin(train.layers.sizes)
    for stage in method.stages:
        tensors = stage.prepare(tensors)
        states = []
        for part in (range(train.n_batches), range(2), range(2, train.n_batches)):
            sums = Sums()
            train.visit(Accumulate(stage, tensors, sums), batches=part)
            states.append(sums)
        whole, joined = states[0], states[1].merged(states[2])
        assert whole.examples == joined.examples == len(train.ids)
        for layer, terms in whole.tensors.items():
            for key, value in terms.items():
                torch.testing.assert_close(joined.tensors[layer][key], value, rtol=1e-12, atol=1e-12)
        tensors = stage.finish(whole, tensors)


@pytest.mark.parametrize("spec", ["logra:size=3", "trackstar:size=3,unit=false"])
def test_huge_damping_is_the_projected_dot_product(spec, train, query):
    """With nothing left of the curvature, only the projection (and the normaliser) remain."""
    damped_away = pairwise(train, prepare_queries(query, inverse(spec, train, absolute(1e9)))) * 1e9
    factors = fit(train, get_method(spec), EMPIRICAL)
    rows, asked, truth = flat(train), flat(query, "measurement"), 0.0
    for name, tensors in factors.tensors.items():
        both = torch.kron(tensors["left"].contiguous(), tensors["right"].contiguous())
        truth = truth + asked[name] @ both.T @ both @ rows[name].T
    np.testing.assert_allclose(damped_away, truth.numpy(), rtol=1e-4, atol=1e-4 * float(truth.abs().max()))
