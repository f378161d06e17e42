"""The verbs. ``attribute`` is the main job: model, training rows and questions in, ``Scores`` out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whence.assemble import assemble, manifest
from whence.check import Checked, Finding, examine
from whence.checkpointed import attribute_checkpoints
from whence.curvature.base import Factors, Method, Problem, get_method
from whence.dampings import IMPLIED, read_study, settled
from whence.errors import OptionError
from whence.funnelling import check_funnel, exact_answers, narrowed
from whence.linalg.damping import Damping, parse_damping, relative
from whence.linalg.operators import Operator
from whence.options import TraceOptions, TraceRequest, command_line, trace_options
from whence.pipeline import open_rows, open_subject
from whence.present import frame, page
from whence.questions import answered, focused, pose, posed_views
from whence.results import RENDERERS, Scores
from whence.resuming import Resuming
from whence.scores.score import SelfInfluence, collect
from whence.scoring import blocks_of, check_losses, counted, fitted, measured
from whence.stages import Pretraining, attribute_stages
from whence.store import atomic
from whence.store.provenance import redacted, redacted_argv
from whence.store.run import add_file, claimed, load_scores, save_scores
from whence.tasks.base import Task
from whence.tasks.shapes import detect_shape
from whence.tokenwise import Sides, look_closer
from whence.watch import Silent, Watcher, is_first

REPORT = "report.html"
QUESTION = "question"  # source name of a question typed on the command line
PROBES = 8  # query gradients that the fit's split-half check looks at; more would only make a look slower


def attribute(
    model: Any,
    *,
    train: Any,
    query: Any,
    out: str | Path | None = None,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Scores:
    """Which training rows made the model answer like this?

    Args:
        model: folder, hub id, ``id@revision``, PEFT adapter folder, or a live ``(model, tokenizer)``.
        train: training rows: a path, several, a hub name, a ``datasets.Dataset`` or a list of dictionaries.
        query: questions, in any of those forms, or one dictionary such as ``{"prompt": ..., "completion": ...}``.
        out: folder for scores, provenance and report; it must be new, empty or an earlier run.
        watch: hears what is derived and how far the work is.
        options: a ``TraceOptions`` record or mapping.
        overrides: single options by name (``method="kfac"``, ``damping=whence.relative(0.01)``, ``top_k=100`` ...).
            ``method`` may be a ``Method`` and ``task`` a ``Task`` object. ``pretraining={"model": base, "data": rows}``
            (and perhaps ``alpha``) also asks the rows of the stage of training before this one.

    Returns:
        Scores with texts, word overlap and provenance.

    Raises:
        WhenceError: see ``whence.errors``; every message says what was got, wanted and what to try.
    """
    ask = _resolve(options, overrides, watch)
    return _run(ask, model, train, query, request=_request(model, train, query, out=out, ask=ask), out=out)


def trace(request: TraceRequest, *, watch: Watcher | None = None) -> Scores:
    """``attribute`` for a whole request record, as the command line and YAML files make it.

    Raises:
        WhenceError: as ``attribute``; OptionError when there is no question.
    """
    contrast = "contrast" if request.against is not None else None
    ask = _resolve(request.options, {"pretraining": _pretraining(request), "combine": contrast}, watch)
    scores = _run(ask, request.model, list(request.data), asked_of(request), request=request, out=request.out)
    if request.report and (is_first() or not request.options.fsdp):
        write_report(scores, request.report)
    return scores


def load(run: str | Path) -> Scores:
    """The scores of a finished run folder; every file is checked before it is used.

    Raises:
        StoreError: not a finished run, or a damaged one.
    """
    return load_scores(run)


def save(scores: Scores, folder: str | Path) -> Path:
    """Write scores and their report to a run folder.

    Raises:
        StoreError: a folder that is not ours, or is in use.
    """
    with claimed(folder) as place:
        save_scores(place, scores)
        _write_report(scores, place / REPORT)
        add_file(place, REPORT)
    return Path(folder)


def write_report(scores: Scores | str | Path, path: str | Path) -> Path:
    """Render the one-file HTML report of scores or of a finished run.

    Raises:
        StoreError: a run that is not finished or damaged, or a place that cannot be written to.
    """
    found = scores if isinstance(scores, Scores) else load_scores(scores)
    return _write_report(found, Path(path).expanduser())


def check(model: Any, rows: Any, *, options: TraceOptions | None = None, watch: Watcher | None = None) -> list[Finding]:
    """Measure the laws that attribution stands on, on this model and these rows.

    Raises:
        WhenceError: the model or the rows cannot be loaded at all.
    """
    watch = watch or Silent()
    subject = open_subject(model, options or TraceOptions(), watch)
    material = open_rows(subject, rows, what="train")
    checked = Checked(subject.loaded.model, subject.task, material.examples, subject.layers)
    return examine(checked, step=lambda done, total: watch.step("laws", done, total))


def self_influence(
    model: Any,
    *,
    train: Any,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
    **overrides: Any,
) -> dict[str, float]:
    """Each training row's influence on itself, by row id: how much the model owes its fit of a row to that very row.

    Raises:
        WhenceError: as ``attribute``.
    """
    ask = _resolve(options, overrides, watch)
    subject = open_subject(model, ask.options, ask.watch, task=ask.task)
    material = open_rows(subject, train, what="train")
    problem = Problem(material.source, ask.options.fisher, ask.options.seed)
    ask = replace(ask, damping=settled(ask, subject, material))
    operator = ask.method.operator(fitted(ask, material, None)[0], problem)
    visitor = SelfInfluence(blocks_of(operator.power(-1, ask.damping), ask.method))
    with counted(ask.watch, "self-influence", len(material.examples)) as count:
        material.source.with_progress(count).visit(visitor)
    return {id_: visitor.values.get(id_, float("nan")) for id_ in material.rows.ids}


@dataclass(frozen=True)
class _Ask:
    """What is asked of the pipeline."""

    method: Method
    damping: Damping
    options: TraceOptions
    task: Task | None
    watch: Watcher
    pretraining: Pretraining | None = None
    study: Mapping[str, Any] | None = None
    resuming: Resuming | None = None


def _resolve(
    options: TraceOptions | Mapping[str, Any] | None, overrides: Mapping[str, Any], watch: Watcher | None
) -> _Ask:
    """Objects given in place of names are used as they are and recorded by name."""
    named = {k: v for k, v in overrides.items() if v is not None}
    given, task, before = named.get("method"), named.get("task"), named.pop("pretraining", None)
    if isinstance(given, Method):
        named["method"] = given.spec
    measured_before = named["damping"] if isinstance(named.get("damping"), Damping) else None
    if measured_before is not None:
        named["damping"] = str(measured_before)
    if task is not None and not isinstance(task, str):
        named.pop("task")
    settings, study = _studied(trace_options(options, **named))
    method = given if isinstance(given, Method) else get_method(settings.method)
    settings = _with_defaults(settings, method)
    own_task = None if isinstance(task, str) else task
    before = Pretraining(**before) if isinstance(before, Mapping) else before
    damping = measured_before or _damping_for_now(settings, before is not None)
    return _Ask(method, damping, settings, own_task, watch or Silent(), before, study)


def _with_defaults(settings: TraceOptions, method: Method) -> TraceOptions:
    """The method's own choices where the user made none."""
    own = {"normalise": method.normalise} if settings.normalise == "none" else {}
    if method.damping and "damping" not in settings.model_fields_set:
        own["damping"] = method.damping
    return settings.model_copy(update=own)


