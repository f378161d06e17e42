"""Metasmoothness: may a derivative by the rows' weights be believed at the size of a real change?

Three trainings, at weights w, w + hv and w + 2hv (Engstrom et al. 2025, section 3: "metasmoothness"). Where training is
smooth in its weights, every parameter moves on in the direction it began to move in; the share that does, weighted by
how far each moves, lies between -1 and 1. Below about one half a metagradient foretells little.

The same runs show what matters to a user: the first change of every question's measurement, beside the one that the
metagradient foretells. A random half averages out what single rows get wrong: Adam turns the gradient of a parameter
that hardly ever has one into full steps, and the derivative by the row behind it may be a hundred times too large. So
a fourth training leaves out the one row with the largest effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from whence.tasks.base import Example
from whence.unrolled.reverse import Metagradients, run_forward
from whence.unrolled.training import Training, exact_attention

WIDTH = 0.1  # h, as the paper
USABLE = 0.5
SIZED = 0.25  # measured per foretold effect of the strongest row, below which the strongest effects are not real


@dataclass(frozen=True)
class Smoothness:
    """What three trainings say.

    Attributes:
        width: h.
        rows: how many rows got heavier: a random half.
        parameters: weighted agreement of the signs of successive differences of the parameters, -1 to 1.
        measured: nats by which each question's measurement changed over the first step of h.
        foretold: the change that the metagradient foretells.
        bend: |second difference| / |first difference| of the measurements, mean over questions; 0 = a straight line.
        strongest: place of the row with the largest effects, left out in a training of its own.
        left_measured, left_foretold: nats by which each question's measurement rose, and should have risen, without it.
    """

    width: float
    rows: int
    parameters: float
    measured: tuple[float, ...]
    foretold: tuple[float, ...]
    bend: float
    strongest: int = 0
    left_measured: tuple[float, ...] = ()
    left_foretold: tuple[float, ...] = ()

    @property
    def slope(self) -> float:
        """Measured per foretold change, by least squares over the questions: 1 = the right size."""
        return _slope(self.foretold, self.measured)

    @property
    def left_slope(self) -> float:
        """The same for the row left out."""
        return _slope(self.left_foretold, self.left_measured)

    @property
    def usable(self) -> bool:
        """Smooth enough, in the whole and for the strongest row."""
        return self.parameters >= USABLE and not self.left_slope < SIZED

    def about(self) -> dict[str, Any]:
        """For results."""
        return {**asdict(self), "slope": self.slope, "left_slope": self.left_slope, "usable": self.usable}


def _slope(foretold: Sequence[float], measured: Sequence[float]) -> float:
    x, y = np.asarray(foretold), np.asarray(measured)
    return float(x @ y / (x @ x)) if x.any() else float("nan")


def metasmoothness(
    training: Training,
    queries: Sequence[Example],
    found: Metagradients,
    *,
    width: float = WIDTH,
    mixture: np.ndarray | None = None,
) -> Smoothness:
    """Three trainings (the first is known already) along a random half of the rows, and one without the strongest row.

    Args:
        training: the run.
        queries: the questions.
        found: its metagradients at weights of 1.
        width: h.
        mixture: as of ``metagradients``.
    """
    count, mixing = len(training.rows), np.eye(len(queries)) if mixture is None else mixture
    direction = np.zeros(count)
    direction[np.random.default_rng(1).permutation(count)[: max(1, count // 2)]] = 1.0
    ends, losses = [found.final.theta], [mixing @ training.measured(found.final.theta, queries)]
    strongest = int(np.abs(found.effects_QN).max(0).argmax())
    changes = [width * direction, 2 * width * direction, -np.eye(count)[strongest]]
    with exact_attention(training):
        for change in changes:
            weights = 1.0 + change
            ends.append(run_forward(training, training.start(), range(len(training.course)), weights).theta)
            losses.append(mixing @ training.measured(ends[-1], queries))
    one, two, far = ends[1] - ends[0], ends[2] - ends[1], (ends[2] - ends[0]).abs().double()
    agreement = float((far * (one.sign() * two.sign())).sum() / far.sum().clamp(min=1e-300))
    first, second = losses[1] - losses[0], losses[2] - losses[1]
    bend = float(np.abs(second - first).sum() / max(np.abs(first).sum(), 1e-300))
    foretold = width * found.effects_QN @ direction
    said = tuple(first.tolist()), tuple(foretold.tolist())
    left = tuple((losses[3] - losses[0]).tolist()), tuple((-found.effects_QN[:, strongest]).tolist())
    return Smoothness(width, int(direction.sum()), agreement, *said, bend, strongest, *left)
