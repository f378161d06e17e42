"""Rows of different lengths side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def right_padded(rows: Sequence[np.ndarray], fill: int, *, width: int = 0) -> np.ndarray:
    """B x T whole numbers, each row followed by ``fill``; T is the longest row or ``width``, whichever is more."""
    out = np.full((len(rows), max(width, *(len(row) for row in rows))), fill, dtype=np.int64)
    for b, row in enumerate(rows):
        out[b, : len(row)] = row
    return out


def real(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """B x T booleans, True where a row has something."""
    return np.arange(width)[None, :] < np.asarray([len(row) for row in rows])[:, None]


def pad_id(tokenizer: object) -> int:
    """What to pad token ids with: the model never looks at it, but it must be a token."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def side_by_side(
    rows: Mapping[str, Sequence[np.ndarray]], *, fill: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor, bool]:
    """B rows as a model takes them, padded on the right whatever the tokenizer's own side is.

    Args:
        rows: name -> B rows of whole numbers, ``input_ids`` among them.
        fill: token id to pad with; everything else is padded with 0.

    Returns:
        The model's inputs, B x T booleans that are True at real tokens, and whether any is not.
    """
    inputs = {n: torch.from_numpy(right_padded(some, fill if n == "input_ids" else 0)) for n, some in rows.items()}
    mask = torch.from_numpy(real(rows["input_ids"], inputs["input_ids"].shape[1]))
    padded = not bool(mask.all())
    if padded:  # without padding the model may take its faster way (a purely causal one, for language models)
        inputs["attention_mask"] = mask.long()
    return inputs, mask, padded
