"""Layers gathered: by kind of module, attention against MLP, and by attention head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from whence.report.records import HeadGrid, LayerSums, ModuleShare

_ATTENTION = re.compile(r"(^|[._])(self_?attn|attn|attention|[qkvo]_proj|c_attn|qkv)([._]|$)", re.IGNORECASE)
_MLP = re.compile(r"(^|[._])(mlp|ffn|feed_?forward|fc\d?|up_proj|down_proj|gate_proj|experts?)([._]|$)", re.IGNORECASE)


def part_of(layer: str) -> str:
    """``attention``, ``MLP`` or ``other``."""
    return "attention" if _ATTENTION.search(layer) else "MLP" if _MLP.search(layer) else "other"


def module_shares(names: Sequence[str], sums: LayerSums | None) -> tuple[ModuleShare, ...]:
    """Totals of attention, MLP and the rest, then of every kind of module (the last part of a layer's name)."""
    if sums is None or not (sums.proponents or sums.opponents):
        return ()
    parts = _totals("part", [part_of(name) for name in names], sums)
    kinds = _totals("kind", [name.rpartition(".")[2] for name in names], sums)
    return (*parts, *kinds)


def _totals(level: str, labels: Sequence[str], sums: LayerSums) -> list[ModuleShare]:
    found = []
    for label in dict.fromkeys(labels):
        at = [i for i, other in enumerate(labels) if other == label]
        shares = [sum(side[i] for i in at) if side else None for side in (sums.proponents, sums.opponents)]
        found.append(ModuleShare(level, label, len(at), *shares))
    return found


def head_grid(heads: Mapping[str, Sequence[float]]) -> HeadGrid | None:
    """Layers x heads of the strongest proponents' summed scores; None without heads."""
    if not heads:
        return None
    names = list(heads)
    most = max(len(shares) for shares in heads.values())
    cells = tuple((*map(float, shares), *[None] * (most - len(shares))) for shares in heads.values())
    order = sorted(range(len(heads)), key=lambda i: _natural(names[i]))
    return HeadGrid(tuple(names[i] for i in order), most, tuple(cells[i] for i in order))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts layer 10 after layer 9."""
    return [(int(piece), "") if piece.isdigit() else (0, piece) for piece in re.split(r"(\d+)", name)]
