"""Activations that wait in main memory from the forward to the backward pass, for batches that do not fit otherwise.

``torch.autograd.graph.save_on_cpu`` would move the weights as well, which autograd saves too and which stay where they
are anyway. The inputs of the followed layers, which no graph keeps, wait here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Shelf:
    """Tensors of one batch.

    Attributes:
        moved: bytes that were copied out.
    """

    moved: int = 0
    _last_out: tuple[Tensor, Callable[[], Tensor]] | None = None
    _last_in: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def put(self, tensor: Tensor) -> Callable[[], Tensor]:
        """How to get it back; the same object put twice in a row comes back as one object."""
        if self._last_out is not None and self._last_out[0] is tensor:
            return self._last_out[1]
        copy, device = self._copied(tensor), tensor.device

        def get() -> Tensor:
            if not self._last_in or self._last_in[0][0] is not copy:
                self._last_in = [(copy, _back(copy, device))]
            return self._last_in[0][1]

        self._last_out = (tensor, get)
        return get

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What autograd saves inside, weights aside, is copied out and comes back when the backward pass needs it."""

        def pack(tensor: Tensor) -> Any:
            still = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
            return tensor if still or tensor.dim() < 2 else (self._copied(tensor), tensor.device)

        def unpack(saved: Any) -> Tensor:
            return saved if isinstance(saved, Tensor) else _back(*saved)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def _copied(self, tensor: Tensor) -> Tensor:
        self.moved += tensor.numel() * tensor.element_size()
        out = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")  # the same strides
        return out.copy_(tensor)  # waits: the original may be overwritten next


def _back(copy: Tensor, device: torch.device) -> Tensor:
    return copy.to(device, copy=True)
