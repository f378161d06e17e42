"""Low-rank pictures of a symmetric matrix known by its products: Lanczos (Arnoldi) and Nystrom.

Both give eigenpairs U diag(values) U', U with orthonormal rows here (``vectors_RD``), and from them

    (matrix + damping)^-1 v  =  U' (values + damping)^-1 U v  +  (1/damping) (v - U'U v)

whose second term, the *complement*, treats every direction that was not found as having curvature 0. Dropping it, as
the Arnoldi paper does, drops most of what tells examples apart (ALGORITHMS 1.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whence.errors import CurvatureError
from whence.linalg.draws import normal_block
from whence.linalg.packing import Apply


@dataclass(frozen=True)
class Eigenpairs:
    """R approximate eigenpairs, sorted by size (largest first).

    Attributes:
        values_R: eigenvalues.
        vectors_RD: orthonormal rows.
        residuals_R: ``|H u - value u|`` of each pair where the method knows it, else 0.
        reason: how they were found, in words.
    """

    values_R: Tensor
    vectors_RD: Tensor
    residuals_R: Tensor
    reason: str

    def inverse(self, block_KD: Tensor, damping: float | Tensor) -> Tensor:
        """``(matrix + damping)^-1 block`` with the complement term; damping is one number or one per coordinate.

        D^-1 - D^-1 U' C (I + S C)^-1 U D^-1 with C = diag(values), S = U D^-1 U': Woodbury without inverting C, so
        eigenvalues of 0 are welcome.

        Raises:
            CurvatureError: damping <= 0, or eigenvalues so negative that the damped matrix is not positive.
        """
        shift_D = torch.as_tensor(damping, dtype=block_KD.dtype, device=block_KD.device).expand(block_KD.shape[1])
        self._check(shift_D)
        outside_KD = block_KD / shift_D
        core_RR = (self.vectors_RD / shift_D) @ self.vectors_RD.T
        middle_RR = torch.eye(len(core_RR), dtype=core_RR.dtype, device=core_RR.device) + core_RR * self.values_R
        inside_KR = outside_KD @ self.vectors_RD.T
        weights_KR = torch.linalg.solve(middle_RR, inside_KR.T).T
        return outside_KD - ((weights_KR * self.values_R) @ self.vectors_RD) / shift_D

    def _check(self, shift_D: Tensor) -> None:
        smallest = float(shift_D.min())
        if not smallest > 0:
            raise CurvatureError(
                f"damping {smallest} with {len(self.values_R)} of {self.vectors_RD.shape[1]} directions known",
                wanted="a damping above 0: directions outside the low-rank part have curvature 0",
                try_="damping relative:0.1, or inverse_within() to drop them as the Arnoldi paper does",
            )
        lowest = float(self.values_R.min()) if len(self.values_R) else 0.0
        if lowest + smallest <= 0:
            raise CurvatureError(
                f"the curvature is indefinite: eigenvalue {lowest:.4g} with damping {smallest:.4g}",
                wanted="every eigenvalue plus the damping above 0",
                try_=f"a Gauss-Newton matrix, or a damping above {-lowest:.4g}",
            )

    def inverse_within(self, block_KD: Tensor) -> Tensor:
        """The undamped inverse inside the span only (Schioppa et al. 2022, eq. 5); everything else is dropped."""
        inside_KR = block_KD @ self.vectors_RD.T
        return (inside_KR / self.values_R) @ self.vectors_RD

    def preconditioner(self, damping: float) -> Apply:
        """``(last + damping) U'(values + damping)^-1 U + (I - U'U)``: the Nystrom preconditioner for CG.

        Reference: Frangella, Tropp & Udell 2021, eq. 1.3.
        """
        last = float(self.values_R[-1])
        gain_R = (last + damping) / (self.values_R + damping) - 1.0
        return lambda x_KD: x_KD + ((x_KD @ self.vectors_RD.T) * gain_R) @ self.vectors_RD


def lanczos(apply: Apply, like_D: Tensor, *, steps: int, keep: int, seed: int = 0) -> Eigenpairs:
    """The ``keep`` eigenpairs of largest absolute value out of ``steps`` Lanczos steps with full re-orthogonalisation.

    For a symmetric matrix Arnoldi *is* Lanczos; re-orthogonalising twice against the whole basis keeps it so in
    floating point. When the Krylov space closes early, the walk goes on from a fresh random direction, so repeated
    eigenvalues are found too. Memory: steps x D.

    Reference: Schioppa, Zablotskaia, Vilar & Sokolov, AAAI 2022 (Scaling Up Influence Functions), section 3.
    """
    size = like_D.shape[-1]
    if keep < 1 or steps < 1:
        raise CurvatureError(f"steps {steps}, keep {keep}", wanted="at least 1 of each", try_="200 steps, keep 50")
    steps = min(steps, size)
    basis_MD, diagonal, off, restarts = _walk(apply, like_D, steps, seed)
    tridiagonal = torch.diag(torch.stack(diagonal))
    for m, beta in enumerate(off[:-1]):
        tridiagonal[m, m + 1] = tridiagonal[m + 1, m] = beta
    values_M, mix_MM = torch.linalg.eigh(tridiagonal.to(torch.float64))
    order = torch.argsort(values_M.abs(), descending=True)[:keep]
    values_R, mix_MR = values_M[order].to(like_D.dtype), mix_MM[:, order].to(like_D.dtype)
    residuals_R = (off[-1] * mix_MR[-1]).abs()
    reason = (
        f"{len(order)} of {size} eigenpairs by absolute value from {steps} Lanczos steps ({restarts} restarts); "
        f"largest residual {float(residuals_R.max()):.2g}, smallest kept |eigenvalue| {float(values_R[-1].abs()):.3g}"
    )
    return Eigenpairs(values_R, mix_MR.T @ basis_MD, residuals_R, reason)


def _walk(apply: Apply, like_D: Tensor, steps: int, seed: int) -> tuple[Tensor, list[Tensor], list[Tensor], int]:
    """Basis [steps, D], diagonal and off-diagonal entries (the last one leads out of the space), restarts."""
    basis_MD = like_D.new_zeros(steps, like_D.shape[-1])
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    restarts, scale = 0, 0.0
    fresh_1D = normal_block(1, like_D, seed=seed, purpose="lanczos 0")
    basis_MD[0] = fresh_1D[0] / torch.linalg.vector_norm(fresh_1D)
    for m in range(steps):
        y_D = apply(basis_MD[m : m + 1])[0]
        diagonal.append(basis_MD[m] @ y_D)
        y_D, beta = _reorthogonalise(y_D, basis_MD[: m + 1])
        scale = max(scale, float(diagonal[-1].abs()), float(beta))
        if float(beta) <= 1e2 * torch.finfo(like_D.dtype).eps * max(scale, torch.finfo(like_D.dtype).tiny):
            beta, restarts = torch.zeros_like(beta), restarts + 1
            fresh_1D = normal_block(1, like_D, seed=seed, purpose=f"lanczos {restarts}")
            y_D, length = _reorthogonalise(fresh_1D[0], basis_MD[: m + 1])
            y_D = y_D / length.clamp_min(torch.finfo(like_D.dtype).tiny)
        else:
            y_D = y_D / beta
        off.append(beta)
        if m + 1 < steps:
            basis_MD[m + 1] = y_D
    return basis_MD, diagonal, off, restarts


def _reorthogonalise(y_D: Tensor, basis_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Y without its part in the basis, and its length. Twice is enough (Kahan, Parlett)."""
    for _ in range(2):
        y_D = y_D - basis_MD.T @ (basis_MD @ y_D)
    return y_D, torch.linalg.vector_norm(y_D)


