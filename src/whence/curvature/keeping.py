"""Where fitted factors are kept: with the model, in main memory, or in memory-mapped files that cost no memory at all.

Operators fetch what they need from wherever it is, layer by layer (``linalg.matrix_batch``); the numbers are the same.
And what a fit may be told to keep for a process that has to begin again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from whence.curvature.base import LayerTensors, Sums
from whence.errors import ResourceError

Keep = Literal["model", "memory", "disk"]


@dataclass(frozen=True)
class Reached:
    """A fit as far as it has come.

    Attributes:
        tensors: what the stages that are over came to.
        stages: what is recorded of each of them.
        notes: of the factors.
    """

    tensors: LayerTensors
    stages: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


class Keeper(Protocol):
    """Someone who keeps what a fit has reached, and knows what an earlier process had."""

    def reached(self) -> Reached | None:
        """The stages that are over; None = not one."""
        ...

    def keep(self, reached: Reached, seconds: float) -> None:
        """A stage is over; it took so long."""
        ...

    def sums(self, stage: int) -> tuple[Sums, int] | None:
        """Sums of a stage that is not over, and how many of its batches they hold."""
        ...

    def keep_sums(self, stage: int, sums: Sums, batches: int) -> None:
        """So far came a stage; called after every batch."""
        ...


def mapped(tensors: LayerTensors, keep: Keep) -> LayerTensors:
    """The tensors, for ``disk`` out of a temporary file that vanishes with them; those that layers share stay shared.

    Raises:
        ResourceError: no room for the file (``TMPDIR`` says where it goes).
    """
    if keep != "disk":
        return tensors
    names: dict[int, str] = {}
    distinct: dict[str, Tensor] = {}
    for named in tensors.values():
        for tensor in named.values():
            key = names.setdefault(id(tensor), str(len(names)))
            distinct.setdefault(key, tensor.detach().cpu().contiguous())
    with tempfile.TemporaryDirectory(prefix="whence-") as folder:
        path = Path(folder) / "factors.safetensors"
        try:
            # clones: save_file refuses tensors that share memory with others
            save_file({key: t.clone() if t._base is not None else t for key, t in distinct.items()}, path)
        except Exception as error:  # safetensors raises its own class for a full disk
            raise ResourceError(
                f"cannot keep factors in {folder}: {str(error)[:200]}",
                wanted=f"{sum(t.numel() * t.element_size() for t in distinct.values()):,} free bytes",
                try_="TMPDIR on a larger disk, or --offload factors",
            ) from error
        found = load_file(path)  # a memory map, which outlives the file's name
    return {layer: {name: found[names[id(t)]] for name, t in named.items()} for layer, named in tensors.items()}
