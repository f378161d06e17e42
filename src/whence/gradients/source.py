"""The one loop: batches forward, one backward, gradients shown layer by layer to a visitor.

Everything that looks at gradients (fits, queries, scores, checks, indexes) is a ``Visitor``; nothing else in the
library runs a backward pass for per-example gradients. Push, not pull: a layer's gradient is freed once it was seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from whence.gradients.capture import Capture, See, frozen
from whence.gradients.layers import Layers
from whence.gradients.precision import Held, scales
from whence.gradients.ranks import Ranks, Share, Turn, share_of
from whence.linalg.matrix_batch import MatrixBatch
from whence.tasks.base import Batch, Example, Task, device_of, measurements_of, move
from whence.tasks.batches import BatchPlan, plan_batches

# What the backward pass starts from: the loss on the data's labels, the loss on labels drawn from the model (the true
# Fisher), or the task's measurement of a query.
Labels = Literal["true", "sampled", "measurement"]


@dataclass(frozen=True)
class Closed:
    """A finished batch: whose gradients were just seen, their losses, and which of them are usable.

    Attributes:
        ids: B row ids in the order of the batch axis.
        losses: B losses in nats (or measurements), as computed; on the CPU.
        finite: B booleans; False where loss or gradient was not finite (such rows were shown as zeros).
    """

    ids: tuple[str, ...]
    losses: Tensor
    finite: Tensor


class Visitor(Protocol):
    """Someone who looks at gradients."""

    def see(self, layer: str, grads: MatrixBatch) -> None:
        """One layer's gradients of the current batch. Each followed layer is seen once per batch."""
        ...

    def close(self, closed: Closed) -> None:
        """The batch is complete."""
        ...


class Nobody:
    """The visitor of a batch that is run for its time and memory alone, or only to keep the ranks in step."""

    def see(self, layer: str, grads: MatrixBatch) -> None:
        """Look away."""

    def close(self, closed: Closed) -> None:
        """Forget."""


class GradientSource(Protocol):
    """Something that can show per-example gradients: a live model, or an index on disk."""

    @property
    def layers(self) -> Layers: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def n_batches(self) -> int: ...

    def batch_size(self, number: int) -> int: ...

    def shuffled(self, seed: int) -> list[int]: ...

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None: ...


