"""Label loss of a sequence classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from whence.errors import TaskError
from whence.tasks.base import Batch, Example, RowProblem, Setup, TokenSpans, logits_of
from whence.tasks.classes import class_of
from whence.tasks.padding import side_by_side
from whence.tasks.records import Row
from whence.tasks.sampling import row_uniforms, sample_categorical
from whence.tasks.shapes import check_fields
from whence.tasks.tokenising import own_limit


@dataclass(frozen=True)
class SequenceClassification:
    """Negative log-likelihood of the label, in nats: one number per row.

    Attributes:
        tokenizer: a transformers tokenizer.
        label2id: the model's names of its classes (``model.config.label2id``).
        max_length: most tokens kept of a row, the first ones; None = the tokenizer's own limit.
        overlong: what to do with longer rows: ``truncate`` or ``skip`` (quarantine).
    """

    tokenizer: Any
    label2id: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
    overlong: Literal["truncate", "skip"] = "truncate"
    name: str = "classification"

    @classmethod
    def of(cls, setup: Setup, /, *, overlong: Literal["truncate", "skip"] = "truncate") -> SequenceClassification:
        """The task for a model, with the names that its configuration gives the classes."""
        names = getattr(setup.config, "label2id", None) or {}
        return cls(setup.tokenizer, label2id=names, max_length=setup.max_length, overlong=overlong)

    @property
    def limit(self) -> int | None:
        """Most tokens of a row; None = no limit."""
        return self.max_length if self.max_length is not None else own_limit(self.tokenizer)

    def encode(self, row: Row) -> Example:
        """Tokenise one row (``text``, with ``text_pair`` for models of two texts) and find its class.

        Raises:
            RowProblem: no text, no label, or a label that the model does not know.
        """
        problem = check_fields(row.fields, "text_label")
        if problem:
            raise RowProblem(*problem)
        if row.fields.get("label") is None:
            raise RowProblem("missing_label", "the row has no label")
        label = class_of(row.fields["label"], self.label2id)
        encoded = self._tokenise(row)
        length = len(encoded["input_ids"])
        if not length:
            raise RowProblem("no_loss_tokens", "the text has no tokens")
        over = 0
        if self.limit is not None and length > self.limit:
            if self.overlong == "skip":
                raise RowProblem("overlong", f"{length} tokens, at most {self.limit} are taken")
            encoded = self._tokenise(row, truncate=True)
            over, length = length - len(encoded["input_ids"]), len(encoded["input_ids"])
        notes = ("truncated",) if over else ()
        return Example(row.id, encoded, np.asarray(label, dtype=np.int64), length, 1, over, notes)

    def _tokenise(self, row: Row, *, truncate: bool = False) -> dict[str, np.ndarray]:
        # The tokenizer itself truncates, because it must keep its closing special token ([SEP]).
        texts = [row.fields["text"]] + ([row.fields["text_pair"]] if row.fields.get("text_pair") else [])
        try:
            output = self.tokenizer(
                *texts, truncation=truncate, max_length=self.limit if truncate else None, verbose=False
            )
        except Exception as error:  # the tokenizers raise whatever they like
            raise RowProblem("tokenizer_error", f"{type(error).__name__}: {str(error)[:200]}") from error
        names = [n for n in ("input_ids", "token_type_ids") if n in output]
        return {n: np.asarray(output[n], dtype=np.int64) for n in names}

    def token_spans(self, row: Row) -> TokenSpans:
        """The row's text and the characters of each token of ``encode(row)``; special tokens have none.

        Raises:
            RowProblem: the row cannot be encoded.
            TaskError: the tokenizer knows no offsets, or there are two texts.
        """
        if row.fields.get("text_pair") or not getattr(self.tokenizer, "is_fast", False):
            raise TaskError(f"{row.id}: no text positions for its tokens", wanted="one text and a fast tokenizer")
        length, text = self.encode(row).length, str(row.fields["text"])
        output = self.tokenizer(
            text, truncation=self.limit is not None, max_length=self.limit, verbose=False, return_offsets_mapping=True
        )
        return TokenSpans(text, tuple((int(a), int(b)) for a, b in output["offset_mapping"][:length]))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad B examples on the right."""
        rows = {name: [example.inputs[name] for example in examples] for name in examples[0].inputs}
        fill = self.tokenizer.pad_token_id  # not ``pad_id``: a model finds each row's end by its own padding token
        inputs, mask, padded = side_by_side(rows, fill=0 if fill is None else int(fill))
        labels = torch.from_numpy(np.asarray([example.labels for example in examples], dtype=np.int64))
        return Batch(tuple(e.id for e in examples), inputs, labels, mask, padded)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """B x C logits.

        Raises:
            TaskError: a decoder-based classifier without a padding token cannot find each row's last token.
        """
        config = getattr(model, "config", None)
        if batch.padded and config is not None and getattr(config, "pad_token_id", 0) is None:
            raise TaskError(
                "the classifier has no padding token, so it cannot tell where a row ends",
                wanted="model.config.pad_token_id and tokenizer.pad_token, the same as in training",
                try_="model.config.pad_token_id = tokenizer.pad_token_id",
            )
        return logits_of(model(**batch.inputs))

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses in nats."""
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return functional.cross_entropy(logits, batch.labels, reduction="none")

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with each label drawn from the model, seeded by (seed, row id)."""
        where = torch.ones(len(batch), 1, dtype=torch.bool, device=outputs.device)
        drawn = sample_categorical(outputs.detach()[:, None, :], where, row_uniforms(seed, batch.ids, 1))
        return batch.with_labels(drawn)

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        labels = dict(sorted(self.label2id.items()))
        return {"task": self.name, "max_length": self.limit, "overlong": self.overlong, "label2id": labels}


TASK = SequenceClassification
