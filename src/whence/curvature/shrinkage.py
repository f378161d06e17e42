"""How far to trust a curvature matrix of few rows: a mixture with EK-FAC, its weight chosen on held-out rows.

A Gauss-Newton matrix of n rows knows the terms between layers, but it is noisy and flat outside the span of its rows.
EK-FAC, fitted on many rows, is smooth and has no terms between layers. As with any covariance (Ledoit & Wolf 2004),
the mixture

    M(share) = share * G_n + (1 - share) * EK-FAC + damping

is better than either. The share is found by cross-validation: solve M x = v with one half of the rows, and ask how
good x is for the matrix of the *other* half with the damping that was asked for. Up to its scale, x is best for a
matrix H when the energy ``(v'x)^2 / x'Hx`` is largest (the largest value, v'H^-1 v, is the exact solve's). Twice the
rows carry twice the evidence, so the odds found with half of them are doubled.

All shares are tried inside one block Krylov space, so the choice costs a few dozen products, whatever the number of
queries, and none of it depends on the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.linalg.packing import Apply

GRID = tuple(round(0.05 * n, 2) for n in range(21))


@dataclass(frozen=True)
class Share:
    """The weight of the rows' own matrix in the mixture, and why.

    Attributes:
        value: between 0 (EK-FAC alone) and 1 (the rows alone).
        energies: share -> mean held-out energy relative to EK-FAC alone, with half of the rows.
        reason: in words.
    """

    value: float
    energies: dict[float, float]
    reason: str

    def report(self) -> dict[str, Any]:
        """Plain numbers for ``run.json``."""
        return {"share": self.value, "share_reason": self.reason, "share_energies": self.energies}


@dataclass(frozen=True)
class Mixture:
    """The pieces of M(share).

    Attributes:
        halves: products with the matrices of the two halves of the fixed rows.
        structured: products with undamped EK-FAC.
        inverse: products with its damped inverse, the preconditioner.
        shift_D: the damping.
    """

    halves: Sequence[Apply]
    structured: Apply
    inverse: Apply
    shift_D: Tensor


def choose_share(mixture: Mixture, probes_PD: Tensor, *, depth: int = 3) -> Share:
    """The share with the largest held-out energy over both halves, its odds doubled.

    Args:
        mixture: what to mix.
        probes_PD: P vectors like those to be solved for: gradients of rows outside the fixed ones.
        depth: blocks of the Krylov space; (depth x P) products with each half.
    """
    basis_SD, images = _krylov(mixture, probes_PD, depth)
    small = [_sandwich(basis_SD, image) for image in images]
    structured_SS = _sandwich(basis_SD, mixture.structured(basis_SD))
    shift_SS = _sandwich(basis_SD, basis_SD * mixture.shift_D)
    inside_SP = basis_SD @ probes_PD.T
    totals = {}
    for share in GRID:
        base_SS = (1 - share) * structured_SS + shift_SS
        found = [_energy(share * a + base_SS, b + shift_SS, inside_SP) for a, b in (small, small[::-1])]
        totals[share] = torch.stack(found).mean(0)
    plain = totals[0.0].clamp_min(torch.finfo(probes_PD.dtype).tiny)
    energies = {share: float((total / plain).mean()) for share, total in totals.items()}
    best = max(energies, key=lambda share: energies[share])
    value = 2 * best / (1 + best)
    reason = (
        f"halves of the fixed rows predict each other best with a share of {best:.2f}: {energies[best]:.2f} times the "
        f"held-out energy of EK-FAC alone, {energies[best] / energies[1.0]:.2f} times that of the rows alone; "
        f"with both halves {value:.2f}"
    )
    return Share(value, {share: round(e, 5) for share, e in energies.items()}, reason)


def _krylov(mixture: Mixture, probes_PD: Tensor, depth: int) -> tuple[Tensor, list[Tensor]]:
    """An orthonormal basis of the preconditioned block Krylov space, and its images under both halves."""
    blocks: list[Tensor] = []
    images: list[list[Tensor]] = [[] for _ in mixture.halves]
    fresh_PD = mixture.inverse(probes_PD)
    for _ in range(depth):
        fresh_PD = orthonormal(fresh_PD, blocks)
        if not len(fresh_PD):
            break
        blocks.append(fresh_PD)
        for kept, half in zip(images, mixture.halves, strict=True):
            kept.append(half(fresh_PD))
        fresh_PD = mixture.inverse(torch.stack([kept[-1] for kept in images]).mean(0))
    return torch.cat(blocks), [torch.cat(kept) for kept in images]


def orthonormal(fresh_PD: Tensor, blocks: list[Tensor]) -> Tensor:
    """Rows spanning what is new in ``fresh_PD``; dependent rows are dropped."""
    fresh_PD = fresh_PD / torch.linalg.vector_norm(fresh_PD, dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(2):
        for block in blocks:
            fresh_PD = fresh_PD - (fresh_PD @ block.T) @ block
    _, singular_P, rows_PD = torch.linalg.svd(fresh_PD, full_matrices=False)
    return rows_PD[singular_P > 1e-6]


def _sandwich(basis_SD: Tensor, image_SD: Tensor) -> Tensor:
    small_SS = basis_SD @ image_SD.T
    return (small_SS + small_SS.T) / 2


def _energy(known_SS: Tensor, other_SS: Tensor, inside_SP: Tensor) -> Tensor:
    """P energies, under the other matrix, of the solves with the known one."""
    inside_SP = inside_SP.double()
    x_SP = torch.linalg.solve(known_SS.double(), inside_SP)
    cost_P = (x_SP * (other_SS.double() @ x_SP)).sum(0)
    return (x_SP * inside_SP).sum(0).square() / cost_P.clamp_min(1e-300)
