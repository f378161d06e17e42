"""Eigendecompositions in parts: every layer once, shares of equal cost, and the numbers of the whole."""

from __future__ import annotations

import pytest
import torch

from whence.curvature.apart import PART, parts_of
from whence.curvature.base import get_method, method_names
from whence.linalg.partition import LARGEST

WIDTH = 1024


def model(layers: int, width: int = WIDTH) -> dict[str, tuple[int, int]]:
    sizes = {}
    for n in range(layers):
        sizes |= {f"h.{n}.attn.{name}": (width, width) for name in ("q", "k", "v", "o")}
        sizes |= {f"h.{n}.mlp.up": (4 * width, width), f"h.{n}.mlp.down": (width, 4 * width)}
    return sizes


def cost(sizes: dict[str, tuple[int, int]], part: tuple[str, ...]) -> int:
    """Each covariance once: what a module's layers are fed is the same."""
    inputs = {(name.rpartition(".")[0], sizes[name][1]) for name in part}
    return sum(sizes[name][0] ** 3 for name in part) + sum(side**3 for _, side in inputs)


def test_every_layer_is_in_one_part_and_parts_cost_the_same() -> None:
    sizes = model(6)
    parts = parts_of(sizes)
    assert sorted(name for part in parts for name in part) == sorted(sizes) and len(parts) > 4
    assert all(list(part) == [name for name in sizes if name in part] for part in parts)
    costs = [cost(sizes, part) for part in parts]
    largest = max(cost(sizes, tuple(n for n in sizes if n.startswith(f"h.0.{m}"))) for m in ("attn", "mlp"))
    assert max(costs) <= sum(costs) / len(costs) + largest
    assert sum(costs) / len(costs) >= PART
    for part in parts:
        modules = {name.rpartition(".")[0] for name in part}
        assert {name for name in sizes if name.rpartition(".")[0] in modules} == set(part)


def test_small_models_are_not_divided() -> None:
    assert parts_of(model(6, width=64)) == [tuple(model(6, width=64))]
    assert parts_of({"only": (4096, 4096)}) == [("only",)]
    assert parts_of({"a": (8, 8), "head": (LARGEST + 1, 8)}) == [("a", "head")]  # a vocabulary is not decomposed
    assert len(parts_of(model(2, width=8), part=1.0)) == 4


def drawn(sizes: dict[str, tuple[int, int]]) -> dict[str, dict[str, torch.Tensor]]:
    """Covariances; those of inputs are shared in a module."""
    shared, found = {}, {}
    for n, (name, (outputs, inputs)) in enumerate(sizes.items()):
        generator = torch.Generator().manual_seed(n)
        g, a = (torch.randn(50, size, generator=generator) for size in (outputs, inputs))
        a = shared.setdefault((name.rpartition(".")[0], inputs), a)
        found[name] = {"G": g.T @ g, "A": a.T @ a}
    return found


APART = [(name, n) for name in method_names() for n, stage in enumerate(get_method(name).stages) if stage.apart]


@pytest.mark.parametrize(("name", "number"), APART)
def test_parts_are_the_whole(name: str, number: int) -> None:
    sizes = model(2, width=8)
    stage, factors = get_method(name).stages[number], drawn(sizes)
    whole = stage.prepare(factors)
    for part in parts_of(sizes, part=1.0):
        alone = stage.prepare({layer: factors[layer] for layer in part})
        assert list(alone) == list(part)
        for layer, tensors in alone.items():
            assert set(tensors) == set(whole[layer])
            assert all(torch.equal(tensors[key], whole[layer][key]) for key in tensors)


def test_the_eigenbasis_is_one_of_them() -> None:
    assert ("ekfac", 1) in APART and ("shampoo", 1) in APART
