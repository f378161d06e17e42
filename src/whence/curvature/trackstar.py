"""TrackStar: normalise by second moments, project, whiten by a mixture of two Gram matrices, compare directions.

G(z) = R^-1/2 P (∇L(z) / sqrt(V)), score = cosine of G(q) and G(z), with V the training gradients' second moments and
R = share R_queries + (1 - share) R_train per layer. R_queries holds what all questions have in common (their
template), which entering the inverse makes count less. Where we part from the paper: V is measured here, because an
optimiser's state is rarely at hand; and R is damped like every other curvature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from whence.curvature import gram
from whence.curvature.base import Factors, LayerTensors, Memo, Method, Problem, Stage, Sums
from whence.errors import OptionError
from whence.gradients.fisher import gradient_rows
from whence.gradients.source import GradientSource
from whence.gradients.transforms import Squeezed, TransformedGradients, inverse_root, rank_one_roots
from whence.linalg.matrix_batch import MatrixBatch
from whence.linalg.operators import Blocks, Diagonal, eigh

Normaliser = Literal["row_column", "elementwise", "none"]
EPSILON = 1e-6  # share of the mean second moment below which an entry counts as that much: Adam's epsilon, scale-free
RANK = 1000  # pooled eigenvalue at which the two parts of R are balanced (section 3.2)


def second_moments(_layer: str, grads: MatrixBatch, _factors: LayerTensors, _memo: Memo) -> Mapping[str, Tensor]:
    return {"squares": grads.sum_of_squares()}


def moments_finish(sums: Sums, factors: LayerTensors) -> LayerTensors:
    return gram.merged(factors, {n: {"squares": t["squares"] / sums.examples} for n, t in sums.tensors.items()})


def diagonal(factors: LayerTensors) -> Blocks:
    return Blocks({layer: Diagonal(t["squares"]) for layer, t in factors.items()})


MOMENTS = Stage("second moments", lambda factors: factors, second_moments, moments_finish, diagonal)


def normalised(normaliser: Normaliser, factors: LayerTensors) -> LayerTensors:
    """The factors with 1 / sqrt(V) folded into the sides (row_column) or beside them (elementwise)."""
    if normaliser == "none":
        return factors
    found = {}
    for layer, tensors in factors.items():
        kept = {name: value for name, value in tensors.items() if name != "squares"}
        if normaliser == "elementwise":
            found[layer] = {**kept, "weights": inverse_root(tensors["squares"], EPSILON)}
            continue
        row_O, column_I = rank_one_roots(tensors["squares"], EPSILON)
        found[layer] = {**kept, "left": _folded(kept, "left", row_O), "right": _folded(kept, "right", column_I)}
    return found


def _folded(tensors: Mapping[str, Tensor], name: str, factor: Tensor) -> Tensor:
    return tensors[name].to(factor) * factor if name in tensors else torch.diag(factor)


@dataclass(frozen=True)
class Mixture:
    """How much of R comes from the questions: a share from 0 to 1, or the balance of the paper."""

    share: float | Literal["auto"] = "auto"

    def checked(self) -> Mixture:
        """Itself.

        Raises:
            OptionError: a share that is not between 0 and 1.
        """
        if self.share != "auto" and not 0 <= self.share <= 1:
            raise OptionError(f"share={self.share}", wanted="auto, or a number from 0 to 1", try_="share=auto")
        return self

    def operator(self, factors: Factors, problem: Problem) -> Blocks:
        """R per layer; without questions (self-influence) that of the training rows."""
        if problem.queries is None or self.share == 0:
            return gram.blocks(factors.tensors)
        asked = query_grams(factors.tensors, problem.queries)
        train = {layer: t["gram"] for layer, t in factors.tensors.items()}
        share = balanced(asked, train) if self.share == "auto" else self.share
        mixed = {n: {**t, "gram": share * asked[n] + (1 - share) * train[n]} for n, t in factors.tensors.items()}
        return gram.blocks(mixed)


def query_grams(factors: LayerTensors, queries: GradientSource) -> dict[str, Tensor]:
    """Mean outer products of the queries' squeezed measurement gradients, per layer."""
    small = TransformedGradients(queries, (Squeezed({n: gram.squeeze(t) for n, t in factors.items()}),))
    rows = gradient_rows(small, labels="measurement")
    return {layer: rows_QD.T @ rows_QD / len(rows_QD) for layer, rows_QD in rows.items()}


def balanced(asked: Mapping[str, Tensor], train: Mapping[str, Tensor], rank: int = RANK) -> float:
    """The share at which the pooled eigenvalues of both parts are equal at ``rank`` (or the last that both have)."""
    pooled = [_pooled(grams) for grams in (asked, train)]
    k = min(rank, *(int((values > 1e-9 * values[0]).sum()) for values in pooled)) - 1
    if k < 0:
        return 0.0
    of_asked, of_train = (float(values[k]) for values in pooled)
    return of_train / (of_asked + of_train)


def _pooled(grams: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([eigh(matrix)[0] for matrix in grams.values()]).sort(descending=True).values


def method(
    *,
    size: int = 16,
    kind: Literal["rademacher", "gaussian"] = "rademacher",
    seed: int = 0,
    normaliser: Normaliser = "row_column",
    share: float | Literal["auto"] = "auto",
    unit: bool = True,
) -> Method:
    """TrackStar with other settings.

    Args:
        size: numbers per side that each layer is projected to.
        kind: ``rademacher`` or ``gaussian`` sides.
        seed: of the sides.
        normaliser: the second moments' form: rows x columns (Adafactor), elementwise (Adam), or none.
        share: of the questions' Gram matrix in R; auto balances the two at rank 1,000.
        unit: compare directions (the paper); false leaves the lengths in.
    """
    sketch, mixture = gram.Sketch(size, kind, seed).checked(), Mixture(share).checked()
    moments = () if normaliser == "none" else (MOMENTS,)
    return Method(
        name="trackstar",
        idea="normalised, projected, whitened gradients compared by direction: made for retrieval",
        reference="Chang et al. 2024 (TrackStar), section 3",
        passes="2 to fit (1 without normaliser), 1 to score",
        memory="size⁴ and, while fitting, O I per layer",
        exact_when="never: it normalises on purpose; without projection, normaliser and unit it is exact_block",
        stages=(*moments, gram.stage(partial(normalised, normaliser))),
        operator=mixture.operator,
        notes=sketch.notes,
        begin=sketch.begin,
        normalise="cosine" if unit else "none",
    )


METHOD = method()
