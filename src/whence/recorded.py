"""The record of a training (``whence_training.json``): found beside a model, compared with how its rows are read now.

A record is a file that came with a model, so it is data of unknown origin: it is read as JSON within limits, checked
field by field, and only ever compared with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from whence.errors import DataError, OptionError, StoreError
from whence.options import TraceOptions
from whence.report.characters import visible
from whence.tasks.base import Example
from whence.tasks.preference import CHOSEN, REJECTED

FILE, FORMAT = "whence_training.json", "whence training record 1"
MOST_BYTES = 1 << 30
_CHECKPOINT = re.compile(r"checkpoint-\d{1,18}")
SHOWN = 3


class Side(BaseModel):
    """One sequence as the trainer saw it: its length, digests of tokens and labels, whether it ended with the token."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    length: int
    ids: str
    loss_tokens: int | None = None
    labels: str | None = None
    eos: bool | None = None


class Probe(Side):
    """One row; of a preference pair the chosen side, with the rejected one as ``second``."""

    row: int
    second: Side | None = None


class RowsRecord(BaseModel):
    """The training rows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    count: int | None = None
    ids: tuple[str, ...] | None = None
    packed: bool = False


class Record(BaseModel):
    """What ``WhenceCallback`` wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str
    rows: RowsRecord = RowsRecord()
    order: str = ""
    steps: tuple[tuple[int, ...], ...] | None = None
    rates: tuple[float, ...] = ()
    checkpoints: tuple[int, ...] = ()
    finished: bool = False
    done: int = 0
    epochs: float = 0.0
    batch: Mapping[str, int] = Field(default_factory=dict)
    seeds: Mapping[str, Any] = Field(default_factory=dict)
    optimiser: Mapping[str, Any] = Field(default_factory=dict)
    objective: str = ""
    loss: Mapping[str, Any] = Field(default_factory=dict)
    dropout: Mapping[str, float] = Field(default_factory=dict)
    precision: str = ""
    encoding: Mapping[str, Any] = Field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    start: str = ""

    def about(self) -> dict[str, Any]:
        """For results: short."""
        return {
            "rows": self.rows.count,
            "steps": self.done,
            "finished": self.finished,
            "epochs": self.epochs,
            "batch": dict(self.batch),
            "optimiser": self.optimiser.get("class"),
            "peak_rate": max(self.rates, default=None),
            "seeds": dict(self.seeds),
            "order": self.order,
        }

    def row_settings(self) -> dict[str, Any]:
        """Settings by which a language-model task encodes the rows as they were, where all compared rows agree.

        TRL ends rows of text with the end-of-sequence token, and trains prompts too where it is told to.
        """
        longest = self.encoding.get("max_length")
        whole = [p for p in self.probes if not isinstance(longest, int) or p.length < longest]
        found: dict[str, Any] = {}
        if whole and not self.rows.packed:
            if all(p.eos is not None for p in whole):
                found["append_eos"] = all(p.eos for p in whole)
            if all(p.loss_tokens == p.length - 1 for p in whole):
                found["loss_on"] = "all"
        return found


def digest(values: Any) -> str:
    """A short fingerprint of whole numbers or bytes."""
    data = values if isinstance(values, bytes) else np.asarray(values, dtype="<i8").tobytes()
    return xxhash.xxh3_128_hexdigest(data)


