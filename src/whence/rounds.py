"""Rounds of ``mixture`` with training between them: influence, weights, a new sample, a model trained on it, and again.

The training is the user's own: a command or any function that is given the rows and leaves a model. Everything is kept
in one folder, so that a run that was stopped goes on where it was::

    mix/
    ├── rounds.json         model, rows, questions and settings: all that must match
    ├── round-1/            the mixture of this round, as one round alone writes it
    ├── model-1/            what the training left
    ├── trained-1.json      that it ended, on which rows, and the reference loss afterwards
    ├── round-2/ ...
    └── weights.json  report.html  selection.json       the whole
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from whence.errors import DataError, OptionError, StoreError
from whence.evaluate.command import filled, run_words
from whence.options import TraceOptions, trace_options
from whence.pipeline import open_rows, open_subject, spec_name
from whence.questions import answered
from whence.select.account import Account, Table, chart
from whence.select.lines import write_counted
from whence.select.origins import open_places
from whence.store import atomic
from whence.store.provenance import environment
from whence.store.run import claimed
from whence.watch import Silent, Watcher
from whence.weighing import UNITS, WEIGHTS, Mixing, Mixture, mixture_for
from whence.written import RECORD, write_account

PLAN = "rounds.json"
FORMAT = "whence rounds 1"
MODEL_FILES = ("config.json", "adapter_config.json")
MEASURED = (
    "The reference loss is that of the questions which the weights are chosen by: a model can become better at these "
    "very questions alone. Judge the last model on others."
)

Train = Callable[[Path, Path, int], Any]


@dataclass(frozen=True)
class Rounds:
    """How often, where, and who trains.

    Attributes:
        out: folder of everything; a run that was stopped goes on from what is there.
        count: rounds; each ends with a training.
        command: words with ``{rows}`` (file of the mixed rows) and ``{out}`` (an empty folder for the model), perhaps
            also ``{seed}``, ``{round}`` and ``{model}`` (the model before). Run without a shell.
        function: instead: (file of the mixed rows, an empty folder, seed) -> the model in any form that
            ``whence.attribute`` takes, or None when it lies in the folder. A model in memory is trained again when the
            run goes on another time.
        mixing: of every round; ``after`` says where the first one takes the weights up.
    """

    out: str | Path
    count: int = 2
    command: str = ""
    function: Train | None = None
    mixing: Mixing = field(default_factory=Mixing)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"{self.count} rounds", wanted="at least 1")
        if bool(self.command) == (self.function is not None):
            wanted = "your training command, or a function that trains"
            raise OptionError("rounds without training" if not self.command else "two ways to train", wanted=wanted)
        missing = [place for place in ("{rows}", "{out}") if self.command and place not in self.command]
        if missing:
            raise OptionError(
                f"command {self.command!r} has no {' and no '.join(missing)}",
                wanted="words that say where the rows are and where the model goes",
                try_='--train-command "python train.py --data {rows} --seed {seed} --output {out}"',
            )


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        before: source -> weight before; ``weights`` after; ``pulled`` as in ``Mixture``.
        rows: source -> rows in the mixture.
        loss: mean reference loss after training on it, in nats a question.
    """

    before: Mapping[str, float]
    weights: Mapping[str, float]
    pulled: Mapping[str, float]
    rows: Mapping[str, int]
    loss: float


@dataclass(frozen=True)
class Remixed:
    """All rounds.

    Attributes:
        rounds: in order.
        loss: mean reference loss of the model given, before any of them.
        model: the last one, as ``whence.attribute`` takes it.
        account: what was done and why.
        folder: where everything is.
    """

    rounds: tuple[Round, ...]
    loss: float
    model: Any
    account: Account
    folder: Path

    @property
    def weights(self) -> Mapping[str, float]:
        """Source -> times its rows, in the end."""
        return self.rounds[-1].weights

    def write(self, folder: str | Path) -> tuple[Path, ...]:
        """The weights, the page and the record of all rounds, into their folder or another one.

        Raises:
            StoreError: it cannot be written to.
        """
        place = Path(folder).expanduser()
        atomic.write_json(
            place / WEIGHTS, {"weights": dict(self.weights), "pulled": dict(self.rounds[-1].pulled)}
        )  # fmt: skip
        return write_account(place, self.account, [place / WEIGHTS], rounds=len(self.rounds))


@dataclass(frozen=True)
class _At:
    """What every step needs.

    Attributes:
        train, query: as given; ``options`` of the influence.
        rounds: how; ``folder``: its place.
        watch: hears about it.
    """

    train: Any
    query: Any
    options: TraceOptions
    rounds: Rounds
    folder: Path
    watch: Watcher


