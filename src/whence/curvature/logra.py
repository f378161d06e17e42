"""LoGra: gradients projected on both sides of every layer, and the Fisher of what is left, inverted exactly."""

from __future__ import annotations

from whence.curvature import gram
from whence.curvature.base import Method
from whence.linalg.projection import Kind


def method(*, size: int = 16, kind: Kind = "rademacher", seed: int = 0, unit: bool = False) -> Method:
    """LoGra with other settings.

    Args:
        size: numbers per side that each layer is projected to.
        kind: ``rademacher`` or ``gaussian`` sides, or ``pca``: the top K-FAC eigenvectors (one pass more).
        seed: of random sides.
        unit: divide scores by both norms in the metric of the inverse (the paper's cosine mode).
    """
    sketch = gram.Sketch(size, kind, seed).checked()
    return Method(
        name="logra",
        idea="gradients projected on both sides of each layer; their Fisher per layer inverted",
        reference="Choe et al. 2024 (LoGra), sections 3.1 and 3.2",
        passes="1 to fit (2 with PCA sides), 1 to score",
        memory="size⁴ per layer, and size (O + I)",
        exact_when="the projection is injective on the range of the layer's Fisher (size² at least its rank)",
        stages=(*sketch.stages(), gram.stage(sketch.prepare)),
        operator=gram.operator,
        notes=sketch.notes,
        begin=sketch.begin,
        normalise="cosine" if unit else "none",
    )


METHOD = method()
