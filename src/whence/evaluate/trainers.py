"""Who trains a member of a bank: whence itself (small models, many at once), the user's command, or any function.

A trainer gets which rows each member keeps and its seed, and gives the queries' measurements after training. The same
rows and seed must give the same numbers: that is what lets a bank be resumed and reused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from whence.errors import OptionError
from whence.evaluate.stacked import Stacked, agrees, stack
from whence.tasks.base import Example, Task, device_of, measurements_of, move
from whence.tasks.batches import plan_batches

EVALUATION_TOKENS = 16384  # of all copies together, per batch of queries


class Trainer(Protocol):
    """Trains members of a bank."""

    @property
    def at_once(self) -> int:
        """How many members it likes to be given together."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What decides the outcome besides rows and seed; banks of different fingerprints are different banks."""
        ...

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """K x Q measurements (nats of a loss) of the queries after training on each member's rows; NaN = diverged."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How a small model is trained.

    Attributes:
        optimiser: ``adamw`` or ``sgd`` (with ``momentum``).
        rate: peak learning rate.
        schedule: after ``warm_up`` steps: ``constant``, or ``linear`` or ``cosine`` down to 0.
        epochs: passes over the rows kept; ``steps``, when above 0, sets the number of steps instead.
        batch: rows per step.
        objective: ``row`` is the mean over a step's rows of their summed loss, what whence's scores are in; ``token``
            divides by the step's loss tokens, as most trainers do.
        weight_decay, momentum, betas, clip: as torch names them; ``clip`` 0 = none.
    """

    optimiser: Literal["adamw", "sgd"] = "adamw"
    rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    epochs: float = 3.0
    steps: int = 0
    batch: int = 16
    objective: Literal["row", "token"] = "token"
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warm_up: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r}", wanted="one of " + ", ".join(known))
        if self.rate <= 0 or self.batch < 1 or (self.epochs <= 0 and self.steps < 1):
            raise OptionError(f"rate {self.rate}, batch {self.batch}, epochs {self.epochs}", wanted="all above 0")

    def count(self, rows: int) -> int:
        """Steps of a member that keeps this many rows."""
        return self.steps or max(1, math.ceil(self.epochs * rows / self.batch))

    def rate_at(self, step: int, steps: int) -> float:
        """Share of the peak rate at a step."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        left = 1 - (step - self.warm_up) / max(1, steps - self.warm_up)
        return {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}[self.schedule]


CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimiser": ("adamw", "sgd"),
    "schedule": ("constant", "linear", "cosine"),
    "objective": ("row", "token"),
}


def reading_order(kept_N: np.ndarray, seed: int, count: int) -> np.ndarray:
    """The first ``count`` rows that a member reads: passes over its rows, each in an order of (seed, pass).

    The order is one of *all* rows with those left out removed, so that members of one seed read in like order.
    """
    found, have, epoch = [], 0, 0
    while have < count:
        order = np.random.default_rng([abs(seed), seed < 0, epoch]).permutation(len(kept_N))
        found.append(order[kept_N[order]])
        have, epoch = have + len(found[-1]), epoch + 1
    return np.concatenate(found)[:count]


@dataclass(frozen=True, eq=False)
class BatchedTrainer:
    """Trains small models, ``at_once`` of them as one stacked model where the model allows it.

    All parameters that require gradients move. Models are trained in evaluation mode: no dropout.

    Attributes:
        start: seed -> the model that training starts from, a new object each time: the same checkpoint
            (``from_checkpoint``), or one freshly initialised by the seed.
        task: what a row costs.
        rows: N training rows; ``queries``: Q questions, measured by ``task.measurements``.
        recipe: how.
        at_once: copies trained together.
    """

    start: Callable[[int], nn.Module]
    task: Task
    rows: Sequence[Example]
    queries: Sequence[Example]
    recipe: Recipe
    at_once: int = 16

    def fingerprint(self) -> dict[str, Any]:
        """Recipe, task, start and contents; not how many at once, which changes nothing but rounding."""
        contents = {"rows": _digest(map(_content, self.rows)), "queries": _digest(map(_content, self.queries))}
        return {**asdict(self.recipe), **contents, "start": self._start, "task": dict(self.task.fingerprint())}

    @cached_property
    def _start(self) -> str:
        return _digest(p.detach().double().cpu().numpy().tobytes() for p in self.start(0).parameters())

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """K x Q measurements; members of any sizes, those of equal size together."""
        found = np.full((len(kept_KN), len(self.queries)), np.nan)
        for group in self._groups(kept_KN):
            model = self._trained(kept_KN[group], [seeds[k] for k in group])
            found[group] = _measured(model, self.task, self.queries, len(group))
        return found

    def models(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> list[nn.Module]:
        """The trained models themselves, in evaluation mode."""
        found: dict[int, nn.Module] = {}
        for group in self._groups(kept_KN):
            model = self._trained(kept_KN[group], [seeds[k] for k in group])
            for place, k in enumerate(group):
                found[k] = model.copy_into(self.start(seeds[k]), place) if isinstance(model, Stacked) else model
        return [found[k].eval() for k in range(len(kept_KN))]

    def _groups(self, kept_KN: np.ndarray) -> list[list[int]]:
        sizes = kept_KN.sum(1)
        if not sizes.all():
            raise OptionError("a member without any row", wanted="at least one row to train on")
        most = self.at_once if self.stacks else 1
        groups = []
        for size in np.unique(sizes):
            members = np.flatnonzero(sizes == size).tolist()
            groups += [members[n : n + most] for n in range(0, len(members), most)]
        return groups

    @cached_property
    def stacks(self) -> bool:
        """Whether copies of this model can be trained as one: tried on two shaken copies against each alone."""
        if self.at_once < 2:
            return False
        some = list(self.rows[:2])
        batches = [move(self.task.collate(part), device_of(self.start(0))) for part in (some, [*some, *some])]
        return agrees(self.task, [self.start(0), self.start(1)], *batches)

    def _trained(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> nn.Module:
        models = [self.start(seed) for seed in seeds]
        model = stack(models) if len(models) > 1 else models[0].eval()
        recipe, members = self.recipe, len(models)
        moving = [p for p in model.parameters() if p.requires_grad]
        optimiser = _optimiser(recipe, moving)
        steps = recipe.count(int(kept_KN[0].sum()))
        orders = [reading_order(k, s, steps * recipe.batch) for k, s in zip(kept_KN, seeds, strict=True)]
        order_KSB = np.stack(orders).reshape(members, steps, recipe.batch)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate * recipe.rate_at(step, steps)
            chosen = [self.rows[n] for n in order_KSB[:, step].ravel().tolist()]
            with torch.enable_grad():
                loss = self._objective(model, chosen, members)
                optimiser.zero_grad()
                loss.backward()
            if recipe.clip > 0:
                _clip(moving, recipe.clip, stacked=members > 1)
            optimiser.step()
        return model

    def _objective(self, model: nn.Module, chosen: Sequence[Example], members: int) -> Tensor:
        """Sum over the members of each one's own objective, so that their gradients stay apart."""
        batch = move(self.task.collate(chosen), device_of(model))
        losses_KB = self.task.losses(self.task.outputs(model, batch), batch).view(members, -1)
        if self.recipe.objective == "row":
            return losses_KB.mean(1).sum()
        tokens_KB = losses_KB.new_tensor([e.loss_tokens for e in chosen]).view(members, -1)
        return (losses_KB.sum(1) / tokens_KB.sum(1)).sum()


