"""What a code is, and where the numbers of each layer lie in a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

Record = dict[str, Tensor]  # what is kept of B rows: field -> B x K
Fields = Mapping[str, tuple[torch.dtype, int]]  # field -> number type and K


@dataclass(frozen=True, eq=False)
class Layout:
    """The layers of a row, one after the other.

    Attributes:
        sizes: layer -> (O, I), in order.
    """

    sizes: Mapping[str, tuple[int, int]]

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Layer -> its numbers in the flat row."""
        found, start = {}, 0
        for name, (outputs, inputs) in self.sizes.items():
            found[name] = slice(start, start + outputs * inputs)
            start += outputs * inputs
        return found

    @cached_property
    def total(self) -> int:
        """D, the numbers of a row."""
        return sum(outputs * inputs for outputs, inputs in self.sizes.values())

    def flat(self, layers: Mapping[str, Tensor]) -> Tensor:
        """B x D of layers given as B x O x I (or B x O*I)."""
        return torch.cat([layers[name].flatten(1) for name in self.sizes], dim=1)


class Code(Protocol):
    """A scheme with its settings, for rows of one layout.

    ``part`` is called as each layer is seen, so that whole rows are never held in memory, and ``join`` makes the record
    of the finished batch. Rows do not depend on each other: a batch of one row gives the same bytes.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def about(self) -> Mapping[str, Any]:
        """The scheme's name and settings; ``code_of`` makes the same code from them."""
        ...

    @property
    def fields(self) -> Fields:
        """What a record consists of."""
        ...

    @property
    def bytes_per_row(self) -> int:
        """``field_bytes(fields)``."""
        ...

    def part(self, layer: str, x_BM: Tensor) -> Record:
        """What must be kept of one layer (B x O*I numbers) until the batch is complete."""
        ...

    def join(self, parts: Mapping[str, Record]) -> Record:
        """The finished record of the batch."""
        ...

    def dot(self, record: Mapping[str, Tensor], query_QD: Tensor) -> Tensor:
        """B x Q inner products of coded rows with dense queries."""
        ...

    def restored(self, record: Mapping[str, Tensor]) -> Tensor:
        """B x D numbers, float32: what of the rows is kept."""
        ...


def encoded(code: Code, x_BD: Tensor) -> Record:
    """Whole rows at once."""
    return code.join({name: code.part(name, x_BD[:, span]) for name, span in code.layout.spans.items()})


def field_bytes(fields: Fields) -> int:
    """Bytes of a row with these fields."""
    return sum(dtype.itemsize * count for dtype, count in fields.values())


def sliced(record: Mapping[str, Tensor], step: int) -> Iterator[Record]:
    """The record, so many rows at a time."""
    count = len(next(iter(record.values())))
    return ({name: t[n : n + step] for name, t in record.items()} for n in range(0, count, step))


def record_bytes(record: Mapping[str, Tensor]) -> int:
    """Bytes of one row of a record."""
    return sum(t[:1].numel() * t.element_size() for t in record.values())
