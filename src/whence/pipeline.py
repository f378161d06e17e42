"""From what a user points at to gradients: model, rows, examples, batch plan, layers. Shared by every verb.

Each step says what it derived (``Watcher.note``) before time is spent on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from torch import nn

from whence.curvature.settings import read_settings, settings_of, split_spec
from whence.errors import DataError, OptionError, TaskError, did_you_mean
from whence.gradients.layers import Layers, find_layers
from whence.gradients.source import LiveGradients
from whence.loading import AUTO_CLASSES, HOST, PICKLE_WEIGHTS, REMOTE_CODE, Loaded, load_model, over_ranks
from whence.options import TraceOptions
from whence.recorded import Compared, Record, compare, record_of, with_record
from whence.tasks.base import Example, Setup, Task, get_task, task_names
from whence.tasks.batches import plan_batches
from whence.tasks.classification import SequenceClassification
from whence.tasks.encode import encode_rows, encoding_notes
from whence.tasks.rows import Quarantined, ReadOptions, Row, Rows, check_bad_rows, read_rows
from whence.watch import Watcher


@dataclass(frozen=True)
class Material:
    """Rows of one side (training or questions), read and encoded.

    Attributes:
        name: what the user called it.
        rows: as read; ``rows.ids`` are all of them, also those that cannot be used.
        examples: the usable ones, encoded.
        quarantine: the others, from reading and from encoding.
        source: the examples' gradients.
        train_size: N of the training, where these are only some of its rows; 0 = these are all.
        recorded: how they stand to the training's record; None without one.
        encoded_by: the task that encoded them, where a record says that training encoded its rows in another way than
            questions are; None = the subject's own.
    """

    name: str
    rows: Rows
    examples: tuple[Example, ...]
    quarantine: tuple[Quarantined, ...]
    source: LiveGradients
    train_size: int = 0
    recorded: Compared | None = None
    encoded_by: Task | None = None

    @property
    def total(self) -> int:
        """N: what a score is divided by for the effect of leaving a row out."""
        return self.train_size or len(self.examples)

    def by_id(self) -> dict[str, Row]:
        """Usable and unusable rows that could be read, by id."""
        return {row.id: row for row in self.rows.rows}

    def about(self) -> dict[str, Any]:
        """What must be known to read these rows again."""
        return {
            "name": self.name,
            "shape": self.rows.shape,
            "rows": len(self.rows.ids),
            "used": len(self.examples),
            "quarantined": len(self.quarantine),
            "truncated": sum(example.truncated > 0 for example in self.examples),
            "tokens": sum(example.length for example in self.examples),
            "loss_tokens": sum(example.loss_tokens for example in self.examples),
            "fingerprint": self.rows.fingerprint,
            "batch_plan": self.source.plan.digest,
        }


@dataclass(frozen=True)
class Subject:
    """The model under examination, ready to be asked.

    Attributes:
        loaded: model, tokenizer and identity.
        task: what an example is and costs.
        layers: what is followed.
        options: the resolved settings.
        watch: who hears about it.
        record: of the training that made the model; None when there is none, or it is ignored.
        as_recorded: settings of the task by which the record's rows were encoded, and these were not given.
    """

    loaded: Loaded
    task: Task
    layers: Layers
    options: TraceOptions
    watch: Watcher
    seconds: dict[str, float] = field(default_factory=dict)
    record: Record | None = None
    as_recorded: Mapping[str, Any] = field(default_factory=dict)


def open_subject(
    model: Any, options: TraceOptions, watch: Watcher, *, task: Task | None = None, record: Record | None = None
) -> Subject:
    """Load the model, choose the task and find the layers.

    Args:
        model: as ``load_model``.
        options: the settings; what a record says of the rows holds where they do not.
        watch: hears what was derived.
        task: instead of the one that the options name.
        record: of a training, instead of the one beside the model; rows are encoded like that one's, not compared.

    Raises:
        ModelError, OptionError, LayerError: see ``load_model`` and ``find_layers``.
    """
    asked, beside = check_task(options.task), None if record is not None else record_of(model, options)
    record = record or beside
    options = with_record(options, record)
    loaded = _load(model, options, task=asked if asked in AUTO_CLASSES else "auto")
    layers = find_layers(loaded.model, options.layers)
    loaded = _spread(loaded, options)
    told = {} if task is not None or record is None else _as_recorded(loaded, options, record)
    task = task or make_task(loaded, options, record)
    _note_model(loaded, layers, watch)
    return Subject(loaded, task, layers, options, watch, record=beside, as_recorded=told)


def open_classifier(
    model: Any, options: TraceOptions, watch: Watcher, *, why: str, without: str
) -> tuple[Subject, SequenceClassification]:
    """``open_subject`` for what only a sequence classifier can do.

    Args:
        model: as ``open_subject``.
        options: likewise.
        watch: likewise.
        why: what needs labels, for the error.
        without: what to do without such a model, for the error.

    Raises:
        TaskError: a model for another task.
        ModelError, OptionError, LayerError: as ``open_subject``.
    """
    subject = open_subject(model, options, watch)
    if not isinstance(subject.task, SequenceClassification):
        wanted = f"a sequence classifier: {why} looks at labels"
        raise TaskError(f"a model for the task {subject.task.name}", wanted=wanted, try_=without)
    return subject, subject.task


def _load(model: Any, options: TraceOptions, *, task: str) -> Loaded:
    allow = {REMOTE_CODE: options.trust_remote_code, PICKLE_WEIGHTS: options.allow_pickle_weights}
    return load_model(
        model,
        dtype=options.dtype,
        device=HOST if options.fsdp else options.device,
        task=task,
        attention=options.attention,
        allow=[name for name, allowed in allow.items() if allowed],
    )


def _spread(loaded: Loaded, options: TraceOptions) -> Loaded:
    """With ``fsdp`` the model in shards over all ranks, and on this one's device.

    Raises:
        OptionError: a live model that is sharded already, without ``fsdp``: every rank would do all the work and write.
    """
    if not options.fsdp:
        if any(hasattr(p, "full_tensor") for p in loaded.model.parameters()):
            raise OptionError("a model whose parameters are spread over processes", wanted="fsdp", try_="fsdp=True")
        return loaded
    return over_ranks(loaded, options.device)


def check_task(spec: str) -> str:
    """The name of a task, which may be followed by settings; refused before anything is loaded.

    Raises:
        OptionError: no such task (lists the tasks), or a setting that it does not have.
    """
    name, given = split_spec(spec, what="task")
    if name == "auto":
        return name
    if name not in task_names():
        raise OptionError(f"unknown task {name!r}", wanted="a task of whence", try_=did_you_mean(name, task_names()))
    read_settings(name, getattr(get_task(name), "of", None), given, what="task")
    return name


def _as_recorded(loaded: Loaded, options: TraceOptions, record: Record) -> dict[str, Any]:
    """Settings of the rows' encoding that the record knows, the task has, and the user did not give."""
    asked, given = split_spec(options.task, what="task")
    known = settings_of(getattr(get_task(loaded.task if asked == "auto" else asked), "of", None))
    told = {name: value for name, value in record.row_settings().items() if name in known and name not in given}
    return {name: value for name, value in told.items() if value != known[name].default}


