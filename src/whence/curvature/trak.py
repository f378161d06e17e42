"""TRAK: the kernel of projected *margin* gradients, all layers together.

score = φ(q) (ΦᵀΦ / N + damping)⁻¹ φ(n) Q_n with φ = Pᵀ∇f the projected gradient of the margin (``tasks.margin``)
and Q = 1 - p. For one label Q_n φ(n) is the projected gradient of row n's loss, so with a single model TRAK needs
nothing of its own but the kernel and the question's measurement. An ensemble over models averages kernels and Q
separately (``scores.ensemble``). Park et al. 2023, section 3; where we part from it: ΦᵀΦ is divided by N, the scale of
every other curvature here, and damping is not 0 (a singular kernel is a known fault of the reference code).

For a language model the margins of all tokens are summed, and loss gradients weigh each token's by its own 1 - p.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from whence.curvature import gram
from whence.curvature.base import Factors, Method, Problem
from whence.curvature.implicit import live
from whence.curvature.kernel import RowFisher
from whence.gradients.fisher import gradient_rows
from whence.gradients.source import LiveGradients
from whence.gradients.transforms import Squeezed, TransformedGradients
from whence.linalg.compressed import CompressedTogether
from whence.linalg.packing import Layout
from whence.tasks.base import Task
from whence.tasks.margin import Margin


def operator(factors: Factors, problem: Problem) -> CompressedTogether:
    squeezes = {layer: gram.squeeze(tensors) for layer, tensors in factors.tensors.items()}
    small = TransformedGradients(margins(live(problem)), (Squeezed(squeezes),))
    kept = gradient_rows(small, labels="measurement")
    layout = Layout.of(small.layers.sizes)
    rows_ND = torch.cat([kept[name] for name in layout.sizes], dim=1)
    return CompressedTogether(squeezes, RowFisher(rows_ND, layout))


def margins(source: LiveGradients) -> LiveGradients:
    """The same rows measured by their margin."""
    return replace(source, task=measured(source.task))


def measured(task: Task) -> Margin:
    """The task with its margin as measurement."""
    return task if isinstance(task, Margin) else Margin(task)


def method(*, size: int = 16, kind: Literal["rademacher", "gaussian"] = "rademacher", seed: int = 0) -> Method:
    """TRAK with other settings.

    Args:
        size: numbers per side that each layer is projected to.
        kind: ``rademacher`` or ``gaussian`` sides.
        seed: of the sides.
    """
    sketch = gram.Sketch(size, kind, seed).checked()
    return Method(
        name="trak",
        idea="the kernel of projected gradients of the log-odds; made for classifiers and ensembles of models",
        reference="Park et al. 2023 (TRAK), section 3",
        passes="1 to collect projected gradients, 1 to score",
        memory="layers x size² numbers per training row, and N² (or (layers x size²)² where that is less)",
        exact_when="never; for logistic regression it is the Newton step without its weights p (1 - p)",
        stages=(),
        operator=operator,
        notes=sketch.notes,
        begin=sketch.begin,
        measure=measured,
    )


METHOD = method()
