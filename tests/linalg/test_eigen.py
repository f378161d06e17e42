"""Eigendecompositions: other drivers when one fails, what was needed is told, the layer is named; shares add up."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from whence.curvature.ekfac import decompose
from whence.errors import CurvatureError
from whence.linalg import eigen
from whence.linalg.eigen import eigh, eigh_all, recorded, shares, spread_over


def covariance(size: int, *, rank: int | None = None, seed: int = 0) -> Tensor:
    rows = torch.randn(rank or 2 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rows.T @ rows / len(rows)


def restored(lam: Tensor, q: Tensor) -> Tensor:
    return (q * lam) @ q.T


@pytest.fixture
def broken(monkeypatch):
    """Makes the first ``count`` attempts fail, the torch driver's and then SciPy's; counts all of them."""
    tried: list[str] = []
    real_torch, real_scipy = torch.linalg.eigh, eigen.scipy.linalg.eigh

    def install(count: int, *, nan: bool = False) -> list[str]:
        def attempt(name, real):
            def run(matrix, **given):
                tried.append(name)
                if len(tried) <= count and not nan:
                    raise torch.linalg.LinAlgError("failed to converge\nfor 3 off-diagonal elements")
                found = real(matrix, **given)
                return tuple(part * float("nan") for part in found) if len(tried) <= count else found

            return run

        monkeypatch.setattr(torch.linalg, "eigh", attempt("torch", real_torch))
        monkeypatch.setattr(eigen.scipy.linalg, "eigh", attempt("scipy", real_scipy))
        return tried

    return install


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize(("failures", "said"), [(0, None), (1, "QR driver"), (2, "shift of its diagonal")])
def test_other_drivers_when_one_fails(broken, failures: int, said: str | None, nan: bool) -> None:
    matrix = covariance(6)
    tried = broken(failures, nan=nan)
    with recorded() as notes:
        lam, q = eigh(matrix)
    assert tried == ["torch", *["scipy"] * failures]
    assert [said in note for note in notes] == [True] if said else not notes
    torch.testing.assert_close(restored(lam, q), matrix, rtol=0, atol=1e-12)
    assert lam.tolist() == sorted(lam.tolist()) and q.dtype == matrix.dtype


def test_when_all_fail_the_layer_is_named(broken) -> None:
    broken(99)
    with pytest.raises(CurvatureError, match=r"layer mlp, A: no driver decomposes a covariance of 4 x 4: failed to"):
        decompose({"mlp": {"G": covariance(3), "A": covariance(4)}} | {"mlp": {"A": covariance(4), "G": torch.ones(3)}})


def test_not_finite_is_found_before_any_driver(broken) -> None:
    tried = broken(0)
    with pytest.raises(CurvatureError, match="layer q, G: a covariance is not finite"):
        decompose({"q": {"G": covariance(3) * float("inf"), "A": covariance(3)}})
    assert not tried


def test_what_was_needed_names_the_layer(broken) -> None:
    broken(1)
    with recorded() as notes:
        decompose({"k": {"G": covariance(3), "A": covariance(4)}})
    assert len(notes) == 1 and notes[0].startswith("layer k, G: a 3 x 3 covariance was decomposed by LAPACK's QR")


@pytest.mark.parametrize("matrix", [torch.zeros(5, 5), covariance(5, rank=1), covariance(9, rank=2).float()])
def test_singular_matrices(matrix: Tensor) -> None:
    lam, q = eigh(matrix)
    assert bool((lam >= 0).all())
    scale = max(1.0, float(matrix.abs().max()))
    torch.testing.assert_close(restored(lam, q), matrix, rtol=0, atol=scale * torch.finfo(matrix.dtype).eps * 50)


def test_a_matrix_with_a_negative_eigenvalue_is_no_covariance() -> None:
    with pytest.raises(CurvatureError, match=r"eigenvalue -1 below 0 \(largest 2\)"):
        eigh(torch.diag(torch.tensor([2.0, -1.0])))


def test_equal_matrices_are_decomposed_once_and_share_the_tensor(broken) -> None:
    tried = broken(0)
    a = covariance(4)
    found = decompose({name: {"G": covariance(3, seed=n), "A": a.clone()} for n, name in enumerate("qkv")})
    assert len(tried) == 4 and found["q"]["QA"] is found["k"]["QA"] is found["v"]["QA"]


def test_shares_are_even_and_cover_everything() -> None:
    sizes = [4096, 1024, 1024, 1024, 4096, 11008, 4096, 64]
    for world in (1, 2, 3, 20):
        owners = shares(sizes, world)
        load = [sum(s**3 for s, o in zip(sizes, owners, strict=True) if o == rank) for rank in range(world)]
        assert len(owners) == len(sizes) and max(load) <= max(max(s**3 for s in sizes), 1.34 * sum(load) / world)
        assert owners == shares(sizes, world)


@dataclass
class Threads:
    """Processes as threads of one: what ``gradients.ranks.Ranks`` does with collectives."""

    rank: int
    world: int
    barrier: threading.Barrier
    board: dict[Any, Any]
    calls: list[int] = field(default_factory=lambda: [0])

    def _key(self, kind: str) -> tuple[str, int]:
        self.calls[0] += 1
        return kind, self.calls[0]

    def from_rank(self, source: int, tensor: Tensor) -> Tensor:
        key = self._key("tensor")
        if source == self.rank:
            self.board[key] = tensor.clone()
        self.barrier.wait(10)
        return self.board[key]

    def everyone(self, value: Any) -> list[Any]:
        key = self._key("value")
        self.board[key, self.rank] = value
        self.barrier.wait(10)
        return [self.board[key, rank] for rank in range(self.world)]


def together(world: int, work) -> list[Any]:
    """What ``work()`` gives (or raises) in each of several processes that share out their decompositions."""
    barrier, board = threading.Barrier(world), {}
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        with spread_over(Threads(rank, world, barrier, board)):
            try:
                results[rank] = work()
            except CurvatureError as error:
                results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shared_out_it_gives_the_same_bytes(broken, world: int) -> None:
    matrices = [covariance(size, seed=size) for size in (7, 3, 5, 9, 2)]
    alone = eigh_all(matrices, list("abcde"))
    tried = broken(0)
    for found in together(world, lambda: eigh_all(matrices, list("abcde"))):
        for (lam, q), (true_lam, true_q) in zip(found, alone, strict=True):
            assert torch.equal(lam, true_lam) and torch.equal(q, true_q)
    assert len(tried) == len(matrices)  # each was decomposed by one of them


def test_a_failure_of_one_is_raised_by_all() -> None:
    matrices = [covariance(5), covariance(4) * float("nan")]
    errors = together(2, lambda: eigh_all(matrices, ["good", "bad"]))
    assert [str(error).splitlines()[0] for error in errors] == ["bad: a covariance is not finite"] * 2
