"""Preference pairs by direct preference optimisation (DPO; Rafailov et al. 2023, eq. 7).

Loss of a pair: -log σ(β·m), with the margin m = log π(chosen) / π_ref(chosen) - log π(rejected) / π_ref(rejected) in
nats, each log-probability summed over its answer's tokens. A preference is a Bernoulli variable of log-odds β·m: that
is what labels are drawn from for the Fisher matrix, so that a drawn label may prefer the rejected answer.

The two answers stand side by side on the model's batch axis, two *views* of one example. What the reference model says
of a row never changes and is found once, by ``prepare``. Questions may also be plain text, a prompt with a completion
or a chat: their measurement is the loss of that text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from whence.errors import TaskError
from whence.tasks.base import Batch, Example, RowProblem, Setup, device_of, logits_of, move
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import IGNORE, CausalLM
from whence.tasks.padding import pad_id, real, right_padded
from whence.tasks.records import Row
from whence.tasks.sampling import row_uniforms
from whence.tasks.shapes import check_fields, detect_shape

CHOSEN, REJECTED, REFERENCE = "chosen", "rejected", "reference"
COLUMNS = (("ref_chosen_logps", "ref_rejected_logps"), ("reference_chosen_logps", "reference_rejected_logps"))


@dataclass(frozen=True)
class Preference:
    """The DPO loss of a pair in nats.

    Attributes:
        tokenizer: a transformers tokenizer.
        beta: how strongly log-ratios speak; that of the training.
        smoothing: how often preferences are taken to be the wrong way round (conservative DPO); 0 = never.
        reference: the model that training started from; None: the adapter switched off, or the rows' own columns
            (``ref_chosen_logps``, ``ref_rejected_logps``); ``none``: no reference at all.
        max_length: most tokens of a prompt with one answer, the first ones.
        measurement: what questions are asked about: the ``loss``, or the reward ``margin`` -β·m.
        append_eos: answers given as text end with the end-of-sequence token, as TRL's trainer has it.
        overlong: what to do with longer rows: ``truncate`` or ``skip`` (quarantine).
    """

    tokenizer: Any
    beta: float = 0.1
    smoothing: float = 0.0
    reference: nn.Module | Literal["none"] | None = None
    max_length: int | None = None
    measurement: Literal["loss", "margin"] = "loss"
    append_eos: bool = True
    overlong: Literal["truncate", "skip"] = "truncate"
    name: str = "preference"

    @classmethod
    def of(
        cls,
        setup: Setup,
        /,
        *,
        beta: float = 0.1,
        smoothing: float = 0.0,
        reference: str | None = None,
        measurement: Literal["loss", "margin"] = "loss",
        append_eos: bool = True,
    ) -> Preference:
        """The task for a model; ``reference`` is a folder or name, or ``none``."""
        other = reference if reference in (None, "none") else setup.load(reference) if setup.load else None
        return cls(setup.tokenizer, beta, smoothing, other, setup.max_length, measurement, append_eos)  # type: ignore[arg-type]

    @property
    def language(self) -> CausalLM:
        """How one answer is turned into tokens and a loss."""
        return CausalLM(self.tokenizer, self.max_length, append_eos=self.append_eos, overlong=self.overlong)

    def encode(self, row: Row) -> Example:
        """Tokenise one pair, each answer with its prompt; or, of a question, the one text.

        Raises:
            RowProblem: a side is missing, or nothing of an answer is left after cutting.
        """
        if detect_shape(row.fields) != "preference":
            alone = self.language.encode(row)
            inputs = {CHOSEN: alone.inputs["input_ids"], f"{CHOSEN}_labels": alone.labels}
            return replace(alone, inputs=inputs, labels=np.asarray(np.nan), length=2 * alone.length)
        if problem := check_fields(row.fields, "preference"):
            raise RowProblem(*problem)
        sides = {side: self.language.encode(_one_side(row, side)) for side in (CHOSEN, REJECTED)}
        inputs = {side: e.inputs["input_ids"] for side, e in sides.items()}
        inputs |= {f"{side}_labels": e.labels for side, e in sides.items()}
        known = self._known(row)
        return Example(
            row.id,
            inputs | ({} if known is None else {REFERENCE: known}),
            np.asarray(1.0 - self.smoothing),
            2 * max(e.length for e in sides.values()),  # what the model sees: both, padded alike
            sum(e.loss_tokens for e in sides.values()),
            sum(e.truncated for e in sides.values()),
            tuple(dict.fromkeys(note for e in sides.values() for note in e.notes)),
        )

    def _known(self, row: Row) -> np.ndarray | None:
        """What the row itself says of the reference model."""
        for names in COLUMNS:
            found = [row.fields.get(name) for name in names]
            if all(isinstance(value, int | float) and np.isfinite(value) for value in found):
                return np.asarray(found, dtype=np.float64)
        return np.zeros(2) if self.reference == "none" else None

    def prepare(self, model: nn.Module, examples: Sequence[Example], *, token_budget: int = 4096) -> list[Example]:
        """The examples with the reference model's log-probabilities, found in one pass without gradients.

        Raises:
            TaskError: there is no reference model and no columns that stand for it.
        """
        todo = [e for e in examples if REJECTED in e.inputs and REFERENCE not in e.inputs]
        found: dict[str, np.ndarray] = {}
        if todo:
            with self._reference(model) as other, torch.no_grad():
                for group in plan_batches([e.length for e in todo], token_budget=token_budget).batches:
                    chosen = [todo[n] for n in group]
                    batch = move(self._collated(chosen), device_of(other))
                    values = _log_probabilities(other, batch).double().cpu().numpy()
                    found |= dict(zip(batch.ids, values, strict=True))
        return [replace(e, inputs={**e.inputs, REFERENCE: found[e.id]}) if e.id in found else e for e in examples]

    @contextmanager
    def _reference(self, model: nn.Module) -> Iterator[nn.Module]:
        if isinstance(self.reference, nn.Module):
            yield self.reference.eval()
            return
        switch = getattr(model, "disable_adapter", None)
        if switch is None:
            raise TaskError(
                "there is no reference model to compare with",
                wanted="an adapter (switched off, it is the reference), a reference model, or the columns "
                + " and ".join(COLUMNS[0]),
                try_="--task preference:reference=./the-model-before-training",
            )
        training = model.training
        model.eval()
        with switch():
            yield model
        model.train(training)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """2B sequences, the two of one example side by side, padded on the right.

        Raises:
            TaskError: pairs whose reference is not known yet.
        """
        missing = [e.id for e in examples if REJECTED in e.inputs and REFERENCE not in e.inputs]
        if missing:
            raise TaskError(
                f"{missing[0]}: what the reference model says is not known",
                wanted="examples that went through prepare(model, examples)",
            )
        return self._collated(examples)

    def _collated(self, examples: Sequence[Example]) -> Batch:
        ids, labels, shown = [], [], []
        for example in examples:
            for side in (CHOSEN, REJECTED):
                there = side in example.inputs
                # A question has one text; a single token that nobody looks at stands in the other place.
                ids.append(example.inputs[side] if there else example.inputs[CHOSEN][:1])
                labels.append(example.inputs[f"{side}_labels"] if there else np.asarray([IGNORE]))
                shown.append(len(ids[-1]) if there else 0)
        rows = right_padded(ids, pad_id(self.tokenizer))
        attended = real(ids, rows.shape[1])
        mask = torch.from_numpy(np.arange(rows.shape[1])[None] < np.asarray(shown)[:, None]).view(len(examples), -1)
        inputs = {
            "input_ids": torch.from_numpy(rows),
            "targets": torch.from_numpy(right_padded(labels, IGNORE)),
            REFERENCE: torch.from_numpy(np.stack([e.inputs.get(REFERENCE, np.zeros(2)) for e in examples])),
            "pair": torch.tensor([REJECTED in e.inputs for e in examples]),
        }
        if not attended.all():
            inputs["attention_mask"] = torch.from_numpy(attended.astype(np.int64))
        wanted = torch.from_numpy(np.asarray([e.labels for e in examples], dtype=np.float64))
        return Batch(tuple(e.id for e in examples), inputs, wanted, mask, not bool(mask.all()), views=2)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """B x 2 log-ratios log π - log π_ref of the chosen and the rejected answer; of a question, log π and 0."""
        found = _log_probabilities(model, batch)
        return found - batch.inputs[REFERENCE].to(found.dtype)

    def margins(self, outputs: Tensor) -> Tensor:
        """B log-odds β·m that the chosen answer is preferred: the implicit reward margin."""
        return self.beta * (outputs[:, 0] - outputs[:, 1])

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B losses in nats: of the preference, or of a question's text."""
        pair, margins = batch.inputs["pair"], self.margins(outputs)
        wanted = torch.where(pair, batch.labels, 1.0).to(outputs.dtype)
        of_pairs = functional.binary_cross_entropy_with_logits(margins, wanted, reduction="none")
        return torch.where(pair, of_pairs, -outputs[:, 0])

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B numbers to explain, lower is better: the loss, or -β·m of a pair."""
        losses = self.losses(outputs, batch)
        if self.measurement == "loss":
            return losses
        return torch.where(batch.inputs["pair"], -self.margins(outputs), losses)

    def sample(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with each preference drawn from the model: 1 where the chosen answer wins, else 0.

        Raises:
            TaskError: a row that is no pair.
        """
        if not bool(batch.inputs["pair"].all()):
            raise TaskError("a row is no pair, so no preference can be drawn", wanted="rows with chosen and rejected")
        uniform = row_uniforms(seed, batch.ids, 1)[:, 0].to(outputs.device)
        return batch.with_labels((uniform < self.margins(outputs.detach()).double().sigmoid()).double())

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        reference = self.reference if isinstance(self.reference, str) else "adapter off, or columns"
        if isinstance(self.reference, nn.Module):
            reference = f"{type(self.reference).__name__} given"
        settings = {"beta": self.beta, "smoothing": self.smoothing, "reference": reference}
        asked = {} if self.measurement == "loss" else {"measurement": f"reward {self.measurement}"}
        return {**self.language.fingerprint(), "task": self.name, **settings, **asked}


