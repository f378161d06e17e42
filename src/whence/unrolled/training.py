"""A model, its rows and a course: one step forward, and one step back.

The step back is backward-over-backward through one optimiser update. With g(θ, w) the step's gradient, the optimiser's
own derivative turns cotangents of the state after into those of the state before and of g (``rules``); what remains is

    ∂⟨g, a⟩/∂θ, a product with the Hessian, and ∂⟨g, a⟩/∂w_m = ⟨∇loss_m, a⟩ / divisor, the effect of a row's weight,

both from one further backward pass through the graph of g, for several cotangents a at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import LayerError, ModelError
from whence.gradients.attention import twice_differentiable
from whence.gradients.products import check_twice_differentiable, vector_jacobian
from whence.tasks.base import Batch, Example, Task, device_of, measurements_of, move
from whence.tasks.batches import plan_batches
from whence.unrolled.course import Course
from whence.unrolled.rules import Moment, State, clipped, pull_clipped

BLOCK_ELEMENTS = 1 << 25  # output numbers x cotangents differentiated at once
TOKENS = 8192  # of a step in one forward pass, by default


@dataclass(frozen=True, eq=False)
class _Graph:
    """A gradient, the weights in it, and how many numbers the model gave."""

    slopes: list[Tensor]
    weights_B: Tensor
    outputs: int


@dataclass(frozen=True, eq=False)
class Training:
    """A training that can be run in either direction; make it with ``training_of``.

    Attributes:
        model: a copy that this training alone writes to.
        task: what a row costs.
        rows: N training rows.
        course: what happens.
        names: of the parameters that move.
        origin_P: their values at the start, flat.
        decays_P: 1 where weight decay acts.
        tokens: most tokens of a step in one forward pass; larger steps are taken in parts. Changes memory only.
    """

    model: nn.Module
    task: Task
    rows: Sequence[Example]
    course: Course
    names: tuple[str, ...]
    origin_P: Tensor
    decays_P: Tensor
    tokens: int = TOKENS

    @property
    def moving(self) -> list[nn.Parameter]:
        """The parameters that move, in the order of the flat vector."""
        known = dict(self.model.named_parameters())
        return [known[name] for name in self.names]

    def start(self) -> State:
        """Before the first step."""
        return self.course.rule.begin(self.origin_P)

    def advance(self, state: State, number: int, weights_N: np.ndarray) -> State:
        """One step forward.

        Args:
            state: before.
            number: of the step, from 0.
            weights_N: of the rows.

        Returns:
            The state after; ``state`` stays as it is.
        """
        self._put(state.theta)
        grad = sum((self._slope(part, number, weights_N) for part in self._parts(number)), torch.zeros(()))
        return self.course.rule.step(state, clipped(grad.to(state.theta), self.course.clip), self._moment(number))

    def retreat(self, state: State, number: int, weights_N: np.ndarray, *, after: State) -> tuple[State, np.ndarray]:
        """One step back, for Q cotangents.

        Args:
            state: before the step.
            number: of the step.
            weights_N: of the rows.
            after: derivatives of Q measurements by the state after, each [Q, P].

        Returns:
            Derivatives by the state before; and [Q, B] derivatives by the weights of the step's rows, in the order of
            the course.

        Raises:
            LayerError: a model without second derivatives.
        """
        self._put(state.theta)
        parts, at, clip = self._parts(number), self._moment(number), self.course.clip
        whole = self._graph(parts[0], number, weights_N) if len(parts) == 1 else None
        if whole is not None:
            grad = self._flat(whole.slopes).detach().to(state.theta)
        else:
            grad = sum((self._slope(part, number, weights_N) for part in parts), torch.zeros(())).to(state.theta)
        before, by_clipped = self.course.rule.pull(state, clipped(grad, clip), after, at=at)
        by_grad = pull_clipped(grad, clip, by_clipped)
        bent, effects = torch.zeros_like(by_grad), []
        for part in parts:
            graph = whole or self._graph(part, number, weights_N)
            if number == len(self.course) - 1:
                check_twice_differentiable(graph.slopes)
            by_theta, by_weight = self._twice(graph, by_grad)
            bent += by_theta
            effects.append(by_weight.double().cpu().numpy())
        found = State(before.theta + bent, before.first, before.second)
        return found, np.concatenate(effects, axis=1)

    def measured(self, theta_P: Tensor, queries: Sequence[Example]) -> np.ndarray:
        """Q measurements at these parameters."""
        self._put(theta_P)
        found = np.empty(len(queries))
        with torch.no_grad():
            for group, batch in self._asked(queries):
                found[group] = measurements_of(self.task, self.model, batch).double().cpu().numpy()
        return found

    def slopes(self, theta_P: Tensor, queries: Sequence[Example]) -> tuple[np.ndarray, Tensor]:
        """Q measurements and their gradients [Q, P]."""
        self._put(theta_P)
        found, grads = np.empty(len(queries)), theta_P.new_empty(len(queries), len(theta_P))
        for group, batch in self._asked(queries):
            with torch.enable_grad():
                values = measurements_of(self.task, self.model, batch)
                for n, q in enumerate(group):
                    parts = torch.autograd.grad(values[n], self.moving, retain_graph=True, allow_unused=True)
                    grads[q] = self._flat(parts)
            found[group] = values.detach().double().cpu().numpy()
        return found, grads

    def _asked(self, queries: Sequence[Example]) -> Iterator[tuple[list[int], Batch]]:
        for group in plan_batches([q.length for q in queries], token_budget=self.tokens).batches:
            yield list(group), move(self.task.collate([queries[i] for i in group]), device_of(self.model))

    def _moment(self, number: int) -> Moment:
        return Moment(number, self.course.rates[number], self.decays_P)

    def _parts(self, number: int) -> list[tuple[int, ...]]:
        """The rows of a step in groups that fit, in order."""
        groups: list[list[int]] = [[]]
        widest = 0
        for n in self.course.batches[number]:
            widest = max(widest, self.rows[n].length)
            if groups[-1] and (len(groups[-1]) + 1) * widest > self.tokens:
                groups.append([])
                widest = self.rows[n].length
            groups[-1].append(n)
        return [tuple(group) for group in groups]

    def _slope(self, part: Sequence[int], number: int, weights_N: np.ndarray) -> Tensor:
        with torch.enable_grad():
            loss, _, _ = self._objective(part, number, weights_N)
            return self._flat(torch.autograd.grad(loss, self.moving, allow_unused=True))

    def _objective(self, part: Sequence[int], number: int, weights_N: np.ndarray) -> tuple[Tensor, Tensor, int]:
        """A part of a step's objective, the weights in it (differentiable), and how many outputs the model gave."""
        batch = move(self.task.collate([self.rows[n] for n in part]), device_of(self.model))
        outputs = self.task.outputs(self.model, batch)
        losses_B = self.task.losses(outputs, batch)
        weights_B = losses_B.new_tensor(weights_N[list(part)]).requires_grad_()
        return (weights_B * losses_B).sum() / self.course.divisors[number], weights_B, outputs.numel()

    def _graph(self, part: Sequence[int], number: int, weights_N: np.ndarray) -> _Graph:
        """The gradient of a part of a step's objective, differentiable once more."""
        with torch.enable_grad():
            loss, weights_B, outputs = self._objective(part, number, weights_N)
            return _Graph(vector_jacobian([loss], self.moving, how="graph"), weights_B, outputs)

    def _twice(self, graph: _Graph, by_grad: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of ⟨g, a⟩ for Q directions a: by the parameters [Q, P], by the part's weights [Q, B]."""
        found = []
        with torch.enable_grad():
            for along in by_grad.split(max(1, BLOCK_ELEMENTS // max(1, graph.outputs))):
                pairs = zip(graph.slopes, self._shaped(along), strict=True)
                live = [(s, d) for s, d in pairs if s.requires_grad]
                wanted = [*self.moving, graph.weights_B]
                found.append(vector_jacobian([s for s, _ in live], wanted, [d for _, d in live], how="block"))
        blocks = [torch.cat(each) for each in zip(*found, strict=True)]
        return torch.cat([b.flatten(1) for b in blocks[:-1]], dim=1).to(by_grad), blocks[-1]

    def _shaped(self, block_QP: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.moving]
        cut = block_QP.split(sizes, dim=1)
        return [c.reshape(-1, *p.shape).to(p.dtype) for c, p in zip(cut, self.moving, strict=True)]

    def _flat(self, parts: Sequence[Tensor | None]) -> Tensor:
        known = zip(parts, self.moving, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in known])

    def _put(self, theta_P: Tensor) -> None:
        with torch.no_grad():
            for value, parameter in zip(self._cut(theta_P), self.moving, strict=True):
                parameter.copy_(value)

    def _cut(self, theta_P: Tensor) -> list[Tensor]:
        parts = theta_P.split([p.numel() for p in self.moving])
        return [part.view(p.shape) for part, p in zip(parts, self.moving, strict=True)]

    def model_at(self, theta_P: Tensor) -> nn.Module:
        """The model with these parameters, as a copy."""
        self._put(theta_P)
        return deepcopy(self.model)


def training_of(
    model: nn.Module, task: Task, rows: Sequence[Example], course: Course, *, tokens: int = TOKENS
) -> Training:
    """A training of a copy of ``model``, in evaluation mode (no dropout) and at least float32.

    Raises:
        ModelError: no parameter moves, or not all that move are of one type.
        LayerError: parameters that cannot be differentiated.
    """
    own = deepcopy(model).eval()
    if any(p.is_floating_point() and p.element_size() < 4 for p in own.parameters()):
        own = own.float()
    moving = {name: p for name, p in own.named_parameters() if p.requires_grad}
    if not moving:
        raise ModelError("no parameter of this model requires a gradient", wanted="something that training moves")
    odd = next((name for name, p in moving.items() if not p.is_floating_point()), None)
    if odd is not None:
        raise LayerError(f"{odd} is stored as {moving[odd].dtype}", wanted="floating point parameters")
    if len({p.dtype for p in moving.values()}) > 1:
        own = own.float()
        moving = {name: p for name, p in own.named_parameters() if p.requires_grad}
    origin = torch.cat([p.detach().reshape(-1) for p in moving.values()]).clone()
    decays = torch.cat([p.new_full((p.numel(),), float(n not in course.undecayed)) for n, p in moving.items()])
    return Training(own, task, rows, course, tuple(moving), origin, decays.detach(), tokens)


@contextmanager
def exact_attention(training: Training) -> Iterator[str]:
    """Attention with second derivatives, in the steps forward as in those back: they must be the same function."""
    with twice_differentiable(training.model) as note:
        yield note