def _optimiser(recipe: Recipe, moving: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        decay = recipe.weight_decay
        return torch.optim.SGD(moving, lr=recipe.rate, momentum=recipe.momentum, weight_decay=decay)
    return torch.optim.AdamW(moving, lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay)


def _clip(moving: Sequence[nn.Parameter], most: float, *, stacked: bool) -> None:
    """Each member's gradient to this norm at most."""
    grads = [p.grad for p in moving if p.grad is not None]
    parts = [g.flatten(1) if stacked else g.reshape(1, -1) for g in grads]
    norm_K = torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()
    factor_K = (most / norm_K.clamp(min=1e-12)).clamp(max=1.0)
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_((part * factor_K[:, None]).view_as(grad))


@torch.no_grad()
def _measured(model: nn.Module, task: Task, queries: Sequence[Example], members: int) -> np.ndarray:
    """K x Q measurements of every copy."""
    budget = max(1, EVALUATION_TOKENS // members)
    found = np.empty((members, len(queries)))
    for group in plan_batches([q.length for q in queries], token_budget=budget).batches:
        some = [queries[i] for i in group]
        batch = move(task.collate([q for _ in range(members) for q in some]), device_of(model))
        values = measurements_of(task, model, batch)
        found[:, list(group)] = values.view(members, -1).double().cpu().numpy()
    return found


def _content(example: Example) -> bytes:
    arrays = [*example.inputs.values(), example.labels]
    return b"".join([example.id.encode("utf-8", "surrogatepass"), *(np.asarray(a).tobytes() for a in arrays)])


def _digest(parts: Iterable[bytes]) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def from_checkpoint(model: nn.Module) -> Callable[[int], nn.Module]:
    """Every training starts from this model, which stays as it is."""
    return lambda seed: deepcopy(model)


@dataclass(frozen=True)
class FunctionTrainer:
    """Any function of (rows kept, seed) that returns the Q measurements.

    Attributes:
        function: (N booleans, seed) -> Q numbers.
        about: what decides its outcome; kept with the bank.
        at_once: members per call of ``losses``: how often a bank is written.
    """

    function: Callable[[np.ndarray, int], np.ndarray]
    about: Mapping[str, Any]
    at_once: int = 1

    def fingerprint(self) -> Mapping[str, Any]:
        """As given."""
        return dict(self.about)

    def losses(self, kept_KN: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """One after the other."""
        return np.stack([self.function(kept, seed) for kept, seed in zip(kept_KN, seeds, strict=True)])
