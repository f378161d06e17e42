"""A label per word: names, parts of speech, and every other tagging.

Words are cut into tokens by the tokenizer; the label of a word stands on its first token, the others carry no loss, as
is usual since BERT. Labels may also be given as character spans of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from whence.errors import TaskError
from whence.tasks.aligned import aligned_losses, aligned_sample
from whence.tasks.base import Batch, Example, RowProblem, Setup, logits_of
from whence.tasks.causal_lm import IGNORE
from whence.tasks.classes import class_of
from whence.tasks.padding import pad_id, right_padded, side_by_side
from whence.tasks.records import Row
from whence.tasks.shapes import check_fields, tags_of, words_of
from whence.tasks.tokenising import own_limit

OUTSIDE = "O"


@dataclass(frozen=True)
class TokenClassification:
    """Negative log-likelihood of the labels, summed over the labelled tokens of a row, in nats.

    Attributes:
        tokenizer: a *fast* transformers tokenizer: it knows which token belongs to which word.
        label2id: the model's names of its classes (``model.config.label2id``).
        max_length: most tokens kept of a row, the first ones; None = the tokenizer's own limit.
        label: which tokens of a word carry its label: the ``first`` one, or ``all``.
        overlong: what to do with longer rows: ``truncate`` or ``skip`` (quarantine).
    """

    tokenizer: Any
    label2id: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
    label: Literal["first", "all"] = "first"
    overlong: Literal["truncate", "skip"] = "truncate"
    name: str = "token_classification"
    aligned: ClassVar[bool] = True  # position t prices label t (``tasks.margin``)

    @classmethod
    def of(
        cls,
        setup: Setup,
        /,
        *,
        label: Literal["first", "all"] = "first",
        overlong: Literal["truncate", "skip"] = "truncate",
    ) -> TokenClassification:
        """The task for a model, with the names that its configuration gives the classes."""
        names = getattr(setup.config, "label2id", None) or {}
        return cls(setup.tokenizer, names, setup.max_length, label, overlong)

    @property
    def limit(self) -> int | None:
        """Most tokens of a row; None = no limit."""
        return self.max_length if self.max_length is not None else own_limit(self.tokenizer)

    def encode(self, row: Row) -> Example:
        """Tokenise one row (``tokens`` and ``tags``, or ``text`` and ``entities``) and put the labels in place.

        Raises:
            RowProblem: no labels, labels the model does not know, or none left after cutting.
            TaskError: the tokenizer does not know where its tokens come from.
        """
        if problem := check_fields(row.fields, "tagged"):
            raise RowProblem(*problem)
        if not getattr(self.tokenizer, "is_fast", False):
            raise TaskError("this tokenizer does not know the words of its tokens", wanted="a fast tokenizer")
        by_words = "text" not in row.fields or words_of(row.fields) is not None
        given = words_of(row.fields) if by_words else row.fields["text"]
        encoded = self._tokenise(given)
        over = len(encoded["input_ids"]) - self.limit if self.limit is not None else 0
        if over > 0:
            if self.overlong == "skip":
                raise RowProblem("overlong", f"{over + (self.limit or 0)} tokens, at most {self.limit} are taken")
            encoded = self._tokenise(given, truncate=True)
        labels = self._of_words(row, encoded) if by_words else self._of_spans(row, encoded)
        count = int((labels != IGNORE).sum())
        if not count:
            raise RowProblem("all_masked", "no token of the row carries a label")
        inputs = {n: np.asarray(encoded[n], dtype=np.int64) for n in ("input_ids", "token_type_ids") if n in encoded}
        cut = max(0, over)
        return Example(row.id, inputs, labels, len(labels), count, cut, ("truncated",) if cut else ())

    def _tokenise(self, given: Any, *, truncate: bool = False) -> Any:
        # The tokenizer itself truncates, because it must keep its closing special token ([SEP]).
        try:
            return self.tokenizer(
                given,
                is_split_into_words=not isinstance(given, str),
                truncation=truncate,
                max_length=self.limit if truncate else None,
                return_offsets_mapping=True,
                verbose=False,
            )
        except Exception as error:  # the tokenizers raise whatever they like
            raise RowProblem("tokenizer_error", f"{type(error).__name__}: {str(error)[:200]}") from error

    def _of_words(self, row: Row, encoded: Any) -> np.ndarray:
        tags = [class_of(tag, self.label2id) for tag in tags_of(row.fields)]
        words = encoded.word_ids()
        first = [word is not None and word != (words[t - 1] if t else None) for t, word in enumerate(words)]
        labels = [
            tags[word] if word is not None and (first[t] or self.label == "all") else IGNORE
            for t, word in enumerate(words)
        ]
        return np.asarray(labels, dtype=np.int64)

    def _of_spans(self, row: Row, encoded: Any) -> np.ndarray:
        """Every token of the text has a label: that of the span it lies in, else the one for "outside"."""
        labels = np.full(len(encoded["input_ids"]), IGNORE, dtype=np.int64)
        owners = encoded.sequence_ids()
        begun: set[int] = set()
        for t, (start, end) in enumerate(encoded["offset_mapping"]):
            if owners[t] is None or start == end:
                continue
            inside = next(
                (n for n, s in enumerate(row.fields["entities"]) if start < s["end"] and end > s["start"]), None
            )
            if inside is None:
                labels[t] = class_of(OUTSIDE, self.label2id)
            else:
                labels[t] = self._span_class(str(row.fields["entities"][inside]["label"]), begins=inside not in begun)
                begun.add(inside)
        return labels

    def _span_class(self, label: str, *, begins: bool) -> int:
        """A span's label as the model writes it: plain, or as B-... at its beginning and I-... inside."""
        marked = f"{'B' if begins else 'I'}-{label}"
        return class_of(marked if marked in self.label2id else label, self.label2id)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad B examples on the right."""
        rows = {n: [e.inputs[n] for e in examples] for n in examples[0].inputs}
        inputs, mask, padded = side_by_side(rows, fill=pad_id(self.tokenizer))
        labels = torch.from_numpy(right_padded([e.labels for e in examples], IGNORE))
        return Batch(tuple(e.id for e in examples), inputs, labels, mask, padded)

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """B x T x C logits."""
        return logits_of(model(**batch.inputs))

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses in nats: each the sum over the row's labelled tokens."""
        return aligned_losses(outputs, batch)

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with each label drawn from the model, seeded by (seed, row id); labels of -100 stay."""
        return aligned_sample(outputs, batch, seed)

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        labels = dict(sorted(self.label2id.items()))
        limits = {"max_length": self.limit, "overlong": self.overlong, "label": self.label}
        return {"task": self.name, **limits, "label2id": labels}


TASK = TokenClassification
