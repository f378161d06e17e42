"""Large Kronecker factors in diagonal blocks: memory falls by the number of blocks, eigendecompositions by its square.

A side of n directions is cut into k runs of n / k, and what couples different runs is left out (Grosse et al. 2023,
section 2.2 and appendix C: O = 2 at 52B parameters). k = n is the diagonal. A vocabulary has no neighbourhoods and no
one can decompose its n x n factor, so a side far too long becomes diagonal by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import CurvatureError, OptionError
from whence.linalg.damping import Damping
from whence.linalg.matrix_batch import Full, MatrixBatch, Outer
from whence.linalg.operators import Eigenbasis, Kronecker, LayerOperator, eigh

LARGEST = 16384  # longest side decomposed whole: 2 GB in float64, and minutes


@dataclass(frozen=True)
class Partition:
    """How the sides of layers are cut.

    Attributes:
        blocks: diagonal blocks of every side.
        largest: longest block. A side that would have longer ones is cut in twice as many, or is taken as diagonal
            where that is not enough.
    """

    blocks: int = 1
    largest: int = LARGEST

    def checked(self) -> Partition:
        """Itself.

        Raises:
            OptionError: numbers below 1.
        """
        for name in ("blocks", "largest"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)}", wanted="a whole number of at least 1", try_="1")
        return self

    def cut(self, size: int) -> tuple[int, ...]:
        """Block lengths of a side of ``size`` directions, equal to within 1; () = diagonal."""
        for blocks in (min(self.blocks, size), min(2 * self.blocks, size)):
            if -(-size // blocks) <= self.largest:
                short, longer = divmod(size, blocks)
                return (short + 1,) * longer + (short,) * (blocks - longer)
        return ()

    def notes(self, sizes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
        """What was done other than what was asked, in words, for layers name -> (O, I)."""
        said = []
        short = [size for pair in sizes.values() for size in pair if size < self.blocks]
        if short:
            fewest, most = min(short), max(short)
            range_ = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
            said.append(
                f"blocks={self.blocks:,} is more than the {range_} directions of {len(short):,} of {2 * len(sizes):,} "
                "sides of layers; each direction there is a block of its own (a diagonal)"
            )
        for name, pair in sizes.items():
            for side, size in zip(("outputs", "inputs"), pair, strict=True):
                blocks = len(self.cut(size))
                if blocks == 0:
                    said.append(f"{name}: {size:,} {side} are too many for a factor; taken as uncorrelated (diagonal)")
                elif blocks > self.blocks:
                    said.append(f"{name}: the factor of {size:,} {side} is cut into {blocks} diagonal blocks")
        return tuple(said)


@dataclass(frozen=True, eq=False)
class Side:
    """A square matrix over one side of a layer, as its diagonal blocks; one block is the whole matrix.

    Attributes:
        blocks: square matrices, or a single vector: a diagonal matrix; none at all: the identity.
    """

    blocks: tuple[Tensor, ...]

    def into(self, x: Tensor) -> Tensor:
        """``x @ matrix`` along the last axis; the matrix may be in another memory."""
        if not self.blocks:
            return x
        if len(self.blocks) == 1:
            block = self.blocks[0].to(x.device)
            return x @ block if block.dim() == 2 else x * block
        parts = x.split([len(b) for b in self.blocks], dim=-1)
        return torch.cat([part @ block.to(x.device) for part, block in zip(parts, self.blocks, strict=True)], dim=-1)

    def back(self, x: Tensor) -> Tensor:
        """``x @ matrix.T`` along the last axis."""
        return Side(tuple(b.T if b.dim() == 2 else b for b in self.blocks)).into(x)

    def map(self, change: Callable[[Tensor], Tensor]) -> Side:
        """Every block changed."""
        return Side(tuple(change(b) for b in self.blocks))

    def mean(self) -> Tensor:
        """Mean of the diagonal: the mean eigenvalue."""
        return self.diagonal().mean()

    def diagonal(self) -> Tensor:
        """The n diagonal entries."""
        return torch.cat([b.diagonal() if b.dim() == 2 else b for b in self.blocks])

    def eigen(self) -> tuple[Tensor, Side]:
        """The n eigenvalues, block by block, and eigenvectors in columns; a diagonal keeps the standard basis."""
        if self.blocks[0].dim() == 1:
            return self.blocks[0], Side(())
        pairs = [eigh(b) for b in self.blocks]
        return torch.cat([lam for lam, _ in pairs]), Side(tuple(q for _, q in pairs))

    def dense(self, size: int) -> Tensor:
        """The n x n matrix; for tests."""
        if not self.blocks:
            return torch.eye(size, dtype=torch.float64)
        return torch.block_diag(*[b if b.dim() == 2 else torch.diag(b) for b in self.blocks])

    def stored(self, name: str) -> dict[str, Tensor]:
        """Under ``name`` when whole or diagonal, else under ``name.0``, ``name.1`` ...; the identity is not stored."""
        if len(self.blocks) == 1:
            return {name: self.blocks[0]}
        return {f"{name}.{n}": block for n, block in enumerate(self.blocks)}


def side(tensors: Mapping[str, Tensor], name: str) -> Side:
    """The inverse of ``Side.stored``."""
    if name in tensors:
        return Side((tensors[name],))
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return Side(tuple(tensors[f"{name}.{n}"] for n in range(count)))


def rotated(x: MatrixBatch, left: Side, right: Side) -> MatrixBatch:
    """leftᵀ X right for each matrix; keeps the form."""
    if isinstance(x, Outer):
        return Outer(left.into(x.g_BTO), right.into(x.a_BTI), x.positions)
    turned = right.into(x.full())
    return Full(left.into(turned.transpose(1, 2)).transpose(1, 2) if left.blocks else turned)


def rotated_back(x: MatrixBatch, left: Side, right: Side) -> Full:
    """The products left X rightᵀ for each matrix."""
    turned = right.back(x.full())
    return Full(left.back(turned.transpose(1, 2)).transpose(1, 2) if left.blocks else turned)


@dataclass(frozen=True, eq=False)
class SplitEigenbasis:
    """``Eigenbasis`` whose two bases are block-diagonal."""

    left: Side
    right: Side
    eigenvalues_OI: Tensor

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return rotated_back(self.whiten_by(x, self.eigenvalues_OI), self.left, self.right)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return self.whiten_by(x, self.eigenvalues_OI.sqrt())

    def whiten_by(self, x: MatrixBatch, weights_OI: Tensor) -> Full:
        """Coordinates in the basis, weighted."""
        return rotated(x, self.left, self.right).scaled(weights_OI)

    def power(self, exponent: float, damping: Damping) -> SplitEigenbasis:
        return SplitEigenbasis(self.left, self.right, damping.shift(self.eigenvalues_OI).pow(exponent))

    def dense(self) -> Tensor:
        outputs, inputs = self.eigenvalues_OI.shape
        basis = torch.kron(self.left.dense(outputs), self.right.dense(inputs))
        return basis @ torch.diag(self.eigenvalues_OI.flatten().double()) @ basis.T


@dataclass(frozen=True, eq=False)
class SplitKronecker:
    """``Kronecker`` whose two factors are block-diagonal."""

    left: Side
    right: Side

    def apply(self, x: MatrixBatch) -> MatrixBatch:
        return rotated(x, self.left, self.right)

    def whiten(self, x: MatrixBatch) -> MatrixBatch:
        return self.eigen().whiten(x)

    def power(self, exponent: float, damping: Damping) -> LayerOperator:
        """As ``Kronecker.power``: factored damping inverts the blocks one by one, by Cholesky."""
        if damping.kind == "factored" and exponent == -1:
            root = damping.value**0.5
            return SplitKronecker(_shifted_inverse(self.left, root), _shifted_inverse(self.right, root))
        return self.eigen().power(exponent, damping)

    def eigen(self) -> SplitEigenbasis:
        """The same operator in its eigenbasis."""
        (lam_O, q_O), (lam_I, q_I) = self.left.eigen(), self.right.eigen()
        return SplitEigenbasis(q_O, q_I, torch.outer(lam_O, lam_I))

    def dense(self) -> Tensor:
        return torch.kron(self.left.dense(0), self.right.dense(0))


def kronecker(left: Side, right: Side) -> Kronecker | SplitKronecker:
    """The Kronecker product left ⊗ right; the plain operator when neither side is cut."""
    if _whole(left) and _whole(right):
        return Kronecker(left.blocks[0], right.blocks[0])
    return SplitKronecker(left, right)


def eigenbasis(left: Side, right: Side, eigenvalues_OI: Tensor) -> Eigenbasis | SplitEigenbasis:
    """Eigenvalues in the basis left ⊗ right; the plain operator when neither side is cut."""
    if _whole(left) and _whole(right):
        return Eigenbasis(left.blocks[0], right.blocks[0], eigenvalues_OI)
    return SplitEigenbasis(left, right, eigenvalues_OI)


def _whole(part: Side) -> bool:
    return len(part.blocks) == 1 and part.blocks[0].dim() == 2


def _shifted_inverse(part: Side, root: float) -> Side:
    """Inverse of (M + root x the mean eigenvalue of the *whole* side), block by block; 0 for a zero matrix."""
    mean = part.mean().double()
    if not bool(torch.isfinite(mean)):
        raise CurvatureError("a covariance is not finite", wanted="finite statistics", try_="whence check")
    if mean <= 0:
        return part.map(torch.zeros_like)

    def inverse(block: Tensor) -> Tensor:
        wide = block.double()
        if block.dim() == 1:
            return (wide + root * mean).reciprocal().to(block.dtype)
        shifted = wide + root * mean * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
        return torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(block.dtype)

    return part.map(inverse)
