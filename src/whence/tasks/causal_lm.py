"""Next-token loss: text, prompt and completion, instructions, chats, pre-tokenised rows.

One way through for all of them: a row becomes text with the character ranges that carry the loss (``rendering``), the
text is tokenised whole, the tokenizer's offsets turn ranges into labels, and labels of -100 carry no loss. Positions
without a loss still carry gradient (through attention); only padding is dropped, by the mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from whence.errors import OptionError, TaskError
from whence.tasks.base import Batch, Example, RowProblem, Setup, TokenSpans, logits_of
from whence.tasks.padding import pad_id, right_padded, side_by_side
from whence.tasks.records import Row
from whence.tasks.rendering import (
    Rendered,
    instruction_messages,
    render_dialogue,
    render_instruction,
    render_messages,
    render_pair,
    render_text,
)
from whence.tasks.sampling import row_uniforms, sample_categorical
from whence.tasks.shapes import LABELLED, check_fields, detect_shape, messages_of
from whence.tasks.token_loss import token_loss
from whence.tasks.tokenising import Tokens, common_prefix, own_limit, tokenise

IGNORE = -100


@dataclass(frozen=True)
class CausalLM:
    """Negative log-likelihood of the trained tokens, summed per row, in nats.

    Attributes:
        tokenizer: a transformers tokenizer; None when all rows are pre-tokenised.
        max_length: most tokens kept of a row, the first ones, as trainers do; None = the tokenizer's own limit.
        shape: a row shape, or ``auto`` to go by each row's columns.
        loss_on: ``auto`` = completion, answer, assistant turns or given labels, else every token; ``all`` = all.
        overlong: what to do with longer rows: ``truncate``, ``skip`` (quarantine) or ``error``.
        instruction_format: ``alpaca`` (its well-known frame) or ``chat`` (the tokenizer's template).
        append_eos: end every row with the end-of-sequence token, as some trainers do. Chats never need it.
        special_in_text: special tokens spelled out in people's text are parsed ``as_trainer`` (and counted), or send
            the row to ``quarantine``.
    """

    tokenizer: Any = None
    max_length: int | None = None
    shape: str = "auto"
    loss_on: Literal["auto", "all"] = "auto"
    overlong: Literal["truncate", "skip", "error"] = "truncate"
    instruction_format: Literal["alpaca", "chat"] = "alpaca"
    append_eos: bool = False
    special_in_text: Literal["as_trainer", "quarantine"] = "as_trainer"
    name: str = "causal_lm"

    @classmethod
    def of(
        cls,
        setup: Setup,
        /,
        *,
        loss_on: Literal["auto", "all"] = "auto",
        overlong: Literal["truncate", "skip", "error"] = "truncate",
        append_eos: bool = False,
        instruction_format: Literal["alpaca", "chat"] = "alpaca",
    ) -> CausalLM:
        """The task for a model, with these settings."""
        return cls(
            setup.tokenizer,
            max_length=setup.max_length,
            loss_on=loss_on,
            overlong=overlong,
            append_eos=append_eos,
            instruction_format=instruction_format,
        )

    @property
    def limit(self) -> int | None:
        """Most tokens of a row; None = no limit."""
        return self.max_length if self.max_length is not None else own_limit(self.tokenizer)

    def encode(self, row: Row) -> Example:
        """Tokenise one row. Raises ``RowProblem`` for a row that cannot be used."""
        result = self.encode_many([row])[0]
        if isinstance(result, RowProblem):
            raise result
        return result

    def encode_many(self, rows: Sequence[Row]) -> list[Example | RowProblem]:
        """Tokenise many rows at once; the same as one by one, only faster.

        Raises:
            TaskError: the set-up cannot work for any row (no tokenizer, no chat template).
        """
        prepared = [self._prepare(row) for row in rows]
        texts = [(p.text, p.special) for p in prepared if isinstance(p, Rendered)]
        tokenised = iter(tokenise(self.tokenizer, texts))
        marks = [t for t in self.tokenizer.all_special_tokens if t] if self.tokenizer is not None else []
        results: list[Example | RowProblem] = []
        for row, item in zip(rows, prepared, strict=True):
            tokens = next(tokenised) if isinstance(item, Rendered) else None
            try:
                results.append(self._finish(row, item, tokens, marks=marks))
            except RowProblem as problem:
                results.append(problem)
        return results

    def _prepare(self, row: Row) -> Rendered | RowProblem | None:
        """The row's text, its problem, or None when it is pre-tokenised."""
        shape = detect_shape(row.fields) if self.shape in ("auto", "mixed") else self.shape
        if problem := check_fields(row.fields, "text" if shape in LABELLED and "text" in row.fields else shape):
            return RowProblem(*problem)
        if shape == "input_ids":
            return None
        if self.tokenizer is None:
            raise TaskError("rows hold text, but there is no tokenizer", try_="give a tokenizer, or rows of input_ids")
        try:
            return self._render(row, shape)
        except RowProblem as problem:
            return problem

    def _render(self, row: Row, shape: str) -> Rendered:
        fields = row.fields
        if shape == "messages":
            return render_messages(self.tokenizer, fields)
        if shape == "prompt_completion" and not isinstance(fields["prompt"], str):
            return render_dialogue(self.tokenizer, messages_of(fields, "prompt"), messages_of(fields, "completion"))
        if shape == "prompt_completion":
            return render_pair(fields["prompt"], fields["completion"])
        if shape == "instruction" and self.instruction_format == "chat":
            return render_messages(self.tokenizer, {"messages": instruction_messages(fields)})
        if shape == "instruction":
            return render_instruction(fields)
        if shape == "text" or (shape in LABELLED and "text" in fields):
            return render_text(fields)
        chosen = "--task preference, or --column completion=chosen to take the chosen answers alone"
        raise TaskError(
            f"a language model cannot read rows of shape {shape!r}",
            wanted="text of some kind",
            try_=chosen if shape == "preference" else "",
        )

    def _finish(
        self, row: Row, item: Rendered | RowProblem | None, tokens: Tokens | RowProblem | None, *, marks: list[str]
    ) -> Example:
        if isinstance(item, RowProblem):
            raise item
        if isinstance(tokens, RowProblem):
            raise tokens
        if item is None:
            return self._example(row, *self._given(row), notes=[])
        assert tokens is not None
        notes = self._special_notes(item, marks)
        ids, labels = tokens.ids, self._labels(item, tokens)
        bos = self.tokenizer.bos_token_id
        if bos is not None and len(ids) > 1 and ids[0] == ids[1] == bos:
            ids, labels = ids[1:], labels[1:]
            notes.append("double_bos")
        eos = self.tokenizer.eos_token_id
        if self.append_eos and item.special and eos is not None and (not len(ids) or ids[-1] != eos):
            ids, labels = np.append(ids, eos), np.append(labels, eos)
        return self._example(row, ids, labels, notes=notes)

    def _labels(self, item: Rendered, tokens: Tokens) -> np.ndarray:
        trained = None if self.loss_on == "all" else item.trained
        if trained is None:
            return tokens.ids.copy()
        if tokens.spans is None:
            return self._labels_by_prefix(item, tokens, trained)
        start, end = tokens.spans[:, 0], tokens.spans[:, 1]
        keep = np.zeros(len(tokens.ids), dtype=bool)
        for a, b in trained:
            # A token with any character of the range is trained: it is where the model begins to say it.
            keep |= (start < b) & (end > a) & ~tokens.added
        for t in np.flatnonzero(tokens.added):  # an end-of-sequence added by the tokenizer follows what it closes
            keep[t] = t > 0 and keep[t - 1]
        return np.where(keep, tokens.ids, IGNORE)

    def _labels_by_prefix(self, item: Rendered, tokens: Tokens, trained: Sequence[tuple[int, int]]) -> np.ndarray:
        """For tokenizers that know no offsets: a range begins where the tokens of the text before it end."""
        keep = np.zeros(len(tokens.ids), dtype=bool)
        for a, b in trained:
            first, last = (
                common_prefix(self.tokenizer, item.text[:edge], tokens.ids, special=item.special) for edge in (a, b)
            )
            keep[first : len(keep) if b == len(item.text) else last] = True
        return np.where(keep, tokens.ids, IGNORE)

    def _special_notes(self, item: Rendered, marks: Sequence[str]) -> list[str]:
        found = [mark for mark in marks if any(mark in text for text in item.written)]
        if found and self.special_in_text == "quarantine":
            raise RowProblem("special_in_text", f"the text spells out the special token {found[0]!r}")
        return ["special_in_text"] if found else []

    def _given(self, row: Row) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of a pre-tokenised row, without the padding it may carry."""
        ids = np.asarray(row.fields["input_ids"], dtype=np.int64)
        given = row.fields.get("labels")
        labels = ids.copy() if given is None or self.loss_on == "all" else np.asarray(given, dtype=np.int64)
        mask = row.fields.get("attention_mask")
        if mask is not None:
            real = np.asarray(mask, dtype=bool)
            ids, labels = ids[real], labels[real]
        top = len(self.tokenizer) if self.tokenizer is not None else 2**31
        trained = labels[labels != IGNORE]
        for what, values in (("input_ids", ids), ("labels", trained)):
            if len(values) and (values.min() < 0 or values.max() >= top):
                wrong = next(int(v) for v in values if not 0 <= v < top)
                raise RowProblem("token_out_of_range", f"{what} hold {wrong}, the vocabulary has {top} tokens")
        return ids, labels

    def _example(self, row: Row, ids: np.ndarray, labels: np.ndarray, *, notes: list[str]) -> Example:
        over = max(0, len(ids) - self.limit) if self.limit is not None else 0
        if over:
            self._judge_overlong(row, len(ids))
            ids, labels = ids[: self.limit], labels[: self.limit]
            notes.append("truncated")
        count = int((labels[1:] != IGNORE).sum())
        if len(ids) < 2:
            raise RowProblem("no_loss_tokens", f"{len(ids)} token(s): there is no next token to predict")
        if not count:
            cut = f" in the first {self.limit} tokens" if over else ""
            raise RowProblem("all_masked", f"no trained token{cut}: {self._start_of(row)!r}")
        return Example(row.id, {"input_ids": ids}, labels, len(ids), count, over, tuple(notes))

    def _judge_overlong(self, row: Row, length: int) -> None:
        message = f"{length} tokens, at most {self.limit} are taken"
        if self.overlong == "error":
            raise TaskError(f"{row.location}: {message}", try_="overlong = truncate, or a larger max_length")
        if self.overlong == "skip":
            raise RowProblem("overlong", message)
        if self.overlong != "truncate":
            raise OptionError(f"unknown policy {self.overlong!r} for long rows", wanted="truncate, skip or error")

    def _start_of(self, row: Row) -> str:
        return str({k: v for k, v in row.fields.items() if k != "id"})[:100]

    def token_spans(self, row: Row) -> TokenSpans:
        """The row's text as the model saw it, and the characters of each token of ``encode(row)``.

        Raises:
            RowProblem: the row cannot be encoded.
            TaskError: the row has no text, or the tokenizer knows no offsets.
        """
        example, item = self.encode(row), self._prepare(row)
        tokens = tokenise(self.tokenizer, [(item.text, item.special)])[0] if isinstance(item, Rendered) else None
        if not isinstance(item, Rendered) or not isinstance(tokens, Tokens) or tokens.spans is None:
            raise TaskError(f"{row.id}: no text positions for its tokens", wanted="text and a fast tokenizer")
        spans = [
            (0, 0) if added else (int(s), int(e)) for (s, e), added in zip(tokens.spans, tokens.added, strict=True)
        ]
        spans = spans[1:] if "double_bos" in example.notes else spans
        spans += [(0, 0)] * (example.length + example.truncated - len(spans))  # an appended end of sequence
        return TokenSpans(item.text, tuple(spans[: example.length]))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad on the right, whatever the tokenizer's own side is: positions and causality then need no care."""
        rows = [example.inputs["input_ids"] for example in examples]
        inputs, mask, padded = side_by_side({"input_ids": rows}, fill=pad_id(self.tokenizer))
        labels = torch.from_numpy(right_padded([example.labels for example in examples], IGNORE))
        return Batch(tuple(example.id for example in examples), inputs, labels, mask, padded)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """B x T x V logits."""
        keep = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
        return logits_of(model(**batch.inputs, **keep))

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses in nats: each the sum over the example's trained tokens."""
        return self.token_losses(outputs, batch).sum(dim=1)

    def token_losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B x T losses; entry t is the loss of predicting token t+1 from position t, 0 where none is taken.

        The labels are shifted, not the logits: a shifted view of B x T x V numbers, the largest tensor of the whole
        run, would have to be copied before the loss.
        """
        targets = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
        flat = token_loss(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))
        return flat.view(targets.shape)

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with each trained label drawn from the model; labels of -100 stay."""
        where = functional.pad(batch.labels[:, 1:] != IGNORE, (0, 1), value=False)
        uniform = row_uniforms(seed, batch.ids, where.shape[1])
        labels = batch.labels.clone()
        rows, positions = where.nonzero(as_tuple=True)
        labels[rows, positions + 1] = sample_categorical(outputs.detach(), where, uniform)
        return batch.with_labels(labels)

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        template = str(getattr(self.tokenizer, "chat_template", None) or "")
        return {
            "task": self.name,
            "shape": self.shape,
            "loss_on": self.loss_on,
            "max_length": self.limit,
            "overlong": self.overlong,
            "instruction_format": self.instruction_format,
            "append_eos": self.append_eos,
            "special_in_text": self.special_in_text,
            "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16] if template else "",
            "vocabulary": len(self.tokenizer) if self.tokenizer is not None else 0,
        }


TASK = CausalLM