@dataclass(frozen=True)
class LiveGradients:
    """A model and its encoded rows.

    Attributes:
        model: any module the task can run; moved nowhere, batches follow its device.
        task: what an example is and costs.
        examples: the encoded rows.
        plan: which examples go together; fixed, so that results do not depend on who computes what.
        layers: what to follow.
        progress: called with the number of examples finished after each batch.
        ranks: the processes over which the model's parameters are spread; None for a model that is whole.
        shelve: keep activations in main memory between the forward and the backward pass.
        abreast: whether each rank visits batches of its own, instead of all ranks the same ones.
    """

    model: nn.Module
    task: Task
    examples: Sequence[Example]
    plan: BatchPlan
    layers: Layers
    progress: Callable[[int], None] | None = None
    ranks: Ranks | None = None
    shelve: bool = False
    abreast: bool = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(e.id for e in self.examples)

    @property
    def n_batches(self) -> int:
        return len(self.plan.batches)

    def batch_size(self, number: int) -> int:
        """Examples in one batch of the plan."""
        return len(self.plan.batches[number])

    def shuffled(self, seed: int) -> list[int]:
        """Batch numbers in a seeded random order: a prefix of it is a sample of the rows."""
        order = list(range(self.n_batches))
        random.Random(seed).shuffle(order)
        return order

    def visit(
        self, visitor: Visitor, *, labels: Labels = "true", seed: int = 0, batches: Iterable[int] | None = None
    ) -> None:
        """Show the gradients of the planned batches (all, or those numbered), in the order given.

        Args:
            visitor: who looks.
            labels: what the backward pass starts from.
            seed: of sampled labels; together with the row id it fixes them, whatever the order or the batching.
            batches: batch numbers of the plan.

        With ``ranks``, a visitor that can ``share`` is shown this rank's part of the batches and told the rest at the
        end; any other is shown all of them, on every rank. ``abreast``, each rank names the batches of its visitor,
        perhaps none, and nothing is shared.
        """
        numbers = list(range(self.n_batches) if batches is None else batches)
        share = share_of(visitor) if self.ranks is not None and not self.abreast else None
        with frozen(self.model):
            for turn in self._turns(numbers, share):
                chosen = [self.examples[i] for i in self.plan.batches[turn.number]]
                self._one_batch(visitor if turn.counts else Nobody(), self.task.collate(chosen), labels, seed)
                if self.progress is not None:
                    self.progress(turn.rows)
        if share is not None and self.ranks is not None:
            share(self.ranks)

    def _turns(self, numbers: Sequence[int], share: Share | None) -> Iterator[Turn]:
        if self.ranks is not None and self.abreast:
            return self.ranks.abreast(numbers, self.batch_size)
        if self.ranks is not None and share is not None:
            return self.ranks.turns(numbers, self.batch_size)
        return (Turn(number, True, self.batch_size(number)) for number in numbers)

    def _one_batch(self, visitor: Visitor, batch: Batch, labels: Labels, seed: int) -> None:
        """One batch, in float16 with the largest scale of the loss that does not overflow."""
        batch = move(batch, device_of(self.model))
        *larger, last = scales(self.model)
        for scale in larger:
            held = Held()
            closed = self._backward(held.see, batch, (labels, seed), scale=scale)
            if self._all(bool(closed.finite.all())):
                for layer, grads in held.seen:
                    visitor.see(layer, grads)
                return visitor.close(closed)
        return visitor.close(self._backward(visitor.see, batch, (labels, seed), scale=last))

    def _all(self, good: bool) -> bool:
        """Whether it is so on every rank: they must repeat a batch together."""
        return good if self.ranks is None else all(self.ranks.everyone(good))

    def _backward(self, see: See, batch: Batch, drawn: tuple[Labels, int], *, scale: float) -> Closed:
        mask = batch.mask if batch.padded else None
        tokens = None if batch.mask is None else batch.mask.shape[1]
        others = batch.other_masks if batch.padded else ()
        capture = Capture(self.layers, len(batch), tokens, mask, see, others, batch.views, scale, self.shelve)
        labels, seed = drawn
        with torch.enable_grad(), capture.attached():
            losses = self._losses(batch, labels, seed)
            usable = torch.isfinite(losses.detach())
            # A non-finite loss must not reach the sums: where() also stops its gradient, the others are untouched.
            capture.backward(losses if bool(usable.all()) else torch.where(usable, losses, 0.0))
        finite = usable if capture.finite is None else usable & capture.finite
        return Closed(batch.ids, losses.detach().cpu(), finite.cpu())

    def _losses(self, batch: Batch, labels: Labels, seed: int) -> Tensor:
        if labels == "measurement":
            return measurements_of(self.task, self.model, batch)
        outputs = self.task.outputs(self.model, batch)
        if labels == "sampled":
            batch = self.task.sample(outputs.detach(), batch, seed)
        return self.task.losses(outputs, batch)

    def losses(self) -> dict[str, float]:
        """Losses of all examples, in nats, without gradients."""
        found: dict[str, float] = {}
        with frozen(self.model), torch.no_grad():
            for group in self.plan.batches:
                batch = move(self.task.collate([self.examples[i] for i in group]), device_of(self.model))
                losses = self.task.losses(self.task.outputs(self.model, batch), batch)
                found.update(zip(batch.ids, losses.tolist(), strict=True))
        return found

    def only(self, ids: Iterable[str]) -> LiveGradients:
        """The same model and task over some of the rows, in batches no larger than the plan's."""
        wanted = set(ids)
        chosen = [e for e in self.examples if e.id in wanted]
        lengths = self.plan.lengths
        budget = max((len(b) * max(lengths[i] for i in b) for b in self.plan.batches), default=1)
        plan = plan_batches([e.length for e in chosen], token_budget=max(1, budget))
        return replace(self, examples=chosen, plan=plan, progress=None)

    def regrouped(self, batches: Iterable[tuple[int, ...]]) -> LiveGradients:
        """The same rows in other batches (tuples of positions), which need not hold all of them."""
        return replace(self, plan=BatchPlan(tuple(batches), self.plan.lengths, ""))

    def sample(self, count: int) -> LiveGradients:
        """About ``count`` rows spread evenly over all of them."""
        step = max(1, len(self.examples) // max(1, count))
        return self.only(e.id for e in self.examples[::step][:count])

    def with_progress(self, progress: Callable[[int], None] | None) -> LiveGradients:
        """The same source reporting to someone else."""
        return replace(self, progress=progress)
