"""Texts to token ids with the characters they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from whence.tasks.base import RowProblem


def own_limit(tokenizer: Any) -> int | None:
    """Most tokens of a row by the tokenizer itself. Unlimited ones say so by a huge number, which is read as None."""
    own = getattr(tokenizer, "model_max_length", None)
    return own if own is not None and own < 10**7 else None


@dataclass(frozen=True, eq=False)
class Tokens:
    """One tokenised text: T token ids, and what the tokenizer knows of their places (None for slow tokenizers)."""

    ids: np.ndarray
    encoding: Any = None

    @cached_property
    def added(self) -> np.ndarray:
        """T booleans, True for special tokens that the tokenizer put in by itself."""
        if self.encoding is None:
            return np.zeros(len(self.ids), dtype=bool)
        return np.asarray([owner is None for owner in self.encoding.sequence_ids], dtype=bool)

    @cached_property
    def spans(self) -> np.ndarray | None:
        """T x 2 characters [start, end) of each token, worked out when asked for (it takes as long as tokenising).

        A token that is a part of a character has the whole character's span.
        """
        if self.encoding is None:
            return None
        spans = np.array(self.encoding.offsets, dtype=np.int64).reshape(-1, 2)
        # Byte-level tokenizers trim spaces from offsets; a token of one space then covers nothing: give it its space.
        empty = (spans[:, 0] == spans[:, 1]) & ~self.added
        spans[empty, 0] = np.maximum(spans[empty, 0] - 1, 0)
        return spans


def tokenise(tokenizer: Any, texts: Sequence[tuple[str, bool]]) -> list[Tokens | RowProblem]:
    """Tokenise (text, whether the tokenizer adds its special tokens) pairs, many at once."""
    results: list[Tokens | RowProblem] = [RowProblem("tokenizer_error", "")] * len(texts)
    for special in (True, False):
        chosen = [i for i, (_, wanted) in enumerate(texts) if wanted is special]
        found = _tokenise_alike(tokenizer, [texts[i][0] for i in chosen], special)
        for i, tokens in zip(chosen, found, strict=True):
            results[i] = tokens
    return results


def _tokenise_alike(tokenizer: Any, texts: list[str], special: bool) -> list[Tokens | RowProblem]:
    if not texts:
        return []
    try:
        return _call(tokenizer, texts, special)
    except Exception as error:  # one bad text fails a whole batch; the tokenizers raise whatever they like
        if len(texts) == 1:
            message = f"the tokenizer refuses this text: {type(error).__name__}: {str(error)[:200]}"
            return [RowProblem("tokenizer_error", message)]
        half = len(texts) // 2
        return _tokenise_alike(tokenizer, texts[:half], special) + _tokenise_alike(tokenizer, texts[half:], special)


def _call(tokenizer: Any, texts: list[str], special: bool) -> list[Tokens | RowProblem]:
    fast = bool(getattr(tokenizer, "is_fast", False))
    output = tokenizer(
        texts,
        add_special_tokens=special,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    encodings = output.encodings if fast else [None] * len(texts)
    ids = output["input_ids"]
    return [Tokens(np.asarray(i, dtype=np.int64), e) for i, e in zip(ids, encodings, strict=True)]


def common_prefix(tokenizer: Any, text: str, ids: np.ndarray, *, special: bool) -> int:
    """How many of ``ids`` also begin the tokens of ``text`` alone."""
    alone = np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int64)
    n = min(len(alone), len(ids))
    differ = np.flatnonzero(alone[:n] != ids[:n])
    return int(differ[0]) if len(differ) else n
