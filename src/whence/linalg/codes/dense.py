"""Every number, in 16 or 8 bits. Needs no choice of what matters; costs D or 2 D bytes a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from whence.errors import OptionError
from whence.linalg.codes import levels
from whence.linalg.codes.base import Fields, Layout, Record, field_bytes

WIDENED = 1 << 20  # numbers widened at once: they stay in the cache, and the memory is used again


@dataclass(frozen=True, eq=False)
class Dense:
    """All numbers of a row, each layer with its own scale (so that float16 neither overflows nor vanishes).

    Attributes:
        layout: of the rows.
        kind: ``fp16`` or ``int8``.
    """

    layout: Layout
    kind: Literal["fp16", "int8"]

    @property
    def about(self) -> Mapping[str, Any]:
        return {"scheme": self.kind}

    @property
    def fields(self) -> Fields:
        dtype = torch.float16 if self.kind == "fp16" else torch.int8
        return {"level": (dtype, self.layout.total), "scale": (torch.float32, len(self.layout.sizes))}

    @property
    def bytes_per_row(self) -> int:
        return field_bytes(self.fields)

    def part(self, layer: str, x_BM: Tensor) -> Record:
        if self.kind == "int8":
            level, scale = levels.eight_bits(x_BM)
            return {"level": level, "scale": scale}
        scale = x_BM.abs().amax(1, keepdim=True).float()
        return {"level": (x_BM / torch.where(scale > 0, scale, 1)).half(), "scale": scale}

    def join(self, parts: Mapping[str, Record]) -> Record:
        return {field: torch.cat([parts[name][field] for name in self.layout.sizes], 1) for field in ("level", "scale")}

    def dot(self, record: Mapping[str, Tensor], query_QD: Tensor) -> Tensor:
        total = torch.zeros(len(record["scale"]), len(query_QD), dtype=query_QD.dtype, device=query_QD.device)
        for number, span in enumerate(self.layout.spans.values()):
            level, asked_MQ = record["level"][:, span], query_QD[:, span].T.contiguous()
            step = max(1, WIDENED // level.shape[1])
            room_BM = torch.empty(min(step, len(level)), level.shape[1], dtype=query_QD.dtype, device=query_QD.device)
            for start in range(0, len(level), step):
                piece = level[start : start + step]
                block_BQ = room_BM[: len(piece)].copy_(piece) @ asked_MQ
                scale = record["scale"][start : start + step, number : number + 1].to(query_QD.dtype)
                total[start : start + step] += block_BQ.mul_(scale)
        return total

    def restored(self, record: Mapping[str, Tensor]) -> Tensor:
        scales = record["scale"].float().unbind(1)
        spans = self.layout.spans.values()
        layers = [record["level"][:, at].float() * scale[:, None] for at, scale in zip(spans, scales, strict=True)]
        return torch.cat(layers, dim=1)


def dense(layout: Layout, budget: int, *, kind: Literal["fp16", "int8"]) -> Dense:
    """All numbers.

    Raises:
        OptionError: they do not fit into ``budget`` bytes a row.
    """
    code = Dense(layout, kind)
    if code.bytes_per_row > budget:
        raise OptionError(
            f"{kind} needs {code.bytes_per_row:,} bytes for the {layout.total:,} numbers of a row, budget {budget:,}",
            wanted="a budget that holds them all",
            try_="scheme sparse, or fewer layers",
        )
    return code