def nystrom(apply: Apply, like_D: Tensor, *, rank: int, seed: int = 0) -> Eigenpairs:
    """A rank-r Nystrom approximation of a positive semi-definite matrix from ``rank`` products (one block).

    Stable form: shift by nu, Cholesky of the core, SVD, subtract nu
    (Tropp, Yurtsever, Udell & Cevher 2017, algorithm 3; ALGORITHMS 1.5).

    Raises:
        CurvatureError: rank outside 1..D, or a matrix that is not positive semi-definite.
    """
    size = like_D.shape[-1]
    if not 1 <= rank <= size:
        raise CurvatureError(f"Nystrom rank {rank}", wanted=f"1 to {size}, the size of the matrix", try_="rank 50")
    sketch_RD = torch.linalg.qr(normal_block(rank, like_D, seed=seed, purpose="nystrom").T)[0].T
    image_RD = apply(sketch_RD)
    nu = float(torch.finfo(like_D.dtype).eps * torch.linalg.vector_norm(image_RD))
    image_RD = image_RD + nu * sketch_RD
    core_RR = sketch_RD @ image_RD.T
    factor_RR, failed = torch.linalg.cholesky_ex((core_RR + core_RR.T) / 2)
    if failed:
        lowest = float(torch.linalg.eigvalsh((core_RR + core_RR.T) / 2)[0])
        raise CurvatureError(
            f"Nystrom met negative curvature ({lowest:.3g}) in its sketch",
            wanted="a positive semi-definite matrix",
            try_="the Gauss-Newton or Fisher matrix instead of the Hessian",
        )
    half_RD = torch.linalg.solve_triangular(factor_RR, image_RD, upper=False)
    _, singular_R, vectors_RD = torch.linalg.svd(half_RD, full_matrices=False)
    values_R = (singular_R.square() - nu).clamp_min(0.0)
    reason = f"Nystrom of rank {rank} of {size}; smallest eigenvalue kept {float(values_R[-1]):.3g}"
    return Eigenpairs(values_R, vectors_RD, torch.zeros_like(values_R), reason)
