"""Projections: unbiased, the same everywhere, and refused where they make no sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whence.errors import OptionError, StoreError
from whence.linalg import draws
from whence.linalg.matrix_batch import Full, Outer
from whence.linalg.projection import check_injective, pca_projection, random_projection, require_same

PINNED_SIGNS = [[-1, 1, 1, -1, -1, -1, -1, -1], [1, -1, -1, -1, -1, 1, 1, -1]]
PINNED_NORMALS = [1.6673704533308595, -0.17374578312704606, -0.1364846579507803, 1.612805053365713]
SHAPES = {"a": (12, 20), "b": (30, 9)}


def gradients(seed: int = 0) -> dict[str, Outer]:
    generator = torch.Generator().manual_seed(seed)
    return {
        n: Outer(
            torch.randn(3, 4, o, generator=generator, dtype=torch.float64),
            torch.randn(3, 4, i, generator=generator, dtype=torch.float64),
        )
        for n, (o, i) in SHAPES.items()
    }


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_outer_and_full_project_alike_and_outer_stays_outer(kind):
    projection = random_projection(SHAPES, size=(5, 4), kind=kind, seed=3)
    x = gradients()
    small = projection.apply(x)
    for name in SHAPES:
        assert isinstance(small[name], Outer) and small[name].shape == (3, 5, 4)
        torch.testing.assert_close(small[name].full(), projection.one(name, Full(x[name].full())).full())
        assert projection.transpose(name, small[name]).shape == x[name].shape


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_inner_products_are_unbiased_whatever_the_layer_shape(kind):
    """Entries of variance 1/p per side: the mean over many seeds is the unprojected inner product."""
    x = {n: Full(g.full()) for n, g in gradients().items()}
    for name in SHAPES:
        true = float(x[name].squared_norm()[0])
        estimates = [
            float(random_projection(SHAPES, size=6, kind=kind, seed=s).one(name, x[name]).squared_norm()[0])
            for s in range(300)
        ]
        error = np.std(estimates) / np.sqrt(len(estimates))
        assert abs(np.mean(estimates) - true) < 4 * error
        assert error < 0.06 * true


def test_numbers_are_pinned_forever():
    """A change of these values breaks every stored index: raise draws.VERSION when it must happen."""
    assert draws.VERSION == 1
    assert draws.signs(2, 8, "pin").astype(int).tolist() == PINNED_SIGNS
    np.testing.assert_allclose(draws.normals(1, 4, "pin")[0], PINNED_NORMALS, rtol=1e-12)


def test_draws_have_the_right_moments():
    normal, sign = draws.normals(300, 301, "moments", 1), draws.signs(300, 301, "moments", 1)
    assert abs(normal.mean()) < 0.02 and abs(normal.var() - 1) < 0.02 and abs((normal**4).mean() - 3) < 0.15
    assert set(np.unique(sign)) == {-1.0, 1.0} and abs(sign.mean()) < 0.02
    assert not np.array_equal(draws.normals(2, 3, "a"), draws.normals(2, 3, "b"))


def test_same_seed_same_numbers_whatever_else_is_projected():
    alone = random_projection({"b": SHAPES["b"]}, size=4, seed=1)
    both = random_projection(SHAPES, size=4, seed=1)
    assert torch.equal(alone.sides["b"].left_PO, both.sides["b"].left_PO)
    other = random_projection(SHAPES, size=4, seed=2)
    assert not torch.equal(both.sides["b"].left_PO, other.sides["b"].left_PO)
    assert both.sides["a"].left_PO.dtype == torch.float64, "drawn in float64, cast to the gradients' dtype when used"
    low = {n: Full(g.full().float()) for n, g in gradients().items()}
    assert both.one("a", low["a"]).dtype == torch.float32


def test_projection_larger_than_the_layer_is_refused():
    with pytest.raises(OptionError, match="larger than layer 'b'") as error:
        random_projection(SHAPES, size=10)
    assert "size 9 or less" in error.value.try_
    kept = random_projection(SHAPES, size=10, small="keep")
    assert kept.sides["b"].right_RI is None
    assert kept.apply(gradients())["b"].shape == (3, 10, 9)
    assert kept.about["layers"]["b"] == [30, 9, 10, 9]


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": (4, -1)}, {"size": 4, "kind": "fourier"}])
def test_bad_settings_are_explained(bad):
    with pytest.raises(OptionError):
        random_projection(SHAPES, **bad)


def test_pca_sides_are_the_top_eigenvectors():
    x = gradients()
    covariances = {
        n: (torch.einsum("bto,btp->op", g.g_BTO, g.g_BTO), torch.einsum("bti,btj->ij", g.a_BTI, g.a_BTI))
        for n, g in x.items()
    }
    projection = pca_projection(covariances, size=5)
    left = projection.sides["a"].left_PO
    torch.testing.assert_close(left @ left.T, torch.eye(5, dtype=torch.float64))
    kept = (left @ covariances["a"][0] @ left.T).trace()
    torch.testing.assert_close(kept, torch.linalg.eigvalsh(covariances["a"][0])[-5:].sum())
    whole = pca_projection({"a": covariances["a"]}, size=(12, 20), small="keep")
    torch.testing.assert_close(whole.one("a", x["a"]).full(), x["a"].full())


def test_mismatched_projections_are_refused_by_name():
    about = random_projection(SHAPES, size=4, seed=1).about
    require_same(about, random_projection(SHAPES, size=4, seed=1).about)
    for other, word in (
        (random_projection(SHAPES, size=4, seed=2), "seed"),
        (random_projection(SHAPES, size=4, seed=1, kind="gaussian"), "kind"),
        (random_projection({"a": SHAPES["a"]}, size=4, seed=1), "layers"),
    ):
        with pytest.raises(StoreError, match=word):
            require_same(about, other.about)
    with pytest.raises(StoreError, match="version"):
        require_same({**about, "version": 0}, about)


def test_too_few_dimensions_for_the_rank_are_found():
    projection = random_projection(SHAPES, size=4, seed=1)
    assert check_injective(projection, {"a": 17, "b": 16}) == ["a"]