def make_task(loaded: Loaded, options: TraceOptions, record: Record | None = None) -> Task:
    """The task that fits the model, with its tokenizer, its length limit and the settings after its name.

    Args:
        loaded: the model.
        options: ``task`` among them.
        record: of its training; a recorded β of preferences is used where none is given.

    Raises:
        TaskError: a task that cannot be set up from a model and options alone.
    """
    asked, given = split_spec(options.task, what="task")
    name = loaded.task if asked == "auto" else asked
    make = getattr(get_task(name), "of", None)
    if record is not None and name == "preference" and "beta" in record.loss:
        given = {"beta": str(record.loss["beta"]), **given}
    if make is None:
        raise TaskError(
            f"task {name!r} needs settings that only Python can give",
            wanted="a task object",
            try_=f"whence.attribute(..., task={get_task(name).__name__}(...))",
        )

    def load(spec: str) -> nn.Module:
        return _load(spec, options, task=name).model

    setup = Setup(loaded.model, loaded.tokenizer, max_length(loaded, options), load, loaded.extra)
    return make(setup, **read_settings(name, make, given, what="task"))


def max_length(loaded: Loaded, options: TraceOptions) -> int | None:
    """Most tokens of a row: as asked, else the smaller of what tokenizer and positions can take."""
    if options.max_length is not None:
        return options.max_length
    own = getattr(loaded.tokenizer, "model_max_length", None)
    positions = loaded.about.get("model", {}).get("max_positions")
    limits = [n for n in (own, positions) if isinstance(n, int) and 1 < n < 10**7]
    return min(limits, default=None)


def open_rows(subject: Subject, spec: Any, *, what: str, name: str = "") -> Material:
    """Read, encode and plan one side.

    Args:
        subject: whose task encodes the rows.
        spec: anything ``read_rows`` takes.
        what: ``train`` or ``query``. Questions must all be usable; training rows may be quarantined.
        name: what to call it in results; by default what the user wrote.

    Raises:
        DataError, TaskError: nothing usable, or more unusable rows than allowed.
    """
    options = subject.options
    allowed = options.bad_rows_allowed if what == "train" else 0
    reading = ReadOptions(columns=options.columns, max_bad_rows=allowed, source=what)
    rows = read_rows(spec, options=reading) if what == "train" else _read_questions(spec, reading)
    task = _encoder(subject) if what == "train" else subject.task
    examples, bad = encode_rows(task, rows.rows)
    examples = _prepared(subject, examples)
    quarantine = (*rows.quarantine, *bad)
    check_bad_rows(quarantine, len(rows.ids), allowed)
    if not examples:
        raise DataError(f"no usable row in {name or spec}", wanted="at least one row with a loss")
    plan = plan_batches([example.length for example in examples], token_budget=options.batch_tokens)
    source = LiveGradients(
        subject.loaded.model,
        subject.task,
        examples,
        plan,
        subject.layers,
        ranks=subject.loaded.ranks,
        shelve="activations" in options.offload,
    )
    material = Material(name or spec_name(spec), rows, tuple(examples), quarantine, source, encoded_by=task)
    _note_rows(material, what, subject.watch)
    return material if what != "train" else _of_training(subject, material)


