"""TRAK over several models: kernels and doubts are averaged separately, then multiplied.

τ(q, n) = [ mean over models of φ(q) K φ(n) ] · [ mean over models of (1 - p_n) ]   (Park et al. 2023, eq. 17)

The average of the products would be another quantity: a model that happens to be sure of a row would hide what the
others' kernels say of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import fit
from whence.curvature.trak import margins, measured
from whence.errors import OptionError
from whence.gradients.capture import frozen
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import Damping, relative
from whence.scores.score import Pairwise, prepare_queries
from whence.scores.sinks import AllScores
from whence.tasks.base import device_of, move


@dataclass(frozen=True)
class TrakPart:
    """One model's share.

    Attributes:
        kernel_QN: margin gradients of queries and rows in the kernel of this model.
        doubts_N: 1 - p of each row's right answer under this model.
    """

    kernel_QN: np.ndarray
    doubts_N: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """Q x N scores of this model alone."""
        return self.kernel_QN * self.doubts_N


def trak_part(
    query: LiveGradients, train: LiveGradients, *, method: str = "trak", damping: Damping | None = None
) -> TrakPart:
    """Kernel and doubts of one model.

    Args:
        query: the questions.
        train: the training rows.
        method: ``trak`` with its settings; a seed of its own for every model makes projections independent.
        damping: of the kernel.

    Raises:
        OptionError: a method other than TRAK.
    """
    found = get_method(method)
    if found.name != "trak":
        raise OptionError(f"an ensemble of {found.name}", wanted="trak", try_="scores.score.combine for other methods")
    operator = found.operator(fit(train, found), Problem(train))
    asked = prepare_queries(margins(query), operator.power(-1, damping or relative()))
    sink = AllScores.empty(len(asked.ids), train.ids)
    margins(train).visit(Pairwise(asked, sink), labels="measurement")
    return TrakPart(sink.values, doubts(train))


def doubts(source: LiveGradients) -> np.ndarray:
    """N values of 1 - p of the right answer (mean over supervised tokens), in the source's order."""
    task, found = measured(source.task), {}
    with frozen(source.model), torch.no_grad():
        for group in source.plan.batches:
            batch = task.collate([source.examples[i] for i in group])
            batch = move(batch, device_of(source.model))
            values = task.doubts(task.outputs(source.model, batch), batch)
            found.update(zip(batch.ids, values.tolist(), strict=True))
    return np.array([found[id_] for id_ in source.ids])


def trak_scores(parts: Iterable[TrakPart]) -> np.ndarray:
    """Q x N scores of the ensemble.

    Raises:
        OptionError: no models.
    """
    parts = list(parts)
    if not parts:
        raise OptionError("an ensemble of no models", wanted="at least one")
    return np.mean([p.kernel_QN for p in parts], axis=0) * np.mean([p.doubts_N for p in parts], axis=0)


def with_model(source: LiveGradients, model: nn.Module) -> LiveGradients:
    """The same rows and layers on another model of the same architecture (a checkpoint, a member of an ensemble)."""
    return replace(source, model=model, layers=find_layers(model, source.layers.names))
