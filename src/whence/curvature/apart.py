"""Which layers' eigendecompositions go together, where several processes share out those of a stage.

The division depends on the layers' sizes only, never on who computes, so any number of processes makes the same files.
Layers of one module stay together: q, k and v see the same inputs, and their covariance is decomposed once.
"""

from __future__ import annotations

from collections.abc import Mapping

from whence.linalg.partition import LARGEST

PART = 4 * 1024**3  # cost of a part worth a file of its own: one to two seconds of a core
MOST_PARTS = 64


def parts_of(sizes: Mapping[str, tuple[int, int]], part: float | None = None) -> list[tuple[str, ...]]:
    """Layers in parts of about equal cost, as many as are worth a file each; one part of all where nothing is gained.

    Args:
        sizes: layer -> (O, I).
        part: least cost, in cubed directions; ``PART`` by default.
    """
    modules: dict[str, list[str]] = {}
    for name in sizes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    costs = {module: _cost([sizes[name] for name in names]) for module, names in modules.items()}
    count = min(MOST_PARTS, len(modules), int(sum(costs.values()) / (PART if part is None else part)))
    if count < 2:
        return [tuple(sizes)]
    load, held = [0] * count, [set[str]() for _ in range(count)]
    for module in sorted(modules, key=lambda m: -costs[m]):  # longest first, each to whoever has least to do so far
        least = load.index(min(load))
        load[least] += costs[module]
        held[least].update(modules[module])
    return [tuple(name for name in sizes if name in names) for names in held]


def _cost(sizes: list[tuple[int, int]]) -> int:
    """Cubed directions of a module's sides; equal inputs count once, and sides too long to be decomposed not at all."""
    sides = [outputs for outputs, _ in sizes] + sorted({inputs for _, inputs in sizes})
    return sum(side**3 for side in sides if side <= LARGEST)
