"""The exact curvature of each layer by itself: the ceiling of every per-layer method (K-FAC, EK-FAC)."""

from __future__ import annotations

from whence.curvature import exact
from whence.curvature.base import Method
from whence.gradients.products import Curvature


def method(*, curvature: Curvature = "gauss_newton") -> Method:
    """The same with another matrix (as in ``exact.method``)."""
    return exact.method(curvature=curvature, between_layers="dropped")


METHOD = method()
