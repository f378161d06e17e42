"""Eigendecompositions of covariances that end in numbers or in a clear error, alone or shared out among processes.

cuSOLVER and LAPACK fail to converge on some low-rank matrices, and a failure on a GPU has been seen to leave its
context unusable (pytorch #94772, #105359). So a copy on the CPU is kept first, and then: the device's own driver,
LAPACK's on the CPU, its QR driver, and last a tiny shift of the diagonal. Whatever was needed is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from whence.errors import CurvatureError

Pair = tuple[Tensor, Tensor]
JITTER = 1e-12  # of the mean eigenvalue: below what float64 keeps of it


class Spread(Protocol):
    """Processes that hold the same matrices and wait for each other (``gradients.ranks.Ranks`` is one)."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    def from_rank(self, source: int, tensor: Tensor) -> Tensor: ...
    def everyone(self, value: Any) -> list[Any]: ...


_rescues: ContextVar[list[str] | None] = ContextVar("rescues", default=None)
_device: ContextVar[torch.device | None] = ContextVar("device", default=None)
_spread: ContextVar[Spread | None] = ContextVar("spread", default=None)


@contextmanager
def recorded() -> Iterator[list[str]]:
    """What decompositions inside needed beyond the usual driver, one sentence each."""
    notes: list[str] = []
    token = _rescues.set(notes)
    try:
        yield notes
    finally:
        _rescues.reset(token)


@contextmanager
def spread_over(processes: Spread | None) -> Iterator[None]:
    """``eigh_all`` inside is shared out among these processes, all of which must call it alike."""
    token = _spread.set(processes)
    try:
        yield
    finally:
        _spread.reset(token)


@contextmanager
def computing_on(device: torch.device | None) -> Iterator[None]:
    """Decompositions inside run there; their results go back to where the matrices are."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def eigh(matrix: Tensor) -> Pair:
    """Eigenvalues (ascending, clamped at 0) and eigenvectors in columns of a covariance, in its own dtype.

    Decomposed in float64: in float32 the smallest eigenvalues of a rank-deficient covariance come out negative by 1e-5
    of the largest, which a small damping would not hide.

    Raises:
        CurvatureError: not finite, negative beyond rounding (not a covariance), or beyond every driver.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise CurvatureError(
            "a covariance is not finite",
            wanted="finite statistics",
            try_="whence check; look for overflow in half precision",
        )
    there = _device.get() or matrix.device
    symmetric = matrix.to("cpu" if there.type == "mps" else there).double()  # MPS has no float64
    symmetric = (symmetric + symmetric.T) / 2
    lam, q = _decomposed(symmetric)
    floor = -1e-5 * float(lam[-1].clamp(min=0)) - 1e-30
    if float(lam[0]) < floor:
        raise CurvatureError(
            f"a covariance has eigenvalue {float(lam[0]):.3g} below 0 (largest {float(lam[-1]):.3g})",
            wanted="a positive semi-definite matrix",
            try_="accumulate in float32 or better; use the Gauss-Newton or Fisher instead of the Hessian",
        )
    return lam.clamp(min=0).to(matrix), q.to(matrix)


def _decomposed(symmetric: Tensor) -> Pair:
    """The first way that gives finite numbers, back on the matrix's device."""
    safe = symmetric.cpu()  # before anything can go wrong on a GPU; no copy on the CPU
    causes: list[str] = []
    for how, attempt in _ways(symmetric, safe).items():
        try:
            lam, q = attempt()
        except (RuntimeError, np.linalg.LinAlgError) as error:  # torch's LinAlgError is a RuntimeError
            causes.append(str(error).splitlines()[0][:120] if str(error) else type(error).__name__)
            continue
        if not (bool(torch.isfinite(lam).all()) and bool(torch.isfinite(q).all())):
            causes.append(f"{how or 'the usual driver'} gave numbers that are not finite")
            continue
        if how and (notes := _rescues.get()) is not None:
            notes.append(f"a {len(safe)} x {len(safe)} covariance was decomposed by {how} ({causes[0]})")
        return lam.to(symmetric.device), q.to(symmetric.device)
    raise CurvatureError(
        f"no driver decomposes a covariance of {len(safe)} x {len(safe)}: {causes[0]}",
        wanted="a matrix whose eigenvalues converge",
        try_="--method ekfac:blocks=2, other --layers, or --method diagonal",
    )


