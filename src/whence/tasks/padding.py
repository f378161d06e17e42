"""Rows of different lengths side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
