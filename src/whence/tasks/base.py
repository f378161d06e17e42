"""What a task is: rows in, a loss *vector* out.

A task turns rows into batches and prices them: **one number per example, summed over its supervised tokens,
in nats**. The library sums; a task never does, so that a mean/sum mistake cannot hide.

The forward pass is split from the loss (``outputs`` then ``losses``) because the sampled-label Fisher draws its
labels from the very outputs whose loss is then taken: one forward instead of two.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from whence.errors import OptionError, did_you_mean
from whence.tasks.records import Row


@dataclass(frozen=True)
class Example:
    """One encoded row, ready to be batched.

    Attributes:
        id: the row's id.
        inputs: name -> 1-D integer array of length T (``input_ids`` at least), or 0-D/1-D features for other tasks.
        labels: what the loss is taken on; for language models T integers, -100 where no loss is taken.
        length: T, the cost of the row in tokens.
        loss_tokens: how many labels carry a loss (1 for a classifier).
        truncated: tokens cut off the row because it was too long (0 = none).
        notes: short words for what was noticed while encoding (``truncated``, ``double_bos`` ...), counted aloud.
    """

    id: str
    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray
    length: int
    loss_tokens: int
    truncated: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Tensors of B examples plus who they are.

    Attributes:
        ids: B row ids. Never positions: everything downstream joins by id.
        inputs: keyword arguments of the model's forward.
        labels: B x T (or B) targets.
        mask: B x T booleans, True at real tokens; None when the inputs have no token axis.
        padded: False when the mask is all True, so that nobody multiplies by it.
        other_masks: masks of further token axes, each of another length than ``mask`` (by which they are told apart).
        views: entries on the model's batch axis that belong to one example, side by side: the two answers of a
            preference, the noisy copies of an image. The mask's T then runs over all of them.
    """

    ids: tuple[str, ...]
    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor
    mask: torch.Tensor | None = None
    padded: bool = True
    other_masks: tuple[torch.Tensor, ...] = ()
    views: int = 1

    def __len__(self) -> int:
        return len(self.ids)

    def with_labels(self, labels: torch.Tensor) -> Batch:
        """The same inputs with other labels (used by the sampled-label Fisher)."""
        return replace(self, labels=labels)


@dataclass(frozen=True)
class Setup:
    """What a task is made of when it is asked for by name: ``TASK.of(setup, ...)``, its keywords being its settings.

    Attributes:
        model: the model that will be asked.
        tokenizer: its tokenizer, or None.
        max_length: most tokens of a row, or None.
        load: a model by name or folder, for tasks that compare with another one.
        extra: what else came with the model (the noise schedule of a diffusion model).
    """

    model: torch.nn.Module
    tokenizer: Any = None
    max_length: int | None = None
    load: Callable[[str], torch.nn.Module] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self.model, "config", None)


class RowProblem(Exception):  # noqa: N818 - a verdict on a row, not a failure
    """Raised by ``Task.encode`` for one bad row; the reader turns it into a quarantine entry.

    ``code`` is a short stable word (``no_loss_tokens``, ``missing_column`` ...), ``message`` is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


@dataclass(frozen=True)
class TokenSpans:
    """Where each token of a row stands in its text: ``spans[t]`` are characters ``text[start:end]``, (0, 0) for none.

    The tokens of one character that takes several tokens share its span.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


@runtime_checkable
class Task(Protocol):
    """What an example is and what it costs. Implementations are frozen dataclasses; computing happens in verbs."""

    @property
    def name(self) -> str:
        """The task's name, for provenance and reports."""
        ...

    def encode(self, row: Row) -> Example:
        """Tokenise one row. Raises ``RowProblem`` for a row that cannot be used."""
        ...

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad B examples to one batch on the CPU."""
        ...

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """One forward pass: whatever ``losses`` needs (logits)."""
        ...

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses in nats, each summed over the example's supervised tokens, in at least float32."""
        ...

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, where **lower is better**. By default the loss."""
        ...

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """Labels drawn from the model at supervised positions only, seeded by (seed, row id)."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to mean the same thing (template hash, max length, mask kind...)."""
        ...


def move(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on another device (no copy when it is there already)."""
    return replace(
        batch,
        inputs={k: v.to(device) for k, v in batch.inputs.items()},
        labels=batch.labels.to(device),
        mask=None if batch.mask is None else batch.mask.to(device),
        other_masks=tuple(mask.to(device) for mask in batch.other_masks),
    )


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's weights are, which is where its batches belong."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def logits_of(found: Any) -> torch.Tensor:
    """What a model gave back: logits as they are, or inside an output of transformers."""
    return found if isinstance(found, torch.Tensor) else found.logits


def measurements_of(task: Task, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """B numbers to explain: by the task's ``measure`` (of model and batch) if it has one, else from its outputs."""
    measure = getattr(task, "measure", None)
    return measure(model, batch) if measure is not None else task.measurements(task.outputs(model, batch), batch)


def task_names() -> list[str]:
    """Tasks found in this folder: modules that define ``TASK``."""
    package = importlib.import_module("whence.tasks")
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return sorted(n for n in names if hasattr(importlib.import_module(f"whence.tasks.{n}"), "TASK"))


def get_task(name: str) -> Any:
    """The task class of that file name.

    Raises:
        OptionError: no such task; lists the folder.
    """
    if name not in task_names():
        raise OptionError(f"unknown task {name!r}", wanted="a task of whence", try_=did_you_mean(name, task_names()))
    return importlib.import_module(f"whence.tasks.{name}").TASK
