"""Folding: inner products survive, coded rows fold as the numbers they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from whence.linalg.codes.base import Layout, encoded
from whence.linalg.codes.choose import SCHEMES, choose
from whence.linalg.fold import LEAST, MOST, Fold, fold_of, hadamard, spread

LAYOUT = Layout({"a": (7, 11), "b": (20, 16), "c": (3, 3)})


def rows(count: int, total: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, total, generator=torch.Generator().manual_seed(seed)) ** 3


def slow(fold: Fold, x: torch.Tensor) -> np.ndarray:
    """The fold as a matrix, in float64."""
    matrix = np.zeros((fold.total, fold.size))
    for n in range(fold.total):
        matrix[n, int(fold.places[n])] = float(fold.signs[n])
    bits = np.array([[(i & j).bit_count() % 2 for j in range(fold.size)] for i in range(fold.size)])
    return x.double().numpy() @ matrix @ ((1 - 2 * bits) / np.sqrt(fold.size))


@pytest.mark.parametrize("size", [64, 128, 512])
def test_a_fold_is_its_matrix(size: int) -> None:
    fold, x = Fold(300, size), rows(5, 300)
    np.testing.assert_allclose(fold.dense(x).numpy(), slow(fold, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("power", [0, 1, 6, 7])
def test_spreading_is_orthonormal(power: int) -> None:
    found = spread(torch.eye(2**power, dtype=torch.float64))
    torch.testing.assert_close(found, hadamard(power))
    torch.testing.assert_close(found @ found.T, torch.eye(2**power, dtype=torch.float64))


@pytest.mark.parametrize(("scheme", "budget"), [("fp16", 2000), ("int8", 900), ("low_rank", 900), ("sparse", 300)])
def test_coded_rows_fold_as_what_they_hold(scheme: str, budget: int) -> None:
    assert scheme in SCHEMES
    code, fold = choose(LAYOUT, budget, scheme), Fold(LAYOUT.total, 128)
    record = encoded(code, rows(9, LAYOUT.total))
    whole = code.restored(record)
    units = torch.eye(LAYOUT.total, dtype=torch.float64)
    torch.testing.assert_close(whole.double(), code.dot(record, units), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fold.coded(code, record), fold.dense(whole), rtol=1e-4, atol=1e-4)
    assert fold.coded(code, {k: t[:0] for k, t in record.items()}).shape == (0, 128)


def test_short_rows_lose_nothing_and_long_ones_what_is_said() -> None:
    assert [fold_of(n).size for n in (1, 65, MOST, 10 * MOST)] == [LEAST, 128, MOST, MOST]
    x = rows(2, 406).double()
    whole, folded = x[0] @ x[1], fold_of(406).dense(x).double()
    torch.testing.assert_close(folded[0] @ folded[1], whole, rtol=1e-4, atol=1e-3)
    assert len(set(fold_of(406).places.tolist())) == 406
    long, size = rows(60, 5000, seed=1), 256
    folded = Fold(5000, size).dense(long)
    error = (folded @ folded.T - long @ long.T).double()
    bound = 2 * long.norm(dim=1)[:, None].double() ** 2 * long.norm(dim=1).double() ** 2 / size
    off = ~torch.eye(60, dtype=torch.bool)
    assert 0.3 < float((error.square() / bound)[off].mean()) < 1.0
    assert abs(float((error / bound.sqrt())[off].mean())) < 0.1
