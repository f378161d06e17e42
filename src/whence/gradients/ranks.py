"""Ranks that work on one model together: whose turn a batch is, and how what each of them saw becomes the whole.

Only for a model whose parameters are spread over the ranks (FSDP2): its forward and backward passes are collectives,
so all ranks must take the same number of steps. Each rank takes its own batches of the fixed plan; a rank that has none
left repeats one and shows it to nobody. Sums are added in the order of the ranks, so that a run repeats to the bit.

No pickle travels: tensors as they are, everything else as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# What a visitor may have as ``share``: afterwards it holds what one that saw all batches of the visit would hold.
# A visitor without it (or with None) is shown every batch on every rank.
Share = Callable[["Ranks"], None]


def share_of(visitor: object) -> Share | None:
    """How this visitor takes in what the other ranks saw, if it can."""
    return getattr(visitor, "share", None)


@dataclass(frozen=True)
class Turn:
    """One step of one rank.

    Attributes:
        number: the batch to run.
        counts: whether anyone may see it; a repeated batch only keeps the collectives in step.
        done: batches that all ranks finish in this step.
    """

    number: int
    counts: bool
    done: tuple[int, ...]


@dataclass(frozen=True)
class Ranks:
    """This process among those of its ``torch.distributed`` group.

    Attributes:
        rank: which one.
        world: of how many.
        device: where tensors must be for a collective (the rank's GPU under NCCL).
    """

    rank: int
    world: int
    device: torch.device

    def turns(self, numbers: Sequence[int]) -> Iterator[Turn]:
        """This rank's steps through the batches: every ``world``-th of them, as many on every rank."""
        for start in range(0, len(numbers), self.world):
            step = tuple(numbers[start : start + self.world])
            mine = self.rank < len(step)
            yield Turn(step[self.rank] if mine else step[0], mine, step)

    def total(self, mine: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, added in the order of the ranks: the same bytes everywhere.

        Every rank adds up one slice of all of them (2 / world of the traffic of sending everything to everyone).
        """
        flat = mine.detach().to(self.device).flatten()
        size = -(-len(flat) // self.world)
        padded = torch.zeros(size * self.world, dtype=flat.dtype, device=self.device)
        padded[: len(flat)] = flat
        slices = [torch.empty_like(padded[:size]) for _ in range(self.world)]
        dist.all_to_all(slices, list(padded.split(size)))
        added = slices[0]
        for part in slices[1:]:
            added = added + part
        parts = [torch.empty_like(added) for _ in range(self.world)]
        dist.all_gather(parts, added)
        return torch.cat(parts)[: len(flat)].view(mine.shape).to(mine.device)

    def from_rank(self, source: int, tensor: Tensor) -> Tensor:
        """The tensor of rank ``source``; the others give one of the same shape and type, which stays as it was."""
        sent = tensor.detach().to(self.device).contiguous()
        sent = sent if source == self.rank else torch.empty_like(sent)
        dist.broadcast(sent, source)
        return sent.to(tensor.device)

    def everyone(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)], device=self.device))
        longest = max(int(size) for size in sizes)
        parts = [torch.empty(longest, dtype=torch.uint8, device=self.device) for _ in range(self.world)]
        dist.all_gather(parts, torch.nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(bytes(part[: int(size)].cpu().numpy())) for part, size in zip(parts, sizes, strict=True)]

    def merged(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON-able entries of all ranks; where two have a key, they agree on its value."""
        return {key: value for part in self.everyone(dict(mine)) for key, value in part.items()}

    def totals(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``total`` by name; a rank that lacks a name counts as zeros there. The order is that of the first rank."""
        known: dict[str, tuple[list[int], str]] = {}
        for part in self.everyone({name: [list(t.shape), str(t.dtype)] for name, t in mine.items()}):
            known |= {name: entry for name, entry in part.items() if name not in known}
        place = next((t.device for t in mine.values()), self.device)
        return {
            name: self.total(mine[name] if name in mine else _zeros(shape, dtype, place))
            for name, (shape, dtype) in known.items()
        }


def _zeros(shape: Sequence[int], dtype: str, device: torch.device) -> Tensor:
    return torch.zeros(tuple(shape), dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)


def ranks_of(source: object) -> Ranks | None:
    """The ranks among which a source's model is spread; None for a model that is whole."""
    return getattr(source, "ranks", None)


def turns(ranks: Ranks | None, numbers: Sequence[int]) -> Iterator[Turn]:
    """The steps through these batches: all of them without ranks."""
    return ranks.turns(numbers) if ranks is not None else (Turn(n, True, (n,)) for n in numbers)
