"""What is asked beyond the loss of a whole answer: a span, a set as one direction, A minus B, the model's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from whence.errors import DataError, OptionError, TaskError
from whence.linalg.operators import Operator
from whence.pipeline import Material, Subject
from whence.results import RowView
from whence.scores.low_rank import Load, cut_for, held_queries, told
from whence.scores.score import Queries, collect, precondition, prepare_queries
from whence.scores.tokens import mixed, restrict_targets
from whence.tasks.base import Example, device_of
from whence.tasks.batches import plan_batches
from whence.tasks.formats import LIMITS, Record
from whence.tasks.placing import Placement, place_tokens
from whence.tasks.rows import row_view
from whence.tasks.shapes import apply_columns
from whence.tasks.sources import open_sources

OPEN = 10**9  # the stop of a span without one
ANSWERS = frozenset({"completion", "assistant", "output"})
TOGETHER, CONTRAST = "all questions together", "A minus B"


def answered(subject: Subject, query: Any) -> Any:
    """Questions with only a prompt get the model's own greedy continuation as their completion.

    Args:
        subject: model, tokenizer and ``options.generate``, the most tokens of an answer (0: questions stay).
        query: questions as given, as rows or in files.

    Returns:
        The questions, each with an answer; files in which every row has one stay files.

    Raises:
        DataError: a file that cannot be read.
        TaskError: the model says nothing, or cannot generate.
    """
    most = subject.options.generate
    if most < 1:
        return query
    rows = [query] if isinstance(query, Mapping) and isinstance(query.get("prompt"), str) else query
    if isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        return [_completed(subject, row, most) for row in rows]
    read = {s.name: list(s.records()) for s in open_sources(query, default_name="query", limits=LIMITS)}
    if not any(_open(subject, record.fields) for records in read.values() for record in records):
        return query
    return {name: [_from_file(subject, name, record, most) for record in records] for name, records in read.items()}


def _from_file(subject: Subject, name: str, record: Record, most: int) -> dict[str, Any]:
    """A file's row with its answer, and the id that it has when the file is read as it is."""
    if record.fields is None:
        raise DataError(f"{name}, line {record.line}: {record.message}", wanted="questions that can all be read")
    fields = dict(apply_columns(record.fields, subject.options.columns))
    if "prompt" in fields and "response" in fields and "completion" not in fields:
        fields["completion"] = fields.pop("response")
    return _completed(subject, {"id": f"{name}:{record.line}", **fields}, most)


def _open(subject: Subject, fields: Mapping[str, Any] | None) -> bool:
    """Has it a prompt and no answer?"""
    row = apply_columns(fields or {}, subject.options.columns)
    return isinstance(row.get("prompt"), str) and not {"completion", "response"} & set(row)


def _completed(subject: Subject, row: Any, most: int) -> Any:
    if not _open(subject, row):
        return row
    said = continuation(subject, row["prompt"], most)
    subject.watch.note("generate", f"answer    {said!r}", prompt=row["prompt"], response=said)
    return {**row, "completion": said}


def continuation(subject: Subject, prompt: str, most: int) -> str:
    """The model's greedy continuation of a prompt, as text that can be appended to it.

    Raises:
        TaskError: it is empty, or the model is not one that generates.
    """
    tokenizer, model = subject.loaded.tokenizer, subject.loaded.model
    if tokenizer is None or not hasattr(model, "generate"):
        raise TaskError("this model cannot generate", wanted="a causal language model with a tokenizer")
    given = tokenizer(prompt, return_tensors="pt")
    ids = given["input_ids"].to(device_of(model))
    if tokenizer.eos_token_id is not None and ids.shape[1] > 1 and int(ids[0, -1]) == tokenizer.eos_token_id:
        ids = ids[:, :-1]  # some tokenizers close every text; nothing would follow
    with torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, num_beams=1,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )  # fmt: skip
    before, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (ids[0], out[0]))
    said = whole[len(before) :]
    if not said.strip():
        raise TaskError(f"the model says nothing after {prompt[-60:]!r}", try_="--response with the text to explain")
    return said


def focused(subject: Subject, asked: Material) -> Material:
    """Only the tokens of ``options.span`` are explained: characters start:stop of each question's response.

    Raises:
        OptionError: not of the form start:stop, or a stop behind every response (or what was kept of it).
        TaskError: no token with a loss lies there.
    """
    if subject.options.span is None:
        return asked
    start, stop = _range(subject.options.span)
    examples, reach, rows = [], [], {row.id: row for row in asked.rows.rows}
    for example in asked.examples:
        view = row_view(rows[example.id])
        place = place_tokens(subject.task, rows[example.id], example, view)
        first = _response_start(view)
        wanted = [s for s, (a, b) in enumerate(place.spans) if a < first + stop and b > first + start]
        inside = np.flatnonzero(np.isin(place.index, wanted))
        if not len(inside):
            raise TaskError(
                f"no token of {example.id} lies in characters {subject.options.span} of its response",
                wanted=f"a range within its {len(view.text) - first} characters",
            )
        reach.append(_reach(example, place, view) - first)
        examples.append(restrict_targets(example, int(inside[0]), int(inside[-1]) + 1))
        shown = view.text[first + start : first + min(stop, reach[-1])]
        subject.watch.note("span", f"span      {example.id}: {shown!r}", id=example.id, characters=shown)
    if OPEN > stop > max(reach):
        raise OptionError(
            f"span = {subject.options.span!r} ends behind every response",
            wanted=f"characters start:stop of the response, of which {max(reach)} are in the tokens that were kept",
            try_=f"--span {start}:{max(reach)}, or {start}: for all that follows",
        )
    plan = plan_batches([e.length for e in examples], token_budget=subject.options.batch_tokens)
    return replace(asked, examples=tuple(examples), source=replace(asked.source, examples=examples, plan=plan))