def _ways(symmetric: Tensor, safe: Tensor) -> Mapping[str, Callable[[], Pair]]:
    """Name -> attempt, in order; the usual one has no name."""
    ways: dict[str, Callable[[], Pair]] = {"": lambda: _pair(torch.linalg.eigh(symmetric))}
    if symmetric.device.type != "cpu":
        ways["LAPACK on the CPU"] = lambda: _pair(torch.linalg.eigh(safe))
    ways["LAPACK's QR driver"] = lambda: _by_qr(safe)
    shift = JITTER * float(safe.diagonal().mean().clamp(min=0)) + 1e-300
    ways[f"a shift of its diagonal by {shift:.1g}"] = lambda: _by_qr(safe, shift=shift)
    return ways


def _pair(found: Any) -> Pair:
    return found[0], found[1]


def _by_qr(matrix: Tensor, *, shift: float = 0.0) -> Pair:
    """Of the matrix with a shifted diagonal; the eigenvalues are told without the shift."""
    lam, q = scipy.linalg.eigh(matrix.numpy() + shift * np.eye(len(matrix)), driver="ev")
    return torch.from_numpy(lam - shift), torch.from_numpy(np.ascontiguousarray(q))


def eigh_all(matrices: Sequence[Tensor], names: Sequence[str]) -> list[Pair]:
    """``eigh`` of every matrix; within ``spread_over`` each process makes its share and gets the others'.

    Which process makes what depends on the sizes only, and all end up with the same bytes.

    Args:
        matrices: square; the same on every process.
        names: what to call each in an error or a note.

    Raises:
        CurvatureError: on every process, when one of them could not decompose one of its own.
    """
    processes = _spread.get()
    if processes is None or processes.world == 1:
        return [_named(name, matrix) for name, matrix in zip(names, matrices, strict=True)]
    owners = shares([len(m) for m in matrices], processes.world)
    found, failure = _own_part(matrices, names, owners=owners, rank=processes.rank)
    for rank, error in enumerate(processes.everyone(failure)):
        if error is not None:
            known = CurvatureError(**error)
            known.told = rank != processes.rank  # that process says it
            raise known
    pairs = []
    for number, (matrix, owner) in enumerate(zip(matrices, owners, strict=True)):
        lam, q = found.pop(number, None) or (matrix.new_empty(len(matrix)), torch.empty_like(matrix))
        pairs.append((processes.from_rank(owner, lam), processes.from_rank(owner, q)))
    return pairs


def _own_part(
    matrices: Sequence[Tensor], names: Sequence[str], *, owners: Sequence[int], rank: int
) -> tuple[dict[int, Pair], dict[str, str] | None]:
    """This process's decompositions, or what went wrong: the others must hear of it, not wait for it."""
    found: dict[int, Pair] = {}
    try:
        for number, owner in enumerate(owners):
            if owner == rank:
                found[number] = _named(names[number], matrices[number])
    except CurvatureError as error:
        return {}, {"got": error.got, "wanted": error.wanted, "try_": error.try_}
    return found, None


def _named(name: str, matrix: Tensor) -> Pair:
    try:
        with recorded() as notes:
            found = eigh(matrix)
    except CurvatureError as error:
        raise CurvatureError(f"{name}: {error.got}", wanted=error.wanted, try_=error.try_) from error
    outer = _rescues.get()
    if outer is not None:
        outer += [f"{name}: {note}" for note in notes]
    return found


def shares(sizes: Sequence[int], world: int) -> list[int]:
    """Who decomposes which matrix, by cost n³: the longest first, each to whoever has least to do so far."""
    load, owners = [0] * world, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        owners[number] = load.index(min(load))
        load[owners[number]] += sizes[number] ** 3
    return owners
