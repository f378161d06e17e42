"""Where the tokens of a row stand in the text that a person reads.

The model saw the rendered text (a chat template, an instruction's frame); people read the row's own pieces. Tokens that
stand in no piece, and special tokens, have no place: their scores are counted, not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whence.errors import TaskError
from whence.results import RowView
from whence.tasks.base import Example, RowProblem
from whence.tasks.causal_lm import IGNORE
from whence.tasks.records import Row


@dataclass(frozen=True)
class Placement:
    """Tokens of one row by character range.

    Attributes:
        spans: S ranges of the shown text, in order, not overlapping.
        index: T positions in ``spans``; S for a token without a place.
        masked: S booleans, True where no token of the span carries a loss.
    """

    spans: tuple[tuple[int, int], ...]
    index: np.ndarray
    masked: tuple[bool, ...]

    def folded(self, values: np.ndarray) -> np.ndarray:
        """... x T token values -> ... x (S + 1) sums by span, the last without a place."""
        out = np.zeros((*values.shape[:-1], len(self.spans) + 1))
        for t, at in enumerate(self.index.tolist()):
            out[..., at] += values[..., t]
        return out


def place_tokens(task: object, row: Row, example: Example, view: RowView) -> Placement:
    """The placement of one row's tokens; without text or offsets no token has a place.

    Args:
        task: a task with ``token_spans``.
        row: as read.
        example: as encoded.
        view: as shown.
    """
    carries = np.ones(example.length, dtype=bool)  # a label of the whole text: every token has a part in its loss
    if example.labels.ndim:
        carries = example.labels != IGNORE
        carries[0] = False  # nothing predicts the first token
    try:
        seen = task.token_spans(row)  # type: ignore[attr-defined]
    except (TaskError, RowProblem):
        return Placement((), np.zeros(example.length, dtype=np.int64), ())
    pieces = aligned(seen.text, view)
    return _merged([_shown(span, pieces) for span in seen.spans], carries)


def aligned(rendered: str, view: RowView) -> list[tuple[int, int, int]]:
    """(start, end, offset) of the rendered pieces that are shown; ``start + offset`` is their place there."""
    if rendered == view.text:
        return [(0, len(rendered), 0)]
    found, at, shown = [], 0, 0
    for text in [piece for _, piece in view.spans] or [view.text]:
        core = text.strip()
        start, place = rendered.find(core, at), view.text.find(core, shown)
        if core and start >= 0 and place >= 0:
            found.append((start, start + len(core), place - start))
            at, shown = start + len(core), place + len(core)
    return found


def _shown(span: tuple[int, int], pieces: Sequence[tuple[int, int, int]]) -> tuple[int, int] | None:
    """The token's range in the shown text, cut to the piece it overlaps most."""
    start, end = span
    cut = [(min(end, b) - max(start, a), max(start, a) + by, min(end, b) + by) for a, b, by in pieces]
    best = max(cut, default=(0, 0, 0))
    return None if start >= end or best[0] <= 0 else best[1:]


def _merged(places: Sequence[tuple[int, int] | None], carries: np.ndarray) -> Placement:
    spans: list[tuple[int, int]] = []
    masked: list[bool] = []
    index = np.full(len(places), -1, dtype=np.int64)
    for t, place in enumerate(places):
        if place is None:
            continue
        if spans and place[0] < spans[-1][1]:  # tokens of one character, or a blank shared by two
            spans[-1] = (spans[-1][0], max(spans[-1][1], place[1]))
            masked[-1] = masked[-1] and not carries[t]
        else:
            spans.append(place)
            masked.append(not carries[t])
        index[t] = len(spans) - 1
    index[index < 0] = len(spans)
    return Placement(tuple(spans), index, tuple(map(bool, masked)))
