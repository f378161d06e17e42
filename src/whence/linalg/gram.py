"""Inverses of a matrix given by its rows: (sum of outer products + damping)^-1, without forming the matrix.

Rows are per-example gradients, N of them in D dimensions. When N < D everything can be done on inner products; the
``..._scores`` functions never see a gradient at all, only Gram entries, so one Gram matrix serves every query.
Scores follow the house sign: positive = proponent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whence.errors import CurvatureError


def woodbury_inverse(rows_ND: Tensor, block_KD: Tensor, damping: float) -> Tensor:
    """``(rows' rows + damping I)^-1 block`` through the SVD of the rows: exact for any rank.

    (1/damping) [v - V diag(s^2 / (s^2 + damping)) V' v]. Reference: Woodbury 1950; ALGORITHMS 1.6 (the kernel shared
    by TRAK, LoGra and LoRIF).
    """
    require_positive(damping)
    _, singular_R, vectors_RD = torch.linalg.svd(rows_ND, full_matrices=False)
    share_R = singular_R.square() / (singular_R.square() + damping)
    return (block_KD - ((block_KD @ vectors_RD.T) * share_R) @ vectors_RD) / damping


def kernel_inverse(rows_ND: Tensor, block_KD: Tensor, damping: float) -> Tensor:
    """``(rows' rows / N + damping I)^-1 block`` through an N x N Cholesky: exact, and cheap when N < D.

    (1/damping) [v - J' (J J' + N damping I)^-1 J v]; with more rows than numbers, the D x D matrix itself.
    Reference: ALGORITHMS 1.1.
    """
    require_positive(damping)
    if len(rows_ND) > rows_ND.shape[1]:
        return _kernel_solve(rows_ND.T @ rows_ND, block_KD, damping, len(rows_ND)) * len(rows_ND)
    inside_KN = block_KD @ rows_ND.T
    weights_KN = _kernel_solve(rows_ND @ rows_ND.T, inside_KN, damping, len(rows_ND))
    return (block_KD - weights_KN @ rows_ND) / damping


def kernel_scores(
    fit_gram_NN: Tensor, query_fit_QN: Tensor, fit_train_NM: Tensor, query_train_QM: Tensor, *, damping: float
) -> Tensor:
    """``v' (F + damping)^-1 g`` for Q queries and M training rows, from inner products; F averages over N rows.

    Args:
        fit_gram_NN: inner products among the N rows of the Fisher.
        query_fit_QN: queries against those rows.
        fit_train_NM: those rows against the M rows to score.
        query_train_QM: queries against the rows to score (the plain gradient dot).
        damping: above 0, on the scale of the mean over rows.
    """
    require_positive(damping)
    weights_QN = _kernel_solve(fit_gram_NN, query_fit_QN, damping, len(fit_gram_NN))
    return (query_train_QM - weights_QN @ fit_train_NM) / damping


def _kernel_solve(gram_NN: Tensor, block_KN: Tensor, damping: float, rows: int) -> Tensor:
    shift_NN = damping * rows * torch.eye(len(gram_NN), dtype=gram_NN.dtype, device=gram_NN.device)
    return torch.cholesky_solve(block_KN.T, torch.linalg.cholesky(gram_NN + shift_NN)).T


def datainf_inverse(rows_ND: Tensor, block_KD: Tensor, damping: float) -> Tensor:
    """DataInf's operator: the *mean of inverses* ``(1/N) sum_i (g_i g_i' + damping I)^-1 block``.

    Each inverse is Sherman-Morrison's. Symmetric positive. Reference: Kwon, Wu, Wu & Zou, ICLR 2024, eq. 5.
    """
    require_positive(damping)
    inside_KN = block_KD @ rows_ND.T
    weights_KN = inside_KN / (damping + rows_ND.square().sum(dim=1))
    return (block_KD - weights_KN @ rows_ND / len(rows_ND)) / damping


def datainf_scores(
    fit_norms_N: Tensor, query_fit_QN: Tensor, fit_train_NM: Tensor, query_train_QM: Tensor, *, damping: float
) -> Tensor:
    """DataInf scores of one layer from inner products alone (arguments as in ``kernel_scores``).

    (1/damping) [v.g - (1/N) sum_i (v.g_i)(g_i.g) / (damping + |g_i|^2)]; the paper's I(z) is its negative.

    Args:
        fit_norms_N: *squared* lengths of the N rows.
        query_fit_QN: queries against those rows.
        fit_train_NM: those rows against the M rows to score.
        query_train_QM: queries against the rows to score.
        damping: above 0.
    """
    require_positive(damping)
    weights_QN = query_fit_QN / (damping + fit_norms_N) / len(fit_norms_N)
    return (query_train_QM - weights_QN @ fit_train_NM) / damping


def datainf_damping(fit_norms_N: Tensor, size: int, *, share: float = 0.1) -> float:
    """DataInf's heuristic: ``share`` times the mean eigenvalue of the layer's empirical Fisher.

    lambda = 0.1 / (N D) sum_i |g_i|^2 (Kwon et al., section 5), which is ``relative:0.1`` in whence's words.

    Args:
        fit_norms_N: squared lengths of the N rows.
        size: D, numbers in the layer.
        share: the factor.
    """
    return share * float(fit_norms_N.mean()) / size


def require_positive(damping: float) -> None:
    """Raise the explained error when ``damping`` is not above 0 (the low-rank forms divide by it)."""
    if not damping > 0:
        raise CurvatureError(
            f"damping {damping}",
            wanted="a damping above 0: a matrix made of N rows has no inverse outside their span",
            try_="damping relative:0.1",
        )
