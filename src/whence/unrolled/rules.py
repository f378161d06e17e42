"""One optimiser step as a pure function of flat vectors, and its vector-Jacobian product written out.

Everything is elementwise, so a leading axis (several cotangents, several models) costs no further code. Derivatives are
checked against autograd in the tests.

AdamW is smoothed as MAGIC does (Ilyas & Engstrom 2025): ``root`` is added *inside* the square root. Without it the
derivative of sqrt(v) is infinite where a parameter never had a gradient; there it is taken as 0, its limit along runs
in which the gradient stays 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class State:
    """What one step hands to the next, or the derivative by it.

    Attributes:
        theta: [..., P] parameters, all in one vector.
        first: [..., P] momentum, or Adam's mean of gradients.
        second: [..., P] Adam's mean of squared gradients; [..., 0] for a rule without one.
    """

    theta: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True, eq=False)
class Moment:
    """What a step knows besides state and gradient.

    Attributes:
        number: steps taken before it.
        rate: learning rate.
        decays_P: 1 where weight decay acts, else 0.
    """

    number: int
    rate: float
    decays_P: Tensor


class Rule(Protocol):
    """An optimiser."""

    def begin(self, theta: Tensor) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State, grad: Tensor, at: Moment) -> State:
        """The state after a step."""
        ...

    def pull(self, state: State, grad: Tensor, after: State, *, at: Moment) -> tuple[State, Tensor]:
        """From derivatives by the state after a step to those by the state before (gradient held) and by the gradient.

        ``after`` may have leading axes that ``state`` has not.
        """
        ...

    def about(self) -> Mapping[str, Any]:
        """For fingerprints."""
        ...


@dataclass(frozen=True)
class Sgd:
    """Gradient descent with momentum and coupled weight decay, as ``torch.optim.SGD``."""

    momentum: float = 0.0
    weight_decay: float = 0.0

    def begin(self, theta: Tensor) -> State:
        return State(theta, torch.zeros_like(theta), theta.new_empty(*theta.shape[:-1], 0))

    def step(self, state: State, grad: Tensor, at: Moment) -> State:
        first = self.momentum * state.first + grad + self.weight_decay * at.decays_P * state.theta
        return State(state.theta - at.rate * first, first, state.second)

    def pull(self, state: State, grad: Tensor, after: State, *, at: Moment) -> tuple[State, Tensor]:
        by_first = after.first - at.rate * after.theta
        by_theta = after.theta + self.weight_decay * at.decays_P * by_first
        return State(by_theta, self.momentum * by_first, after.second), by_first

    def about(self) -> Mapping[str, Any]:
        return {"optimiser": "sgd", **asdict(self)}


@dataclass(frozen=True)
class AdamW:
    """AdamW (decoupled weight decay), as ``torch.optim.AdamW`` but for ``root`` inside the square root.

    Attributes:
        betas, eps, weight_decay: as in torch.
        root: what makes it smooth; 0 is torch's own.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    root: float = 1e-10
    weight_decay: float = 0.0

    def begin(self, theta: Tensor) -> State:
        return State(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def step(self, state: State, grad: Tensor, at: Moment) -> State:
        one, two = self.betas
        first = one * state.first + (1 - one) * grad
        second = two * state.second + (1 - two) * grad.square()
        bias_one, bias_two = self._biases(at)
        size = (second / bias_two + self.root).sqrt() + self.eps
        theta = state.theta * (1 - at.rate * self.weight_decay * at.decays_P) - at.rate / bias_one * first / size
        return State(theta, first, second)

    def pull(self, state: State, grad: Tensor, after: State, *, at: Moment) -> tuple[State, Tensor]:
        one, two = self.betas
        first = one * state.first + (1 - one) * grad
        second = two * state.second + (1 - two) * grad.square()
        bias_one, bias_two = self._biases(at)
        length = (second / bias_two + self.root).sqrt()
        size = length + self.eps
        by_move = -at.rate / bias_one * after.theta
        by_first = after.first + by_move / size
        slope = torch.where(length > 0, -first / size.square() / (2 * length * bias_two), 0.0)
        by_second = after.second + by_move * slope
        by_grad = (1 - one) * by_first + 2 * (1 - two) * grad * by_second
        by_theta = after.theta * (1 - at.rate * self.weight_decay * at.decays_P)
        return State(by_theta, one * by_first, two * by_second), by_grad

    def _biases(self, at: Moment) -> tuple[float, float]:
        return 1 - self.betas[0] ** (at.number + 1), 1 - self.betas[1] ** (at.number + 1)

    def about(self) -> Mapping[str, Any]:
        return {"optimiser": "adamw", **asdict(self)}


def clipped(grad: Tensor, most: float) -> Tensor:
    """Gradients [..., P] of length ``most`` at most, as ``clip_grad_norm_``; 0 = as they are."""
    if most <= 0:
        return grad
    return grad * (most / (grad.norm(dim=-1, keepdim=True) + 1e-6)).clamp(max=1.0)


def pull_clipped(grad_P: Tensor, most: float, after_QP: Tensor) -> Tensor:
    """Derivatives by the gradient before clipping. At the very edge, where there is none, that of the inside."""
    length = grad_P.norm()
    if most <= 0 or length + 1e-6 <= most:
        return after_QP
    factor = most / (length + 1e-6)
    along_Q1 = (after_QP @ grad_P)[:, None] / (length * (length + 1e-6))
    return factor * (after_QP - along_Q1 * grad_P)