def template_digest(tokenizer: Any) -> str:
    """Of the chat template; empty without one."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return digest(template.encode("utf-8", "surrogatepass")) if template else ""


def weights_digest(model: nn.Module) -> str:
    """A fingerprint of the parameters that move: the first numbers of each."""
    parts = []
    for name, p in sorted(model.named_parameters()):
        if p.requires_grad and p.is_floating_point():
            head = p.detach().reshape(-1)[:64].float().cpu().numpy()
            parts.append(name.encode() + head.tobytes())
    return digest(b"".join(parts))


def read_record(path: str | Path) -> Record:
    """A record from its file or from the folder that holds it.

    Raises:
        StoreError: no such file, too large, or not a record.
    """
    place = Path(path).expanduser()
    place = place / FILE if place.is_dir() else place
    try:
        if place.stat().st_size > MOST_BYTES:
            raise StoreError(f"{place} has {place.stat().st_size:,} bytes", wanted=f"at most {MOST_BYTES:,}")
        found = json.loads(place.read_text("utf-8"))
        record = Record.model_validate(found)
    except (OSError, ValueError, RecursionError) as error:
        said = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, said['loc']))}: {said['msg']}" if said else str(error)
        raise StoreError(
            f"{place} is not a record of a training: {visible(why)[:200]}",
            wanted=f"{FILE} as WhenceCallback writes it",
            try_="--record ignore",
        ) from error
    if record.format != FORMAT:
        raise StoreError(f"{place} has the format {visible(record.format)[:60]!r}", wanted=FORMAT)
    return record


def record_of(model: Any, options: TraceOptions) -> Record | None:
    """The record beside a model, unless it is to be ignored.

    Raises:
        StoreError: there is one, and it cannot be read.
    """
    return find_record(model) if options.record == "auto" else None


def find_record(model: Any) -> Record | None:
    """The record of a model folder, or of the output folder above a ``checkpoint-N``; None where there is none.

    Raises:
        StoreError: there is one, and it cannot be read.
    """
    if not isinstance(model, (str, Path)):
        return None
    place = Path(model).expanduser()
    above = [place.resolve().parent] if _CHECKPOINT.fullmatch(place.resolve().name) else []
    for folder in (place, *above):
        if (folder / FILE).is_file():
            return read_record(folder / FILE)
    return None


def with_record(options: TraceOptions, record: Record | None) -> TraceOptions:
    """Settings that were not given and are recorded: the length rows were cut to."""
    longest = record.encoding.get("max_length") if record is not None else None
    if options.max_length is not None or not isinstance(longest, int) or longest < 2:
        return options
    return options.model_copy(update={"max_length": longest})


@dataclass(frozen=True)
class Compared:
    """How the rows at hand stand to the record.

    Attributes:
        record: what happened.
        same: rows that are encoded as recorded.
        looked: recorded rows that were found among those at hand.
        train_size: N of the training.
        warnings: what a reader should know.
    """

    record: Record
    same: int
    looked: int
    train_size: int
    warnings: tuple[str, ...]

    def about(self) -> dict[str, Any]:
        """For results."""
        return {**self.record.about(), "rows_compared": self.looked, "rows_encoded_alike": self.same}


def compare(record: Record, ids: Sequence[str], examples: Sequence[Example]) -> Compared:
    """Are the rows encoded as they were in training?

    Args:
        record: of the training.
        ids: of the rows at hand, all of the training's or some, in their order.
        examples: those of them that can be used.

    Raises:
        DataError: the same rows with other tokens, lengths or labels; names what differs.
    """
    found = [(probe, example) for probe, example in _matched(record, ids, examples) if example is not None]
    pairs = [(probe, example) for probe, example in found if len(_sides(example)) == 1 + (probe.second is not None)]
    wrong = [said for probe, example in pairs if (said := difference(probe, example))]
    if wrong:
        longest = max(probe.length for probe, _ in pairs)
        cut = any(said.startswith("max_length") for said in wrong)
        raise DataError(
            f"{len(wrong)} of {len(pairs)} rows are not encoded as in the recorded training: "
            + "; ".join(wrong[:SHOWN]),
            wanted="the template, mask and length of the training (a score is about what was trained on)",
            try_=(f"--max-length {longest}, or " if cut else "") + "--record ignore to go on all the same",
        )
    total, given = record.rows.count or len(examples), len(ids)
    size = total if given < total else len(examples)
    warnings = [] if pairs else ["none of the recorded rows was recognised: template and mask are not compared"]
    if record.rows.packed:
        warnings.append("the training packed several rows into one: rows here are not those of the optimiser's steps")
    if given < total:
        warnings.append(f"{given:,} of the {total:,} rows of the training are scored; effects are of these {total:,}")
    if not record.finished:
        warnings.append(f"the record ends at step {record.done:,}: the training was not finished when it was written")
    return Compared(record, len(pairs) - len(wrong), len(pairs), size, tuple(warnings))


def _matched(record: Record, ids: Sequence[str], examples: Sequence[Example]) -> Sequence[tuple[Probe, Example | None]]:
    """Recorded rows and the rows at hand that they are: by id, by position where there are as many, or by content.

    By content, rows with other tokens cannot be found.
    """
    usable, known = {example.id: example for example in examples}, record.rows.ids
    if known is not None and set(known) & set(ids):
        return [(p, usable.get(known[p.row])) for p in record.probes if 0 <= p.row < len(known)]
    if record.rows.count == len(ids) and not record.rows.packed:
        return [(p, usable.get(ids[p.row])) for p in record.probes if 0 <= p.row < len(ids)]
    by_content = {digest(sides[0][0]): e for e in examples if (sides := _sides(e))}
    return [(p, by_content.get(p.ids)) for p in record.probes]


def _sides(example: Example) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and labels of a row's sequences: one, or the chosen and the rejected one; none where it has no tokens."""
    inputs = example.inputs
    if "input_ids" in inputs:
        return [(inputs["input_ids"], np.asarray(example.labels))]
    return [(inputs[side], inputs[f"{side}_labels"]) for side in (CHOSEN, REJECTED) if side in inputs]


def difference(probe: Probe, example: Example) -> str:
    """What differs between a row as recorded and as encoded now; empty when nothing does."""
    recorded: list[Side] = [probe] if probe.second is None else [probe, probe.second]
    told = (_differs(side, own, example) for side, own in zip(recorded, _sides(example), strict=False))
    return next(filter(None, told), "")


def _differs(side: Side, own: tuple[np.ndarray, np.ndarray], example: Example) -> str:
    ids, labels = own
    if digest(ids) != side.ids:
        cut = len(ids) > side.length and digest(ids[: side.length]) == side.ids
        kind = (
            "max_length" if cut or (example.truncated and len(ids) < side.length) else "tokens (template or tokenizer)"
        )
        return f"{kind}: {example.id} had {side.length} tokens, has {len(ids)}"
    if side.labels is None or np.shape(labels) != np.shape(ids) or digest(labels[1:]) == side.labels:
        return ""
    return f"mask: {example.id} was trained on {side.loss_tokens} tokens, has {int((labels[1:] != -100).sum())}"


def positions(record: Record, ids: Sequence[str], examples: Sequence[Example]) -> list[int]:
    """For every row number of the record, the place of that row among the usable rows at hand.

    Raises:
        OptionError: rows of the training are missing here.
    """
    place, known = {example.id: n for n, example in enumerate(examples)}, record.rows.ids
    names = known if known is not None and set(known) & set(ids) else ids
    count = record.rows.count or len(names)
    missing = [n for n in range(count) if n >= len(names) or names[n] not in place]
    if missing or len(names) != count:
        raise OptionError(
            f"{len(missing) or abs(len(names) - count)} of the {count:,} rows of the recorded training are not here",
            wanted="all its rows, in its order or under its ids",
            try_="the file that was trained on",
        )
    return [place[name] for name in names]