def mixture_rounds(
    model: Any,
    *,
    train: Any,
    query: Any,
    rounds: Rounds,
    watch: Watcher | None = None,
    options: TraceOptions | Mapping[str, Any] | None = None,
) -> Remixed:
    """``mixture`` several times, with a training after each.

    Args:
        model: as ``whence.attribute``; the influence of the first round is taken here.
        train: rows by source, as ``mixture_for``; every round takes the influence of all of them.
        query: the reference questions.
        rounds: how often, where, and who trains.
        watch: hears what is done.
        options: of the influence.

    Raises:
        OptionError: a command that cannot run or fails.
        DataError: a training that left no model.
        StoreError: a folder of other rounds, or of something else.
        WhenceError: as ``mixture_for``.
    """
    began = time.perf_counter()
    settings = trace_options(options, top_k=None, tokens=0, lexical=False, normalise="none", combine="mean")
    with claimed(rounds.out, kind="rounds") as folder:
        at = _At(train, query, settings, rounds, folder, watch or Silent())
        _settle(folder / PLAN, _plan(model, at))
        first, now, done = _begun(model, at), model, list[Round]()
        for number in range(1, rounds.count + 1):
            mixed = _mixed(now, number, at)
            now, loss = _trained(now, number, at)
            done.append(Round(**mixed, loss=loss))
        account = _told(done, first, at, seconds=time.perf_counter() - began)
        found = Remixed(tuple(done), first, now, account, folder)
        found.write(folder)
    return found


# --- one step after the other --------------------------------------------------------------------------------------


def _mixed(model: Any, number: int, at: _At) -> dict[str, Any]:
    """The mixture of one round: read if it is there, else made."""
    place = at.folder / f"round-{number}"
    after = at.rounds.mixing.after if number == 1 else at.folder / f"round-{number - 1}"
    if not (place / RECORD).is_file():
        at.watch.note(
            "round", f"round     {number} of {at.rounds.count}: influence at {spec_name(model)}", round=number
        )
        how = replace(at.rounds.mixing, after=after, seed=at.rounds.mixing.seed + number - 1)
        found = mixture_for(
            model, train=at.train, query=at.query, how=how, watch=at.watch, options=_own(at, number)
        )  # fmt: skip
        found.write(place)
        _as_one_file(found, place)
    told = _json(place / RECORD)["account"]["tables"][0]["rows"]
    weighed = _json(place / WEIGHTS)
    return {
        "before": {row[0]: float(row[3]) for row in told},
        "weights": weighed["weights"],
        "pulled": weighed["pulled"],
        "rows": {row[0]: int(row[5]) for row in told},
    }


def _own(at: _At, number: int) -> TraceOptions:
    """From the second round on, a record beside the model is of the mixed rows, not of those that are asked about."""
    return at.options if number == 1 else at.options.model_copy(update={"record": "ignore"})


def _as_one_file(found: Mixture, place: Path) -> None:
    """Sources of several forms have a file each; a training gets one of JSON lines."""
    if len(_rows_files(place)) > 1:
        plain = [replace(origin, path=None) for origin in found.opened.origins]
        write_counted(plain, found.counts.tolist(), place, "rows")


def _rows_files(place: Path) -> list[Path]:
    return [place / name for name in _json(place / RECORD)["files"] if name.startswith("mixed")]


def _rows_file(place: Path) -> Path:
    files = _rows_files(place)
    return files[0] if len(files) == 1 else place / "rows.jsonl"


def _trained(model: Any, number: int, at: _At) -> tuple[Any, float]:
    """The model trained on the round's rows and its reference loss: as recorded, or trained now."""
    noted, rows = at.folder / f"trained-{number}.json", _rows_file(at.folder / f"round-{number}")
    if noted.is_file():
        found = _json(noted)
        if found["model"] is not None:
            return str(at.folder / found["model"]), float(found["loss"])
    seed, began = at.rounds.mixing.seed + number - 1, time.perf_counter()
    out = _empty(at.folder, number)
    at.watch.note("train", f"train     round {number}: {rows.name} into {out.name}", round=number, out=str(out))
    trained = _train(at.rounds, rows, out, places={"seed": seed, "round": number, "model": spec_name(model)})
    loss = _loss(trained, at)
    kept = out.name if isinstance(trained, str) else None
    seconds = round(time.perf_counter() - began, 2)
    atomic.write_json(noted, {"model": kept, "loss": loss, "rows": atomic.checksum(rows), "seconds": seconds})
    return trained, loss


def _train(rounds: Rounds, rows: Path, out: Path, *, places: Mapping[str, Any]) -> Any:
    """Run the command or call the function.

    Raises:
        DataError: no model came of it.
    """
    if rounds.function is not None:
        given = rounds.function(rows, out, int(places["seed"]))
        if given is not None and not isinstance(given, (str, Path)):
            return given
        out = out if given is None else Path(given)
    else:
        run_words(filled(rounds.command, {"rows": rows, "out": out, **places}))
    if not any((out / name).is_file() for name in MODEL_FILES):
        there = ", ".join(sorted(path.name for path in out.iterdir())[:6]) if out.is_dir() else ""
        raise DataError(
            f"the training left no model in {out} ({there or 'nothing at all'})",
            wanted=f"a model folder with {' or '.join(MODEL_FILES)}",
            try_="save_model() or save_pretrained() into {out} at the end",
        )
    return str(out)