def _encoder(subject: Subject) -> Task:
    """The task by which training encoded its rows: as recorded, where the user did not say otherwise."""
    told, task = subject.as_recorded, subject.task
    if not told or not is_dataclass(task) or isinstance(task, type):
        return task
    said = ", ".join(f"{name} = {value}" for name, value in told.items())
    subject.watch.note("record", f"recorded  training rows are encoded with {said}", **told)
    return replace(task, **told)


def _of_training(subject: Subject, material: Material) -> Material:
    """The rows with what is known of the training they belong to: the true N, and whether they are encoded as then.

    Raises:
        DataError: they are encoded otherwise.
        OptionError: a ``train_size`` below the number of rows.
    """
    compared = None
    if subject.record is not None:
        compared = compare(subject.record, material.rows.ids, material.examples)
        said = f"{compared.same} of {compared.looked} compared rows are encoded as then"
        subject.watch.note("record", f"recorded  {subject.record.done:,} steps · {said}", **compared.about())
    size = subject.options.train_size or (0 if compared is None else compared.train_size)
    if subject.options.train_size is not None and size < len(material.examples):
        raise OptionError(
            f"train_size = {size} with {len(material.examples):,} rows",
            wanted="the number of rows that the model was trained on, these among them",
        )
    return replace(material, train_size=size, recorded=compared)


def _prepared(subject: Subject, examples: Sequence[Example]) -> list[Example]:
    """What only a model can say of the rows, said once (the reference model's log-probabilities of a preference)."""
    prepare = getattr(subject.task, "prepare", None)
    if prepare is None:
        return list(examples)
    return prepare(subject.loaded.model, examples, token_budget=subject.options.batch_tokens)


def _read_questions(spec: Any, reading: ReadOptions) -> Rows:
    """Questions may use the training rows' column names or the usual ones."""
    try:
        return read_rows(spec, options=reading)
    except DataError:
        if not reading.columns:
            raise
    return read_rows(spec, options=replace(reading, columns={}))


def spec_name(spec: Any) -> str:
    """What the user wrote, as short text."""
    if isinstance(spec, Mapping):
        return ", ".join(str(key) for key in spec)
    if isinstance(spec, (list, tuple)):
        texts = [str(part) for part in spec if not isinstance(part, Mapping)]
        return ", ".join(texts) if texts else f"{len(spec)} rows given in Python"
    return str(spec) if not hasattr(spec, "column_names") else "a datasets.Dataset"


def _note_model(loaded: Loaded, layers: Layers, watch: Watcher) -> None:
    about = loaded.about["model"]
    adapter = " with adapter" if "adapter" in loaded.about else ""
    among = f", spread over {loaded.ranks.world} processes" if loaded.ranks is not None else ""
    watch.note(
        "model",
        f"model     {loaded.about['spec']}{adapter} · {about['class']} · {about['parameters']:,} parameters · "
        f"{about['dtype']} on {about['device']}{among} · attention {about['attention'] or 'its own'}",
        **{k: about[k] for k in ("class", "parameters", "dtype", "device", "attention")},
    )
    for note in layers.notes[1:] if layers.uncovered else layers.notes:  # the first repeats the line below
        watch.note("base", f"note      {note}")
    largest = ", ".join(f"{name} ({count:,})" for name, count in layers.uncovered[:2])
    watch.note(
        "layers",
        f"layers    {len(layers)} linear maps · {layers.covered:.1%} of the parameters"
        + (f" · not attributed: {largest}{' ...' if len(layers.uncovered) > 2 else ''}" if largest else ""),
        count=len(layers),
        coverage=layers.covered,
        names=list(layers.names),
    )


def _note_rows(material: Material, what: str, watch: Watcher) -> None:
    about = material.about()
    title = "rows     " if what == "train" else "questions"
    trained = about["loss_tokens"] / max(1, about["tokens"])
    said = f"{title} {about['used']:,} of {about['rows']:,} from {material.name} · shape {about['shape']} · "
    said += f"{about['tokens']:,} tokens, loss on {trained:.0%}"
    if about["truncated"]:
        said += f" · {about['truncated']:,} truncated"
    if material.quarantine:
        reasons = Counter(entry.code for entry in material.quarantine).most_common()
        said += f" · {len(material.quarantine)} quarantined: " + ", ".join(f"{code} ({n})" for code, n in reasons[:3])
        said += " ..." if len(reasons) > 3 else ""
    watch.note(what, said, **about)
    notes = {k: n for k, n in encoding_notes(material.examples).items() if k != "truncated"}
    if notes:
        watch.note("encoding", "note      " + ", ".join(f"{n:,} rows: {k}" for k, n in notes.items()), **notes)