def _damping_for_now(settings: TraceOptions, staged: bool) -> Damping:
    """The damping as far as it is known before the model is: one that is to be measured is the customary one yet."""
    if not settings.damping.startswith(IMPLIED):
        return parse_damping(settings.damping)
    if staged or settings.checkpoints:
        raise OptionError(
            f"damping {settings.damping} over {'two stages' if staged else 'checkpoints'}",
            wanted="one training, from a starting model to the model",
            try_="--damping relative:0.1",
        )
    return relative()


def _studied(options: TraceOptions) -> tuple[TraceOptions, Mapping[str, Any] | None]:
    """The file of a damping study stands for the value it recommends; the report shows its table."""
    if not options.damping.endswith(".json"):
        return options, None
    study = read_study(options.damping)
    return options.model_copy(update={"damping": study["recommended"]["damping"]}), study


def _pretraining(request: TraceRequest) -> Pretraining | None:
    if (request.pretrained is None) != (not request.pretrained_data):
        raise OptionError(
            "pretrained without pretrained_data" if request.pretrained else "pretrained_data without pretrained",
            wanted="both: the base model and rows that it was trained on",
            try_="--pretrained ./base --pretrained-data rows.jsonl",
        )
    if request.pretrained is None:
        return None
    return Pretraining(request.pretrained, list(request.pretrained_data), request.alpha, request.pretrained_size)


