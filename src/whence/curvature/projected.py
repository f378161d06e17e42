"""The gradient dot product (or cosine) of projected gradients: no curvature, small rows."""

from __future__ import annotations

from whence.curvature import gram
from whence.curvature.base import Factors, Method, Problem
from whence.errors import OptionError
from whence.linalg.compressed import Compressed
from whence.linalg.operators import Blocks, Identity
from whence.linalg.projection import Kind


def operator(factors: Factors, _problem: Problem) -> Blocks:
    squeezes = {layer: gram.squeeze(tensors) for layer, tensors in factors.tensors.items()}
    return Blocks(
        {n: Compressed(s, Identity(*s.sides.shape(s.outputs, s.inputs))) for n, s in squeezes.items()}
    )  # fmt: skip


def method(*, size: int = 16, kind: Kind = "rademacher", seed: int = 0, unit: bool = False) -> Method:
    """Projected gradients with other settings.

    Args:
        size: numbers per side that each layer is projected to.
        kind: ``rademacher`` or ``gaussian``.
        seed: of the sides.
        unit: cosine instead of dot product.

    Raises:
        OptionError: PCA sides, which need a fit.
    """
    sketch = gram.Sketch(size, kind, seed).checked()
    if kind == "pca":
        raise OptionError("method projected: kind=pca", wanted="random sides: this method fits nothing", try_="logra")
    return Method(
        name="projected",
        idea="gradient dot product after a random projection of each layer: a baseline for projected methods",
        reference="TracIn's random projection, Pruthi et al. 2020, appendix F; two-sided as in LoGra",
        passes="0 to fit, 1 to score",
        memory="size (O + I) per layer",
        exact_when="in expectation over seeds it is the gradient dot product",
        stages=(),
        operator=operator,
        notes=sketch.notes,
        begin=sketch.begin,
        normalise="cosine" if unit else "none",
    )


METHOD = method()
