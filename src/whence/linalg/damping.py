"""Damping: a value that shifts eigenvalues so that they can be inverted. Handed in when inverting, never baked in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whence.errors import CurvatureError, OptionError

Kind = Literal["absolute", "relative", "factored", "implied"]
KINDS: tuple[Kind, ...] = ("absolute", "relative", "factored", "implied")
CUSTOMARY = 0.1  # times the mean eigenvalue: Grosse et al. 2023, section 3.2
LEAST = 1e-30  # stands for an amount that is not above 0


@dataclass(frozen=True)
class Damping:
    """How to make a curvature invertible.

    ``absolute``: eigenvalues + value. ``relative``: eigenvalues + value x their mean over the layer (Grosse et al.
    2023, section 3.2: 0.1). ``factored``: each Kronecker factor is shifted by sqrt(value) x its own mean, which is
    Martens & Grosse 2015 (section 6.3) with lambda = value x the mean eigenvalue and pi = the ratio of the factors'
    means; it keeps an inverse Kronecker-factored and always damps at least as much as ``relative``. ``implied``: an
    amount per layer that was measured (``curvature/implied.py``), never below 0.1 x the mean eigenvalue.

    Attributes:
        kind, value: as above; of ``implied`` the one amount that stands for all layers.
        layers: (name, amount) of ``implied``.
    """

    kind: Kind
    value: float
    layers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"unknown damping kind {self.kind!r}", wanted="one of " + ", ".join(KINDS))
        if not (self.value > 0 and self.value < float("inf")):
            raise OptionError(
                f"damping {self.value!r}",
                wanted="a finite number above 0: curvature of a trained model has directions with no curvature at all",
                try_="relative:0.1 (the default), or relative:1e-3 to trust small eigenvalues more",
            )

    def __str__(self) -> str:
        return f"{self.kind}:{self.value:g}"

    def of(self, layer: str) -> Damping:
        """The damping of one layer.

        Raises:
            CurvatureError: a layer that ``implied`` was not measured for.
        """
        if not self.layers:
            return self
        amounts = dict(self.layers)
        if layer not in amounts:
            raise CurvatureError(f"no damping for layer {layer}", wanted="one measured over the same layers")
        return Damping(self.kind, amounts[layer])

    def size(self, mean: float) -> float:
        """The amount for a layer with this mean eigenvalue (of ``factored``: on average over the layer)."""
        if self.kind == "absolute":
            return self.value
        return max(self.value, CUSTOMARY * mean) if self.kind == "implied" else self.value * mean

    def shift(self, eigenvalues_OI: Tensor) -> Tensor:
        """Shifted eigenvalues, same shape. A layer without any curvature gets infinities, so that its inverse is 0.

        Raises:
            CurvatureError: eigenvalues that are not finite.
        """
        mean = eigenvalues_OI.mean()
        if not bool(torch.isfinite(mean)):
            raise CurvatureError(
                "eigenvalues are not finite",
                wanted="finite curvature",
                try_="look for rows or weights that overflow (whence check)",
            )
        if self.kind == "absolute":
            return eigenvalues_OI + self.value
        if mean <= 0:
            return torch.full_like(eigenvalues_OI, float("inf"))
        if self.kind in ("relative", "implied"):
            return eigenvalues_OI + (self.value * mean if self.kind == "relative" else self.size(float(mean)))
        # (λ_A + √v m_A)(λ_G + √v m_G), written with row and column means so that it also serves eigenvalues that
        # do not factor (EK-FAC); equal to the Kronecker form when they do.
        cross = eigenvalues_OI.mean(1, keepdim=True) + eigenvalues_OI.mean(0, keepdim=True)
        return eigenvalues_OI + self.value**0.5 * cross + self.value * mean

    def amount(self, eigenvalues_OI: Tensor) -> float:
        """The shift of a zero eigenvalue on average: what to print beside a result."""
        return self.size(float(eigenvalues_OI.mean()))


def absolute(value: float) -> Damping:
    """Eigenvalues + value."""
    return Damping("absolute", value)


def relative(value: float = 0.1) -> Damping:
    """Eigenvalues + value x the layer's mean eigenvalue."""
    return Damping("relative", value)


def factored(value: float = 0.1) -> Damping:
    """Each Kronecker factor + sqrt(value) x its mean eigenvalue."""
    return Damping("factored", value)


def implied(amounts: Mapping[str, float], value: float) -> Damping:
    """Measured amounts per layer; one that is not above 0 leaves its layer at the floor."""
    layers = tuple((name, amount if amount > LEAST else LEAST) for name, amount in amounts.items())
    return Damping("implied", max(value, LEAST), layers)


def parse_damping(text: str | float | Damping) -> Damping:
    """``"relative:0.1"``, ``"absolute:1e-3"``, ``"factored:0.1"`` or a bare number (relative).

    Raises:
        OptionError: anything else, or a value that is not above 0.
    """
    if isinstance(text, Damping):
        return text
    kind, _, number = str(text).rpartition(":")
    if kind.startswith("implied"):
        raise OptionError(
            f"damping {text!r}",
            wanted="kind:number here; implied:MODEL is measured by trace, and implied by evaluate",
            try_="relative:10, or the amounts that trace wrote into run.json",
        )
    try:
        return Damping(kind or "relative", float(number))  # type: ignore[arg-type]  # checked in __post_init__
    except ValueError as error:
        raise OptionError(
            f"damping {text!r}", wanted="kind:number", try_="relative:0.1, absolute:1e-3 or factored:0.1"
        ) from error