def asked_of(request: TraceRequest) -> Any:
    """The request's question files, and the one typed in its fields."""
    files: dict[str, Any] = {}
    for place in request.query:
        name = Path(place).name.partition(".")[0]  # as a file given alone is called
        files[place if name in files or "=" in place else name] = place
    if request.response is not None and request.prompt is not None:
        sides = [request.response, *([] if request.against is None else [request.against])]
        return {**files, QUESTION: [{"prompt": request.prompt, "completion": said} for said in sides]}
    if request.prompt is not None and request.options.generate and not files:
        return [{"prompt": request.prompt}]
    if request.response is not None:
        return {**files, QUESTION: [{"text": request.response}]}
    if request.prompt is not None or not files:
        raise OptionError(
            "no question" if request.prompt is None else "a prompt without a response",
            wanted="the text to explain: --prompt P --response R, or --query file.jsonl",
            try_='--prompt "Once upon a time" --response " there was a dragon."',
        )
    return list(request.query)


def _request(model: Any, train: Any, query: Any, *, out: Any, ask: _Ask) -> TraceRequest | None:
    """The request that would repeat this call from the command line; None when live objects are involved."""
    sides = [[part] if isinstance(part, (str, Path)) else part for part in (train, query)]
    named = all(isinstance(side, (list, tuple)) and all(isinstance(p, (str, Path)) for p in side) for side in sides)
    if not (named and isinstance(model, (str, Path)) and ask.task is None and ask.pretraining is None):
        return None
    data, asked = (tuple(str(part) for part in side) for side in sides)
    place = None if out is None else str(out)
    return TraceRequest(model=str(model), data=data, query=asked, out=place, options=ask.options)


def _run(
    ask: _Ask, model: Any, train: Any, query: Any, *, request: TraceRequest | None, out: str | Path | None
) -> Scores:
    """Claim the folder before spending time, compute, write. Of processes that work together only the first writes."""
    if out is None or (ask.options.fsdp and not is_first()):
        return _answered(ask, model, train, query)[0]
    with claimed(out) as folder:
        kept = Resuming(folder, ask.watch)
        scores, record = _answered(replace(ask, resuming=kept), model, train, query)
        said = {} if request is None else {"request": request.model_dump(exclude_defaults=True)}
        command = "" if request is None else redacted(command_line(request))
        scores = scores.with_(about={**scores.about, "command": command})
        save_scores(folder, scores, manifest={**said, "argv": redacted_argv(sys.argv), **record})
        _write_report(scores, folder / REPORT)
        add_file(folder, REPORT)
        kept.forget()
        ask.watch.note("out", f"written   {folder}", folder=str(folder))
    return scores


