"""Loss of what a decoder writes after an encoder has read: T5, BART, Marian and their kin.

The two sides have token axes of their own. So that a layer's rows can be told apart by their length alone, padded
batches are collated with a decoder width that differs from the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from whence.errors import TaskError
from whence.tasks.aligned import aligned_losses, aligned_sample
from whence.tasks.base import Batch, Example, RowProblem, Setup, logits_of
from whence.tasks.causal_lm import IGNORE
from whence.tasks.padding import pad_id, real, right_padded
from whence.tasks.records import Row
from whence.tasks.shapes import check_fields, detect_shape, sides_of
from whence.tasks.tokenising import own_limit


@dataclass(frozen=True)
class Seq2Seq:
    """Negative log-likelihood of the target, summed over its tokens, in nats.

    Attributes:
        tokenizer: a transformers tokenizer.
        start: the token that the decoder begins with (``model.config.decoder_start_token_id``); None: the target's own
            last token, as mBART's language mark.
        max_length: most tokens kept of the input, the first ones; None = the tokenizer's own limit.
        max_target: the same of the target; None = as ``max_length``.
        overlong: what to do with longer rows: ``truncate`` or ``skip`` (quarantine).
    """

    tokenizer: Any
    start: int | None = None
    max_length: int | None = None
    max_target: int | None = None
    overlong: Literal["truncate", "skip"] = "truncate"
    name: str = "seq2seq"
    aligned: ClassVar[bool] = True  # position t prices label t (``tasks.margin``)

    @classmethod
    def of(
        cls,
        setup: Setup,
        /,
        *,
        max_target: int | None = None,
        overlong: Literal["truncate", "skip"] = "truncate",
    ) -> Seq2Seq:
        """The task for a model, with the decoder's first token from its configuration.

        Raises:
            TaskError: the model has no decoder beside an encoder, or does not say how its decoder begins.
        """
        config = setup.config
        start = getattr(config, "decoder_start_token_id", None)
        wraps = start is None and getattr(config, "model_type", "") == "mbart"
        if getattr(config, "is_encoder_decoder", False) is not True or not (wraps or isinstance(start, int)):
            raise TaskError(
                f"{type(setup.model).__name__} is no encoder with a decoder that says how it begins",
                wanted="a model such as T5 or BART, with decoder_start_token_id in its config",
            )
        return cls(setup.tokenizer, None if wraps else start, setup.max_length, max_target, overlong)

    def limits(self) -> tuple[int | None, int | None]:
        """Most tokens of the input and of the target; None = no limit."""
        most = self.max_length if self.max_length is not None else own_limit(self.tokenizer)
        return most, self.max_target if self.max_target is not None else most

    def encode(self, row: Row) -> Example:
        """Tokenise one row: ``input`` and ``target``, or a prompt and its completion, or an instruction.

        Raises:
            RowProblem: a side is missing, or has no tokens.
        """
        shape = detect_shape(row.fields)
        if problem := check_fields(row.fields, shape if shape in ("prompt_completion", "instruction") else "pair"):
            raise RowProblem(*problem)
        given, said = sides_of(row.fields)
        most = self.limits()
        source, cut_source = self._tokenise(given, most[0], target=False)
        target, cut_target = self._tokenise(said, most[1], target=True)
        if not len(source) or not len(target):
            raise RowProblem("no_loss_tokens", "the input or the target has no tokens")
        before = target[-1] if self.start is None else self.start
        inputs = {"input_ids": source, "decoder_input_ids": np.concatenate([[before], target[:-1]])}
        cut = cut_source + cut_target
        notes = ("truncated",) if cut else ()
        return Example(row.id, inputs, target, len(source) + len(target), len(target), cut, notes)

    def _tokenise(self, text: str, most: int | None, *, target: bool) -> tuple[np.ndarray, int]:
        """Token ids, and how many were cut off; the tokenizer cuts, because it must keep its closing token."""
        key = "text_target" if target else "text"
        try:
            whole = self.tokenizer(**{key: text}, verbose=False)["input_ids"]
            if most is None or len(whole) <= most:
                return np.asarray(whole, dtype=np.int64), 0
            if self.overlong == "skip":
                raise RowProblem("overlong", f"{len(whole)} tokens, at most {most} are taken")
            kept = self.tokenizer(**{key: text}, truncation=True, max_length=most, verbose=False)["input_ids"]
        except RowProblem:
            raise
        except Exception as error:  # the tokenizers raise whatever they like
            raise RowProblem("tokenizer_error", f"{type(error).__name__}: {str(error)[:200]}") from error
        return np.asarray(kept, dtype=np.int64), len(whole) - len(kept)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Pad both sides on the right; the mask is the decoder's, the encoder's stands beside it."""
        sources = [e.inputs["input_ids"] for e in examples]
        targets = [e.labels for e in examples]
        wide, long = (max(map(len, rows)) for rows in (sources, targets))
        padded = not (all(len(s) == wide for s in sources) and all(len(t) == long for t in targets))
        long += padded and wide == long
        fill = pad_id(self.tokenizer)
        inputs = {"input_ids": torch.from_numpy(right_padded(sources, fill))}
        masks = torch.from_numpy(real(targets, long)), torch.from_numpy(real(sources, wide))
        if padded:
            inputs["attention_mask"] = masks[1].long()
        before = right_padded([e.inputs["decoder_input_ids"] for e in examples], fill, width=long)
        inputs["decoder_input_ids"] = torch.from_numpy(before)
        labels = torch.from_numpy(right_padded(targets, IGNORE, width=long))
        return Batch(tuple(e.id for e in examples), inputs, labels, masks[0], padded, other_masks=(masks[1],))

    def outputs(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """B x T x V logits of the decoder; position t prices token t of the target."""
        return logits_of(model(**batch.inputs, use_cache=False))

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B losses in nats: each the sum over the target's tokens."""
        return aligned_losses(outputs, batch)

    def measurements(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        """The batch with each target token drawn from the model; what the decoder reads stays the row's own."""
        return aligned_sample(outputs, batch, seed)

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        most = self.limits()
        return {
            "task": self.name,
            "start": self.start,
            "max_length": most[0],
            "max_target": most[1],
            "overlong": self.overlong,
        }


TASK = Seq2Seq
