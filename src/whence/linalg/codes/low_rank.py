"""Each layer as a sum of r outer products, by a truncated singular value decomposition, in 8 bits.

The decomposition is a subspace iteration from fixed starting vectors: the same bytes on every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import OptionError
from whence.linalg import draws
from whence.linalg.codes import levels
from whence.linalg.codes.base import Fields, Layout, Record, field_bytes

SPARE, SWEEPS = 4, 3  # further vectors while iterating, and iterations


@dataclass(frozen=True, eq=False)
class LowRank:
    """Rank r for every layer (or its smaller side, if that is less).

    Attributes:
        layout: of the rows.
        rank: r.
    """

    layout: Layout
    rank: int

    @property
    def about(self) -> Mapping[str, Any]:
        return {"scheme": "low_rank", "rank": self.rank}

    @property
    def fields(self) -> Fields:
        left = sum(self._rank(size) * size[0] for size in self.layout.sizes.values())
        right = sum(self._rank(size) * size[1] for size in self.layout.sizes.values())
        scales = 2 * len(self.layout.sizes)
        return {"left": (torch.int8, left), "right": (torch.int8, right), "scale": (torch.float32, scales)}

    @property
    def bytes_per_row(self) -> int:
        return field_bytes(self.fields)

    def _rank(self, size: tuple[int, int]) -> int:
        return min(self.rank, *size)

    def part(self, layer: str, x_BM: Tensor) -> Record:
        size = self.layout.sizes[layer]
        u_BOr, v_BIr = truncated(x_BM.float().view(-1, *size), self._rank(size), layer)
        left, left_scale = levels.eight_bits(u_BOr.flatten(1))
        right, right_scale = levels.eight_bits(v_BIr.flatten(1))
        return {"left": left, "right": right, "scale": torch.cat([left_scale, right_scale], 1)}

    def join(self, parts: Mapping[str, Record]) -> Record:
        fields = ("left", "right", "scale")
        return {field: torch.cat([parts[name][field] for name in self.layout.sizes], 1) for field in fields}

    def dot(self, record: Mapping[str, Tensor], query_QD: Tensor) -> Tensor:
        total = torch.zeros(len(record["scale"]), len(query_QD), dtype=query_QD.dtype, device=query_QD.device)
        for name, product_BM, scale_B in self._products(record, query_QD.dtype):
            total += product_BM @ query_QD[:, self.layout.spans[name]].T * scale_B[:, None].to(query_QD.dtype)
        return total

    def restored(self, record: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([p_BM * scale_B[:, None] for _, p_BM, scale_B in self._products(record, torch.float32)], dim=1)

    def _products(self, record: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Layer, its matrices before scaling (B x O*I), and B scales."""
        at = [0, 0]
        for number, (name, (outputs, inputs)) in enumerate(self.layout.sizes.items()):
            rank = self._rank((outputs, inputs))
            u, v = (
                record[side][:, at[n] : at[n] + rank * size].view(-1, size, rank).to(dtype)
                for n, (side, size) in enumerate((("left", outputs), ("right", inputs)))
            )
            at = [at[0] + rank * outputs, at[1] + rank * inputs]
            scale_B = record["scale"][:, 2 * number] * record["scale"][:, 2 * number + 1]
            yield name, (u @ v.transpose(1, 2)).flatten(1), scale_B


def truncated(x_BOI: Tensor, rank: int, name: str) -> tuple[Tensor, Tensor]:
    """Factors u (B x O x r) and v (B x I x r) with u vᵀ near x, the singular values shared between them."""
    _, outputs, inputs = x_BOI.shape
    width = min(rank + SPARE, outputs, inputs)
    start = torch.from_numpy(draws.normals(inputs, width, "low rank", name)).to(x_BOI)
    basis = torch.linalg.qr(x_BOI @ start)[0]
    for _ in range(SWEEPS - 1):
        basis = torch.linalg.qr(x_BOI @ (x_BOI.transpose(1, 2) @ basis))[0]
    small_u, values, vh = torch.linalg.svd(basis.transpose(1, 2) @ x_BOI, full_matrices=False)
    root = values[:, None, :rank].sqrt()
    return (basis @ small_u)[:, :, :rank] * root, vh[:, :rank].transpose(1, 2) * root


def low_rank(layout: Layout, budget: int) -> LowRank:
    """The largest rank that fits into ``budget`` bytes a row.

    Raises:
        OptionError: not even rank 1 fits.
    """
    most = max(min(size) for size in layout.sizes.values())
    fitting = [r for r in range(1, most + 1) if LowRank(layout, r).bytes_per_row <= budget]
    if not fitting:
        need = LowRank(layout, 1).bytes_per_row
        raise OptionError(f"{budget:,} bytes a row", wanted=f"{need:,} for rank 1", try_="scheme sparse")
    return LowRank(layout, fitting[-1])