def _answered(ask: _Ask, model: Any, train: Any, query: Any) -> tuple[Scores, dict[str, Any]]:
    """Scores, with the study that chose the damping if there was one."""
    scores, record = _attribute(ask, model, train, query)
    if ask.study is None:
        return scores, record
    return scores.with_(about={**scores.about, "damping_study": ask.study}), record


def _attribute(ask: _Ask, model: Any, train: Any, query: Any) -> tuple[Scores, dict[str, Any]]:
    if ask.options.candidates is not None:
        check_funnel(ask)
    if ask.pretraining is not None:
        return attribute_stages(ask, ask.pretraining, model, train=train, query=questions_of(query))
    if ask.options.checkpoints is not None:
        return attribute_checkpoints(ask, model, train=train, query=questions_of(query))
    started = time.perf_counter()
    seconds: dict[str, float] = {}
    with _timed(seconds, "load"):
        subject = open_subject(model, ask.options, ask.watch, task=ask.task)
        trained = open_rows(subject, train, what="train")
        asked = focused(subject, open_rows(subject, answered(subject, questions_of(query)), what="query"))
        asked = measured(ask, asked)
        ask = replace(ask, damping=settled(ask, subject, trained))
    with _timed(seconds, "queries"):
        check_losses(asked)
        probe = collect(asked.source.sample(PROBES))
    kept = ask.resuming
    keeper = None if kept is None else kept.fit(ask, subject, trained, probe=probe.grads)
    factors, seconds["fit"] = fitted(ask, trained, probe, keeper)
    del probe, keeper
    with _timed(seconds, "precondition"):
        problem = Problem(trained.source, ask.options.fisher, ask.options.seed, asked.source)
        operator = ask.method.operator(factors, problem)
        inverse = operator.power(-1, ask.damping)
        queries = pose(subject, asked, inverse)
        factors = _with_solves(factors, inverse, ask.watch)
    narrow = None if ask.options.candidates is None else narrowed(ask, subject, trained, asked)
    with _timed(seconds, "score"):
        rows = trained if narrow is None else narrow.rows
        blocks = None if kept is None else kept.scores(ask, subject, rows, queries=queries)
        found = exact_answers(ask, narrow, trained, queries, inverse=inverse, blocks=blocks)
    with _timed(seconds, "tokens"):
        found |= look_closer(Sides(subject, trained, asked, inverse, queries), found)
    found["query_rows"] = posed_views(subject, asked)
    found["about"] = {"queries": dict(queries.held), **found.get("about", {})}
    seconds["total"] = time.perf_counter() - started
    record = manifest(subject, trained, asked, factors=factors, operator=operator, damping=ask.damping)
    return assemble(subject, trained, asked, found=found, factors=factors, seconds=seconds), record


def _with_solves(factors: Factors, inverse: Operator, watch: Watcher) -> Factors:
    """What iterative solves had to say, kept with the fit; one that fell short becomes a warning of the result."""
    reports: list[Mapping[str, Any]] = list(getattr(inverse, "reports", ()))
    if not reports:
        return factors
    for report in reports:
        watch.note("solve", f"solve     {report.get('reason', '')}")
    short = [str(r.get("reason")) for r in reports if set(r.get("statuses", ())) - {"converged"}]
    notes = [*factors.about.get("notes", ()), *short]
    return Factors(factors.tensors, {**factors.about, "solves": reports, "notes": notes})


def questions_of(query: Any) -> Any:
    """One question may be one dictionary; ``response`` is what a prompt's ``completion`` is called elsewhere."""
    rows = [query] if isinstance(query, Mapping) and detect_shape(_completed(query)) else query
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        return rows
    return [_completed(row) for row in rows]


def _completed(row: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt" in row and "response" in row and "completion" not in row:
        return {**{k: v for k, v in row.items() if k != "response"}, "completion": row["response"]}
    return dict(row)


def _write_report(scores: Scores, path: Path) -> Path:
    atomic.write_text(path, page(scores))
    return path


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


RENDERERS["report"] = write_report
RENDERERS["save"] = save
RENDERERS["notebook"] = frame
