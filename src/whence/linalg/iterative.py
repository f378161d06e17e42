"""Solvers that need only products: the public names of the files beside this one.

==================  ==========================================================  =======================
name                what it needs                                                exact when
==================  ==========================================================  =======================
conjugate_gradient  products with a fixed positive matrix                        converged
lissa               products with (possibly changing) mini-batch matrices        depth -> infinity
lanczos             products with a fixed symmetric matrix                       steps = size
nystrom             one block of products with a positive matrix                 rank = size
woodbury_inverse    the rows of a low-rank matrix                                always
kernel_inverse      the rows, N < D                                              always
datainf_inverse     the rows                                                     one row, or large damping
==================  ==========================================================  =======================
"""

from whence.linalg.cg import block_conjugate_gradient, conjugate_gradient
from whence.linalg.gram import (
    datainf_damping,
    datainf_inverse,
    datainf_scores,
    kernel_inverse,
    kernel_scores,
    woodbury_inverse,
)
from whence.linalg.lissa import LissaSettings, lissa, lissa_scale, neumann_filter, power_iteration
from whence.linalg.packing import Apply, Layout, matrix_apply, shifted
from whence.linalg.solution import Solution, true_residuals
from whence.linalg.spectrum import Eigenpairs, lanczos, nystrom

__all__ = [
    "Apply",
    "Eigenpairs",
    "Layout",
    "LissaSettings",
    "Solution",
    "block_conjugate_gradient",
    "conjugate_gradient",
    "datainf_damping",
    "datainf_inverse",
    "datainf_scores",
    "kernel_inverse",
    "kernel_scores",
    "lanczos",
    "lissa",
    "lissa_scale",
    "matrix_apply",
    "neumann_filter",
    "nystrom",
    "power_iteration",
    "shifted",
    "true_residuals",
    "woodbury_inverse",
]
