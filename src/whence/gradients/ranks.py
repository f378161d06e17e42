"""Ranks that work on one model together: whose turn a batch is, and how what each of them saw becomes the whole.

Only for a model whose parameters are spread over the ranks (FSDP2): its forward and backward passes are collectives,
so all ranks must take the same number of steps. Each rank takes its own batches of the fixed plan; a rank that has none
left repeats one and shows it to nobody. Sums are added in the order of the ranks, so that a run repeats to the bit.

No pickle travels: tensors as their bytes, everything else as JSON. JSON goes through main memory and a group of its own
that waits longer than the one for tensors: a rank may work alone for a while (write a file) between two words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from whence.errors import WhenceError, gone, retold

# What a visitor may have as ``share``: afterwards it holds what one that saw all batches of the visit would hold.
# A visitor without it (or with None) is shown every batch on every rank.
Share = Callable[["Ranks"], None]

# Number of a batch -> its examples.
Size = Callable[[int], int]
Found = TypeVar("Found")


def share_of(visitor: object) -> Share | None:
    """How this visitor takes in what the other ranks saw, if it can."""
    return getattr(visitor, "share", None)


@dataclass(frozen=True)
class Turn:
    """One step of one rank.

    Attributes:
        number: the batch to run.
        counts: whether anyone may see it; a repeated batch only keeps the collectives in step.
        rows: examples that all ranks finish in this step.
    """

    number: int
    counts: bool
    rows: int


@dataclass(frozen=True)
class Ranks:
    """This process among those of its ``torch.distributed`` group.

    Attributes:
        rank: which one.
        world: of how many.
        device: where tensors must be for a collective (the rank's GPU under NCCL).
        words: the group for JSON, which works in main memory; None = the one for tensors.
    """

    rank: int
    world: int
    device: torch.device
    words: dist.ProcessGroup | None = None

    def turns(self, numbers: Sequence[int], size: Size) -> Iterator[Turn]:
        """This rank's steps through the batches: every ``world``-th of them, as many on every rank."""
        for start in range(0, len(numbers), self.world):
            step = tuple(numbers[start : start + self.world])
            mine = self.rank < len(step)
            yield Turn(step[self.rank] if mine else step[0], mine, sum(map(size, step)))

    def abreast(self, mine: Sequence[int], size: Size) -> Iterator[Turn]:
        """Steps through batches that this rank alone takes, while the others take theirs: as many on every rank."""
        rows = self.everyone([size(number) for number in mine])
        for step in range(max(map(len, rows))):
            some = step < len(mine)
            number = mine[step] if some else (*mine, 0)[0]
            yield Turn(number, some, sum(part[step] for part in rows if step < len(part)))

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
        if tensor.numel() == 0:
            return tensor
        sent = tensor.detach().to(self.device).contiguous().flatten().view(torch.uint8)  # a backend knows few types
        sent = sent if source == self.rank else torch.empty_like(sent)
        dist.broadcast(sent, source)
        return sent.view(tensor.dtype).view(tensor.shape).to(tensor.device)

    def handed(self, source: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors of rank ``source``, one after the other, on every rank; those of the others do not count.

        All ranks must take them all.
        """
        told = [[name, list(t.shape), str(t.dtype)] for name, t in tensors.items()] if source == self.rank else None
        for name, shape, dtype in self.everyone(told)[source]:
            given = tensors[name] if source == self.rank else _zeros(shape, dtype, self.device)
            yield name, self.from_rank(source, given)

    def everyone(self, value: Any) -> list[Any]:
        """The JSON values of all ranks, in their order.

        Raises:
            RankError: one of them is gone, or did not come.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            return [json.loads(bytes(part.numpy())) for part in self._texts(text)]
        except RuntimeError as error:
            raise gone(error) from error

    def _texts(self, text: Tensor) -> list[Tensor]:
        place = torch.device("cpu") if self.words is not None else self.device
        sizes = [torch.zeros(1, dtype=torch.int64, device=place) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(text)], device=place), group=self.words)
        longest = max(int(size) for size in sizes)
        parts = [torch.empty(longest, dtype=torch.uint8, device=place) for _ in range(self.world)]
        dist.all_gather(parts, torch.nn.functional.pad(text, (0, longest - len(text))).to(place), group=self.words)
        return [part[: int(size)].cpu() for part, size in zip(parts, sizes, strict=True)]

    def first(self, value: Any) -> Any:
        """The JSON value of the first rank; those of the others do not count."""
        return self.everyone(value if self.rank == 0 else None)[0]

    def agreed(self, work: Callable[[], Any]) -> Any:
        """What the first rank alone does: its JSON value on every rank.

        Raises:
            WhenceError: on every rank, when the work did; the others need not say it again.
        """
        failure, told = None, None
        if self.rank == 0:
            try:
                told = {"found": work()}
            except WhenceError as error:
                failure, told = error, {"error": [type(error).__name__, error.got, error.wanted, error.try_]}
        told = self.first(told)
        if "error" in told:
            raise failure or retold(*told["error"])
        return told["found"]

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


def by_first(ranks: Ranks | None, work: Callable[[], Found]) -> Found | None:
    """What the only process, or of several ranks the first, has found by itself; None on the others.

    Raises:
        WhenceError: on every rank, when the work did.
    """
    found: list[Found] = []

    def told() -> None:
        found.append(work())

    told() if ranks is None else ranks.agreed(told)
    return found[0] if found else None


def ranks_of(source: object) -> Ranks | None:
    """The ranks among which a source's model is spread; None for a model that is whole."""
    return getattr(source, "ranks", None)