def _one_side(row: Row, side: str) -> Row:
    """The prompt with one of the answers, as a language model's row."""
    prompt, answer = row.fields.get("prompt"), row.fields[side]
    if isinstance(answer, str):
        # Texts that hold their prompt: the part that both share adds the same to both and leaves the margin alone.
        fields = {"prompt": _text_of(prompt), "completion": answer}
    else:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) and prompt else list(prompt or [])
        if not turns:
            turns, answer = _split(row.fields[CHOSEN], row.fields[REJECTED], answer)
        fields = {"prompt": turns, "completion": answer}
    return replace(row, fields=fields)


def _text_of(prompt: Any) -> str:
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    raise RowProblem("wrong_type", "'prompt' is a list of messages and the answers are texts")


def _split(chosen: Sequence[Any], rejected: Sequence[Any], answer: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Whole chats: the turns that both share are the prompt."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0 or shared >= len(answer):
        raise RowProblem("no_loss_tokens", "'chosen' and 'rejected' share no first turns, or one holds no other turn")
    return list(answer[:shared]), list(answer[shared:])


def _log_probabilities(model: nn.Module, batch: Batch) -> Tensor:
    """B x 2 log-probabilities of the two answers, in float32 or better."""
    given = {name: batch.inputs[name] for name in ("input_ids", "attention_mask") if name in batch.inputs}
    logits = logits_of(model(**given, use_cache=False))
    targets = functional.pad(batch.inputs["targets"][:, 1:], (0, 1), value=IGNORE)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Not ``token_loss``: here the loss is inside the outputs, which Gauss-Newton products differentiate in blocks.
    losses = functional.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -losses.view(len(batch), 2, -1).sum(2)


TASK = Preference
