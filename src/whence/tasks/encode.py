"""Rows to examples, never stopping for one bad row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, cast

from whence.errors import TaskError
from whence.tasks.base import Example, RowProblem, Task
from whence.tasks.records import Quarantined, Row

_CHUNK = 1000
_MASKED_SHARE = 0.2


class _EncodesMany(Protocol):
    """A task that is faster on many rows at once (tokenizers are)."""

    def encode_many(self, rows: Sequence[Row]) -> list[Example | RowProblem]: ...


def encode_rows(task: Task, rows: Sequence[Row]) -> tuple[list[Example], list[Quarantined]]:
    """Encode every row; a row that cannot be used is quarantined with its reason.

    How many may be is judged by the caller, over reading and encoding together (``rows.check_bad_rows``).

    Raises:
        TaskError: the fault is the set-up's, not the rows': more than a fifth of the rows lose all their trained
            tokens to the mask, or the chat template keeps running out of time.
    """
    examples: list[Example] = []
    bad: list[Quarantined] = []
    counts: Counter[str] = Counter()
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        for row, result in zip(chunk, _encode_chunk(task, chunk), strict=True):
            if isinstance(result, Example):
                examples.append(result)
            else:
                counts[result.code] += 1
                bad.append(Quarantined(row.location, result.code, result.message, row.id))
                if counts["template_timeout"] >= 3:
                    raise TaskError(
                        f"the chat template ran out of time on {row.location} and two rows before it",
                        wanted="a template that renders a row in seconds",
                        try_="look at the tokenizer's chat_template; it may loop without end",
                    )
    if counts["all_masked"] > _MASKED_SHARE * len(rows):
        raise _masked_error(bad, len(rows))
    return examples, bad


def encoding_notes(examples: Iterable[Example]) -> dict[str, int]:
    """How many examples carry each note (``truncated``, ``double_bos``, ``special_in_text`` ...), for the record."""
    notes = Counter(note for example in examples for note in example.notes)
    return dict(sorted(notes.items()))


def _encode_chunk(task: Task, rows: Sequence[Row]) -> list[Example | RowProblem]:
    if hasattr(task, "encode_many"):
        return cast("_EncodesMany", task).encode_many(rows)
    return [_encode_one(task, row) for row in rows]


def _encode_one(task: Task, row: Row) -> Example | RowProblem:
    try:
        return task.encode(row)
    except RowProblem as problem:
        return problem


def _masked_error(bad: Sequence[Quarantined], total: int) -> TaskError:
    masked = [b for b in bad if b.code == "all_masked"]
    shown = "\n".join(f"    {b.location}: {b.message}" for b in masked[:3])
    return TaskError(
        f"the loss mask leaves no trained tokens in {len(masked)} of {total} rows:\n{shown}",
        wanted="rows with something that the model was trained to say (a completion, an assistant turn, a label)",
        try_="look at these rows: is the completion empty, or cut off by the length limit?",
    )
