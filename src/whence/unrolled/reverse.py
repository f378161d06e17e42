"""All steps back, with few states in memory: REPLAY (Engstrom et al. 2025; Ilyas & Engstrom 2025).

The steps are cut into ``branching`` parts, the states at their starts are kept, and the parts are taken from the last
to the first, each cut again in the same way until single steps are left; what lies between is run again. With d levels
and branching k = T^(1/d) at most d (k - 1) + 1 states are alive besides the one being made, and the training is run
about d times forward: two levels are the square root rule, k = 2 is a binary tree.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from whence.errors import CurvatureError, OptionError
from whence.tasks.base import Example
from whence.unrolled.rules import State
from whence.unrolled.training import Training, exact_attention


@dataclass(frozen=True)
class Tree:
    """How the steps are cut.

    Attributes:
        steps: T.
        branching: parts of a part.
    """

    steps: int
    branching: int

    @property
    def states(self) -> int:
        """Most states kept at any time."""
        return _kept(self.steps, self.branching)

    @property
    def forward(self) -> int:
        """Steps forward in all, the first run included; there are T steps back besides."""
        return self.steps + _between(self.steps, self.branching, first=True)

    def about(self) -> dict[str, int]:
        """For people."""
        return {"steps": self.steps, "states": self.states, "steps_forward": self.forward, "steps_back": self.steps}


def tree_of(steps: int, states: int | None = None) -> Tree:
    """The tree with the fewest repeated steps that keeps at most so many states.

    Args:
        steps: T.
        states: most states in memory; None = two levels, about 2 sqrt(T).

    Raises:
        OptionError: fewer states than a binary tree needs.
    """
    if states is None:
        return Tree(steps, max(2, math.ceil(math.sqrt(steps))))
    fitting = [k for k in range(2, max(3, steps + 1)) if _kept(steps, k) <= states]
    if not fitting:
        least = _kept(steps, 2)
        raise OptionError(f"{states} states for {steps} steps", wanted=f"at least {least}", try_=f"--states {least}")
    return min((Tree(steps, k) for k in fitting), key=lambda tree: (tree.forward, tree.states))


def _edges(start: int, stop: int, branching: int) -> list[int]:
    """Boundaries of the parts of steps start to stop."""
    parts = min(branching, stop - start)
    return [start + (stop - start) * n // parts for n in range(parts + 1)]


def _kept(steps: int, branching: int) -> int:
    if steps <= 1:
        return 1
    edges = _edges(0, steps, branching)
    # while part n is taken, the starts of the parts before it are kept as well
    return max(n + _kept(edges[n + 1] - edges[n], branching) for n in range(len(edges) - 1))


def _between(steps: int, branching: int, *, first: bool = False) -> int:
    """Steps run again below a part of so many steps; the starts of the uppermost parts come from the first run."""
    if steps <= 1:
        return 0
    edges = _edges(0, steps, branching)
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    return (0 if first else edges[-2]) + sum(_between(size, branching) for size in sizes)


@dataclass(frozen=True, eq=False)
class Metagradients:
    """The result of one reverse pass.

    Attributes:
        effects_QN: derivative of each measurement by each row's weight, at the weights of the run.
        measurements_Q: at the end of the run, nats.
        final: the state at the end.
        tree: how it was done.
        again: largest difference between the last state of the first run and of its repetition; 0 = bit for bit.
        seconds: of the run forward, and of the way back.
        note: what was done to attention.
    """

    effects_QN: np.ndarray
    measurements_Q: np.ndarray
    final: State
    tree: Tree
    again: float
    seconds: tuple[float, float]
    note: str


def metagradients(
    training: Training,
    queries: Sequence[Example],
    *,
    weights: np.ndarray | None = None,
    mixture: np.ndarray | None = None,
    states: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Metagradients:
    """Exact derivatives of the queries' measurements after training by the weight of every training row.

    Args:
        training: the run.
        queries: Q' questions.
        weights: N weights of the run; None = all 1.
        mixture: Q x Q' combinations of the questions to explain; None = each question.
        states: most optimiser states in memory; None = about 2 sqrt(T).
        progress: told (steps back done, of) after every step back.

    Raises:
        CurvatureError: the run diverges, or does not repeat itself.
        LayerError: a model without second derivatives.
        OptionError: too few states.
    """
    tree = tree_of(len(training.course), states)
    weights_N = np.ones(len(training.rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    with exact_attention(training) as note:
        started = time.perf_counter()
        edges = _edges(0, tree.steps, tree.branching)
        state, starts = training.start(), []
        for a, b in itertools.pairwise(edges):
            starts.append(state)
            state = run_forward(training, state, range(a, b), weights_N)
        values, slopes = training.slopes(state.theta, queries)
        between = time.perf_counter()
        if mixture is not None:
            mixing = torch.as_tensor(mixture).to(slopes)
            values, slopes = mixture @ values, mixing @ slopes
        walk = _Walk(training, weights_N, tree, state, _cotangent(state, slopes), progress=progress)
        walk.effects_QN = np.zeros((len(slopes), len(training.rows)))
        walk.descend(edges, starts)
    seconds = between - started, time.perf_counter() - between
    if not np.isfinite(walk.effects_QN).all():
        raise CurvatureError(
            "a metagradient is not finite",
            wanted="an optimiser that is smooth along the run",
            try_="a larger root inside Adam's square root (--root 1e-12), a smaller rate, or dtype float64",
        )
    return Metagradients(walk.effects_QN, values, state, tree, walk.again, seconds, note)


def run_forward(training: Training, state: State, numbers: Sequence[int], weights_N: np.ndarray) -> State:
    """Steps forward, keeping nothing but the last state.

    Raises:
        CurvatureError: the parameters are no longer finite.
    """
    for number in numbers:
        state = training.advance(state, number, weights_N)
    if not bool(torch.isfinite(state.theta).all()):
        last = numbers[-1] + 1 if len(numbers) else 0
        raise CurvatureError(
            f"training diverged by step {last}", wanted="finite parameters", try_="a smaller rate in the recipe"
        )
    return state


def _cotangent(final: State, slopes_QP: torch.Tensor) -> State:
    count = len(slopes_QP)
    none = (torch.zeros(count, part.shape[-1]).to(slopes_QP) for part in (final.first, final.second))
    return State(slopes_QP, *none)


@dataclass
class _Walk:
    """The way back: the cotangent moves from the last step to the first."""

    training: Training
    weights_N: np.ndarray
    tree: Tree
    final: State
    cotangent: State
    progress: Callable[[int, int], None] | None
    effects_QN: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    again: float = 0.0
    done: int = 0

    def descend(self, edges: Sequence[int], starts: list[State]) -> None:
        """Take the parts between ``edges`` from the last to the first; ``starts`` is emptied on the way."""
        for a, b in reversed(list(itertools.pairwise(edges))):
            if b - a == 1:
                self._back(starts.pop(), a)
                continue
            inner = _edges(a, b, self.tree.branching)
            below = [starts.pop()]
            for n in range(len(inner) - 2):
                below.append(
                    run_forward(self.training, below[-1], range(inner[n], inner[n + 1]), self.weights_N)
                )  # fmt: skip
            self.descend(inner, below)

    def _back(self, state: State, number: int) -> None:
        if number == self.tree.steps - 1:
            self._check_again(self.training.advance(state, number, self.weights_N))
        before, effects_QB = self.training.retreat(state, number, self.weights_N, after=self.cotangent)
        places = list(self.training.course.batches[number])
        for place, effect_Q in zip(places, effects_QB.T, strict=True):  # a row may stand in a step twice
            self.effects_QN[:, place] += effect_Q
        self.cotangent = before
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.tree.steps)

    def _check_again(self, after: State) -> None:
        """The last step, made again from states that were made again, must end where the run ended."""
        self.again = float((after.theta - self.final.theta).abs().max())
        moved = float((self.final.theta - self.training.origin_P).abs().max())
        if self.again > 1e-3 * moved:
            raise CurvatureError(
                f"the run does not repeat itself: {self.again:.1e} off after moving by {moved:.1e}",
                wanted="a deterministic forward and backward pass",
                try_="one thread, or torch.use_deterministic_algorithms",
            )