def _empty(folder: Path, number: int) -> Path:
    """A new folder for a model; what a training that was stopped has left stays where it is."""
    tries = 1
    while (place := folder / (f"model-{number}" if tries == 1 else f"model-{number}-try{tries}")).exists():
        tries += 1
    atomic.make_folder(place)
    return place


def _begun(model: Any, at: _At) -> float:
    """The reference loss of the model given."""
    noted = at.folder / "trained-0.json"
    if not noted.is_file():
        atomic.write_json(noted, {"model": None, "loss": _loss(model, at)})
    return float(_json(noted)["loss"])


def _loss(model: Any, at: _At) -> float:
    """Mean loss of the reference questions, in nats."""
    options = at.options.model_copy(update={"record": "ignore"})
    subject = open_subject(model, options, Silent())
    asked = open_rows(subject, answered(subject, at.query), what="query")
    return float(np.mean(list(asked.source.losses().values())))


# --- the folder ----------------------------------------------------------------------------------------------------


def _plan(model: Any, at: _At) -> dict[str, Any]:
    """What decides the outcome; the number of rounds may grow."""
    opened = {
        name: open_places(spec, columns=at.options.columns).rows.fingerprint
        for name, spec in (("rows", at.train), ("questions", at.query))
    }
    mixing = {**asdict(at.rounds.mixing), "after": at.rounds.mixing.after and str(at.rounds.mixing.after)}
    return atomic.plain(
        {
            "format": FORMAT,
            "model": spec_name(model),
            **opened,
            "mixing": mixing,
            "command": at.rounds.command,
            "options": {n: getattr(at.options, n) for n in ("method", "damping", "seed", "layers", "max_length")},
        }
    )


def _settle(path: Path, wanted: Mapping[str, Any]) -> None:
    """Write the plan of new rounds; compare with that of old ones."""
    if not path.is_file():
        atomic.write_json(path, wanted)
        return
    there = _json(path)
    differing = [
        f"{name}: {there.get(name)!r}, now {wanted[name]!r}" for name in wanted if there.get(name) != wanted[name]
    ]
    if differing:
        raise StoreError(
            f"{path.parent} holds other rounds ({'; '.join(differing[:3])})",
            wanted="the model, rows, questions, settings and command that they were begun with",
            try_="another folder with -o",
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}", wanted="a file of these rounds", try_=f"rm {path}"
        ) from error
    if not isinstance(found, dict):
        raise StoreError(f"{path} is no JSON object", wanted="a file of these rounds", try_=f"rm {path}")
    return found


# --- the account ---------------------------------------------------------------------------------------------------


def _told(done: Sequence[Round], first: float, at: _At, *, seconds: float) -> Account:
    names = list(done[0].weights)
    spots = [float(n) for n in range(len(done) + 1)]
    columns = ("source", "weight before", *(f"after round {n}" for n in range(1, len(done) + 1)), "rows in the last")
    weights = tuple(
        (name, done[0].before[name], *(one.weights[name] for one in done), done[-1].rows[name]) for name in names
    )
    pulled = tuple((name, *(f"{one.pulled[name]:+.4g}" for one in done)) for name in names)
    losses = [first, *(one.loss for one in done)]
    least = int(np.argmin(losses))
    best = "before any round" if not least else f"after round {least}"
    words = (
        f"{len(done)} rounds of influence, new weights, a new sample and a training on it. The mean reference loss was "
        f"{first:.4g} nats before and {losses[-1]:.4g} after the last; it was lowest {best}.",
        MEASURED,
    )
    tables = (
        Table("Weights", columns, weights),
        Table("Reference loss, nats a question", ("before", *(f"after round {n + 1}" for n in range(len(done)))),
              (tuple(round(loss, 6) for loss in losses),)),
        Table(f"Effect of each source, {UNITS[at.rounds.mixing.along]}",
              ("source", *(f"round {n + 1}" for n in range(len(done)))), pulled),
    )  # fmt: skip
    curves = {name: (spots, [done[0].before[name], *(one.weights[name] for one in done)]) for name in names}
    charts = (
        chart("Weights by round", ("round", "times the rows of the source"), curves),
        chart("Reference loss by round", ("round", "nats a question"), {"loss": (spots, losses)}),
    )
    about = {"plan": _json(at.folder / PLAN), "environment": environment(), "seconds": round(seconds, 2)}
    return Account("mixture", f"{len(done)} rounds over {len(names)} sources", words, tables, charts, about)
