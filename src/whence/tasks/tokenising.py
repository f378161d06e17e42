"""Texts to token ids with the characters they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence.tasks.base import RowProblem


@dataclass(frozen=True)
class Tokens:
    """One tokenised text.

    Attributes:
        ids: T token ids.
        spans: T x 2 characters [start, end) of each token, None when the tokenizer does not know them. A byte of a
            character has the whole character's span; a token of nothing but a space has that space.
        added: T booleans, True for special tokens that the tokenizer put in by itself.
    """

    ids: np.ndarray
    spans: np.ndarray | None
    added: np.ndarray


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
        return_offsets_mapping=fast,
        verbose=False,
    )
    if not fast:
        return [_without_spans(ids) for ids in output["input_ids"]]
    return [_with_spans(encoding) for encoding in output.encodings]


def _without_spans(ids: Sequence[int]) -> Tokens:
    return Tokens(np.asarray(ids, dtype=np.int64), None, np.zeros(len(ids), dtype=bool))


def _with_spans(encoding: Any) -> Tokens:
    spans = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    added = np.asarray([owner is None for owner in encoding.sequence_ids], dtype=bool)
    # Byte-level tokenizers trim spaces from offsets, so that a token of one space covers nothing: give it its space.
    empty = (spans[:, 0] == spans[:, 1]) & ~added
    spans[empty, 0] -= 1
    return Tokens(np.asarray(encoding.ids, dtype=np.int64), np.maximum(spans, 0), added)


def common_prefix(tokenizer: Any, text: str, ids: np.ndarray, *, special: bool) -> int:
    """How many of ``ids`` also begin the tokens of ``text`` alone."""
    alone = np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int64)
    n = min(len(alone), len(ids))
    differ = np.flatnonzero(alone[:n] != ids[:n])
    return int(differ[0]) if len(differ) else n
