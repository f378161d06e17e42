"""``whence plan``: what a trace or an index would cost on this machine, before it starts.

Everything is read and encoded, so that rows, tokens and what would be quarantined are facts; time, memory and disk come
from the real work on a few batches (``rehearsal``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from whence.api import asked_of, questions_of
from whence.curvature.base import Method, get_method
from whence.dampings import read_study
from whence.errors import DataError
from whence.indexing import Compression, Wish
from whence.linalg.damping import Damping, parse_damping
from whence.options import PlanOptions, TraceOptions, TraceRequest, plan_options, trace_options
from whence.pipeline import Material, Subject, open_rows, open_subject
from whence.plan.alternatives import alternatives
from whence.plan.laws import Cost
from whence.plan.meter import Meter, free_disk
from whence.plan.record import Disk, Step, padding
from whence.plan.room import room
from whence.planning.index import rehearse_index
from whence.planning.rehearsal import Rehearsal
from whence.planning.trace import rehearse_trace
from whence.questions import answered, focused
from whence.tasks.rows import check_bad_rows
from whence.watch import Silent, Watcher

EVERY_ROW = 10**9  # a plan reads bad rows too: it is there to say which they are
SHOWN = 20


def estimate(
    model: Any,
    *,
    train: Any,
    query: Any = None,
    plan: PlanOptions | Mapping[str, Any] | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    watch: Watcher | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """What ``attribute`` (with a query) or ``build_index`` (without) would cost on this machine.

    Args:
        model: as ``attribute``.
        train: training rows, likewise.
        query: questions, likewise; None plans an index.
        plan: ``job``, ``budget`` and ``scheme`` of an index, ``calibrate`` seconds; ``out`` is given by name.
        options: settings of the job.
        watch: hears what is derived.
        overrides: single options by name, and ``out``: where the job will write.

    Returns:
        Plain data: ``rows``, ``quarantine``, ``stages`` (seconds, CPU seconds, passes, peak bytes), ``disk``,
        ``problems`` (why the job would stop), ``alternatives``. ``seconds`` are None without calibration.

    Raises:
        WhenceError: the model or the rows cannot be opened at all, or an option cannot be.
    """
    given = plan if isinstance(plan, PlanOptions) else plan_options(**dict(plan or {}))
    out = overrides.pop("out", None)
    job = given.job if given.job != "auto" else "index" if query is None else "trace"
    if job == "trace" and query is None:
        asked_of(TraceRequest(model="", data=("",)))  # says what is missing
    wish = _wish(options, overrides, watch)
    found = _Planner(_whole(wish), given, job, None if out is None else str(out)).run(model, train, query)
    return {**found, "notes": [*found["notes"], _in_pieces(found)]} if wish.options.fsdp else found


def estimate_request(request: TraceRequest, plan: PlanOptions, *, watch: Watcher | None = None) -> dict[str, Any]:
    """``estimate`` for a command: the time of starting the program is part of it.

    Raises:
        WhenceError: as ``estimate``.
    """
    started = time.process_time()
    asks = request.prompt is not None or request.response is not None or bool(request.query)
    query = asked_of(request) if asks and plan.job != "index" else None
    overrides = {"combine": "contrast"} if request.against is not None else {}
    found = estimate(
        request.model, train=list(request.data), query=query, plan=plan, options=request.options, watch=watch,
        out=request.out, **overrides,
    )  # fmt: skip
    return _with_start(found, started)


def _with_start(found: dict[str, Any], seconds: float) -> dict[str, Any]:
    step = Step("start", Cost(seconds, seconds)).plain(1)
    whole = {
        name: None if found[name] is None else round(found[name] + seconds, 2) for name in ("seconds", "cpu_seconds")
    }
    return {**found, **whole, "stages": [step, *found["stages"]]}


def _wish(
    options: TraceOptions | Mapping[str, Any] | None, overrides: Mapping[str, Any], watch: Watcher | None
) -> Wish:
    """As ``attribute`` resolves its settings."""
    named = {k: v for k, v in overrides.items() if v is not None}
    given = named.get("method")
    if isinstance(given, Method):
        named["method"] = given.spec
    if isinstance(named.get("damping"), Damping):
        named["damping"] = str(named["damping"])
    settings = trace_options(options, **named)
    if settings.damping.endswith(".json"):
        settings = settings.model_copy(update={"damping": read_study(settings.damping)["recommended"]["damping"]})
    method = given if isinstance(given, Method) else get_method(settings.method)
    if settings.normalise == "none":
        settings = settings.model_copy(update={"normalise": method.normalise})
    return Wish(method, parse_damping(settings.damping), settings, watch or Silent())


def _whole(wish: Wish) -> Wish:
    """A plan is made by one process, which holds the whole model."""
    return replace(wish, options=wish.options.model_copy(update={"fsdp": False}))


def _in_pieces(found: Mapping[str, Any]) -> str:
    """What is otherwise where n processes share the model."""
    weights, factors, batch = (found[name] / 1e6 for name in ("model_bytes", "factor_bytes", "batch_bytes"))
    most = "factors and one batch" if not batch else f"the factors ({factors:,.1f} MB) and one batch ({batch:,.1f} MB)"
    return (
        "the figures are those of one process that holds the whole model. With fsdp each of n processes holds 1/n of "
        f"the weights ({weights:,.1f} MB), one block of them at a time, {most}; a pass over the rows takes 1/n of the "
        "time at best (the fit of an index half of it, with fit_rows auto): gathering the weights was not measured"
    )


@dataclass(frozen=True)
class _Planner:
    """One plan.

    Attributes:
        wish: settings of the job.
        plan: settings of the plan.
        job: trace or index.
        out: where the job will write; None: nowhere (a trace), or here (an index).
    """

    wish: Wish
    plan: PlanOptions
    job: str
    out: str | None

    def run(self, model: Any, train: Any, query: Any) -> dict[str, Any]:
        """Open everything, try a little, add up."""
        meter = Meter()
        with meter.reading() as loading:
            subject = open_subject(model, self.wish.options, self.wish.watch)
        meter = Meter(str(subject.loaded.about["model"]["device"]))
        with meter.reading() as reading:
            lenient = self.wish.options.model_copy(update={"max_bad_rows": float(EVERY_ROW)})
            trained = open_rows(replace(subject, options=lenient), train, what="train")
            asked = self._asked(subject, query) if self.job == "trace" else None
        rehearsal = Rehearsal(self.wish, subject, trained, asked, meter, self.plan.calibrate)
        rehearsal.step("load", loading)
        rehearsal.step("read", reading)
        problems = [problem for problem in (_too_bad(trained, self.wish.options),) if problem]
        if self.plan.calibrate > 0:
            problems += self._rehearsed(rehearsal)
        return self._answer(rehearsal, problems)

    def _asked(self, subject: Subject, query: Any) -> Material:
        return focused(subject, open_rows(subject, answered(subject, questions_of(query)), what="query"))

    def _rehearsed(self, rehearsal: Rehearsal) -> list[str]:
        """The job in small; what stops it would stop the job."""
        try:
            rehearsal.warm_up()
            if self.job == "trace":
                rehearse_trace(rehearsal)
            else:
                rehearse_index(rehearsal, Compression(self.plan.budget, self.plan.scheme))
        except (MemoryError, RuntimeError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not isinstance(error, MemoryError) and "memory" not in said:
                raise
            return [f"does not fit in memory: {said[:200]}"]
        return []

    def _answer(self, rehearsal: Rehearsal, problems: list[str]) -> dict[str, Any]:
        steps, trained = rehearsal.steps, rehearsal.trained
        about = trained.about()
        disk = self._disk(rehearsal)
        tried = self.plan.calibrate > 0
        peak = max((step.peak for step in steps), default=0)
        available = rehearsal.meter.available()
        found: dict[str, Any] = {
            "job": self.job,
            "rows": {**about, **padding(rehearsal.sizes, about["tokens"])},
            "questions": 0 if rehearsal.asked is None else len(rehearsal.asked.examples),
            "quarantine": _quarantine(trained),
            "model": {
                k: rehearsal.subject.loaded.about["model"][k] for k in ("class", "parameters", "dtype", "device")
            },
            "layers": {"count": len(rehearsal.subject.layers), "coverage": rehearsal.subject.layers.covered},
            "stages": [step.plain(len(trained.examples)) for step in steps],
            "passes": round(sum(step.rows for step in steps) / len(trained.examples), 2) if tried else None,
            "seconds": round(sum(step.cost.seconds for step in steps), 2) if tried else None,
            "cpu_seconds": round(sum(step.cost.cpu_seconds for step in steps), 2) if tried else None,
            "peak_bytes": peak or None,
            **rehearsal.held(),
            "available_bytes": available,
            "disk": disk.plain(),
            "problems": problems,
            "notes": [
                *rehearsal.notes,
                *_scope(self.wish.options),
                *self.wish.method.notes(rehearsal.subject.layers.sizes),
            ],
        }
        others = alternatives(found, self._settings(rehearsal)) if tried else []
        found["disk"] |= room(disk, others, rehearsal.row_bytes, rows=len(trained.examples))
        problems += [found["disk"]["verdict"]] if found["disk"].get("enough") is False else []
        return {**found, "alternatives": others}

    def _settings(self, rehearsal: Rehearsal) -> dict[str, Any]:
        """What the alternatives are alternatives to."""
        options = self.wish.options
        about = rehearsal.subject.loaded.about["model"]
        return {
            **options.model_dump(include={"method", "top_k", "candidates", "batch_tokens"}),
            "budget": self.plan.budget,
            "layers": dict(rehearsal.subject.layers.sizes),
            "dtype": str(about["dtype"]),
            "device": str(about["device"]),
        }

    def _disk(self, rehearsal: Rehearsal) -> Disk:
        if self.job == "trace" and self.out is None:
            return Disk({})
        return Disk(rehearsal.files, *free_disk(self.out or "."))


def _too_bad(trained: Material, options: TraceOptions) -> str:
    """Why the job would refuse the rows; "" when it would not."""
    try:
        check_bad_rows(trained.quarantine, len(trained.rows.ids), options.bad_rows_allowed)
    except DataError as error:
        return error.got.splitlines()[0] + f" (max_bad_rows = {options.max_bad_rows:g})"
    return ""


def _quarantine(trained: Material) -> dict[str, Any]:
    reasons = Counter(entry.code for entry in trained.quarantine)
    return {
        "rows": len(trained.quarantine),
        "reasons": dict(reasons.most_common()),
        "first": [asdict(entry) for entry in trained.quarantine[:SHOWN]],
    }


def _scope(options: TraceOptions) -> list[str]:
    """What the numbers leave out."""
    return ["of one checkpoint: every further one costs as much again"] if options.checkpoints is not None else []