def _reach(example: Example, place: Placement, view: RowView) -> int:
    """Characters of the shown text that the row's tokens cover: all, unless it was cut."""
    return max(stop for _, stop in place.spans) if example.truncated else len(view.text)


def _range(span: str) -> tuple[int, int]:
    start, colon, stop = span.partition(":")
    try:
        found = int(start or 0), int(stop) if stop else OPEN
    except ValueError:
        found = (0, 0)
    if not colon or not 0 <= found[0] < found[1]:
        raise OptionError(f"span = {span!r}", wanted="characters start:stop of the response", try_="--span 12:30")
    return found


def _response_start(view: RowView) -> int:
    """Where the response begins in the shown text; 0 for a text without a prompt."""
    at = 0
    for kind, text in view.spans:
        place = view.text.find(text, at)
        if kind in ANSWERS and place >= 0:
            return place
        at = max(at, place + len(text))
    return 0


def pose(subject: Subject, asked: Material, inverse: Operator) -> Queries:
    """The preconditioned query gradients: one per question, or mixed as ``options.combine`` says.

    Many or large questions are held at a low rank, as ``options.query_rank`` says.

    Raises:
        OptionError: a contrast without two sides.
    """
    combine = subject.options.combine
    if combine == "each":
        return _held(subject, asked, inverse)
    weights, name = _weights(asked, combine)
    return precondition(mixed(collect(asked.source), weights, [name]), inverse)


def combination(asked: Material, combine: str) -> np.ndarray | None:
    """[1, Q] weights of the one direction that ``combine`` makes of the questions; None = each for itself.

    Raises:
        OptionError: a contrast without two sides.
    """
    return None if combine == "each" else _weights(asked, combine)[0]


def _held(subject: Subject, asked: Material, inverse: Operator) -> Queries:
    sizes, count = subject.layers.sizes, len(asked.examples)
    tokens = sum(example.length for example in asked.examples) / count
    cut = cut_for(subject.options.query_rank, sizes, Load(count, tokens))
    if not cut.layers:
        return prepare_queries(asked.source, inverse)
    queries = held_queries(asked.source, inverse, cut)
    subject.watch.note("queries", f"held      {told(queries.held)}", **queries.held)
    return queries


def _weights(asked: Material, combine: str) -> tuple[np.ndarray, str]:
    ids = asked.source.ids
    if combine == "mean":
        return np.full((1, len(ids)), 1 / len(ids)), TOGETHER
    sides = contrast_sides(asked)
    return np.array([[1 / len(sides[0]) if i in sides[0] else -1 / len(sides[1]) for i in ids]]), CONTRAST


def contrast_sides(asked: Material) -> tuple[Sequence[str], Sequence[str]]:
    """Ids of A and of B: of two files, or of two questions.

    Raises:
        OptionError: anything else.
    """
    sources = {row.id: row.source for row in asked.rows.rows}
    ids, names = asked.source.ids, list(dict.fromkeys(sources[i] for i in asked.source.ids))
    if len(names) == 2:
        first, second = ([i for i in ids if sources[i] == name] for name in names)
        return first, second
    if len(ids) == 2:
        return ids[:1], ids[1:]
    raise OptionError(
        f"a contrast of {len(ids)} questions from {len(names)} source(s)",
        wanted="two questions, or two files of questions: A minus B",
        try_="--query a.jsonl --query b.jsonl --combine contrast",
    )


def posed_views(subject: Subject, asked: Material) -> dict[str, RowView] | None:
    """How a mixture is shown: its questions as parts of one text. None when every question stands for itself."""
    combine = subject.options.combine
    if combine == "each":
        return None
    rows = {row.id: row_view(row) for row in asked.rows.rows}
    first = set(contrast_sides(asked)[0]) if combine == "contrast" else set()
    name = CONTRAST if combine == "contrast" else TOGETHER
    mark = {True: "A", False: "B"}
    pieces = [
        (f"{mark[i in first]}: " if combine == "contrast" else f"{n}: ", rows[i].text)
        for n, i in enumerate(asked.source.ids, start=1)
    ]
    text = "\n".join(label + said for label, said in pieces)
    return {name: RowView(name, text, "", f"{len(pieces)} questions")}
