"""A small trace, killed, told to stop and starved on the way: the same call again gives the tables of a whole one.

What a trace keeps for another try it keeps here after every batch, however little that saves.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

import whence
from folders import animal_rows, model_folder, write_rows
from reliability.harness import Count, fresh, run_forked, workload
from reliability.states import Failing, recorded
from reliability.sweeps import CODES
from whence import resuming
from whence.cli import main
from whence.store.run import MANIFEST
from whence.store.unfinished import FOLDER

QUESTION = {"prompt": "the cat sat on", "completion": " the mat ."}


@dataclass
class Heard:
    """A watcher that remembers what was taken from an unfinished run."""

    said: list[str] = field(default_factory=list)

    def note(self, kind: str, text: str, **_facts: Any) -> None:
        """Keep what is about resuming."""
        if kind in ("resumed", "unfinished"):
            self.said.append(text)

    def step(self, stage: str, done: int, total: int) -> None:
        """Progress."""


@dataclass(frozen=True)
class Trace:
    """One trace.

    Attributes:
        model: live model and tokenizer.
        rows: training rows.
        options: of ``whence.attribute``.
    """

    model: Any
    rows: list[dict[str, str]]
    options: Mapping[str, Any]

    def build(self, folder: Path) -> list[str]:
        """The run, in this process; what was taken."""
        keep_everything()
        heard = Heard()
        whence.attribute(self.model, train=self.rows, query=QUESTION, out=folder, watch=heard, **self.options)
        return heard.said


def trace(size: str = "small", **options: Any) -> Trace:
    """The rows and the model of the index workload."""
    work = workload(size)
    given = {"fit_rows": "all", "batch_tokens": work.options["batch_tokens"], **options}
    return Trace(work.model, work.rows, given)


def keep_everything() -> None:
    """For this process: a piece after every batch."""
    resuming.EVERY_SECONDS = resuming.LEAST_SECONDS = 0.0
    resuming.SHARE = float("inf")


def tables(folder: Path) -> dict[str, str]:
    """Name -> checksum of the numbers of a run, and what must be gone of it."""
    found = {p.name: p for p in sorted(folder.iterdir()) if p.suffix in (".parquet", ".jsonl")}
    left = [FOLDER] if (folder / FOLDER).exists() else []
    left += [p.name for p in folder.rglob("*.part")]
    return {name: xxhash.xxh3_128_hexdigest(p.read_bytes()) for name, p in found.items()} | dict.fromkeys(left, "")


def undisturbed(work: Trace, place: Path) -> dict[str, str]:
    """The tables of a run that nothing happened to and that kept nothing."""
    folder = place / "undisturbed"
    if not (folder / MANIFEST).exists():
        whence.attribute(work.model, train=work.rows, query=QUESTION, out=folder, **work.options)
    return tables(folder)


def again(work: Trace, folder: Path, whole: Mapping[str, str]) -> tuple[bool, bool]:
    """The same call over what is there: equal tables, and whether anything was taken."""
    told = folder.with_suffix(".said")
    ended = run_forked(lambda: told.write_text(json.dumps(work.build(folder))))
    said = json.loads(told.read_text()) if told.exists() else []
    told.unlink(missing_ok=True)
    return ended.code == 0 and tables(folder) == whole, any("taken from" in line for line in said)


def traces_killed(
    place: Path, *, size: str = "small", really: int = 40, every: int = 1, names: Sequence[str] = ()
) -> Count:
    """A trace killed at every disk point (every ``every``-th of its states), then the same call again.

    The folder as it is at a point is what SIGKILL leaves there; every ``really``-th point is also killed in truth.
    """
    wrong, tried, taken, killed = [], 0, 0, 0
    for name in names or OPTIONS:
        work, here = trace(size, **OPTIONS[name]), place / name
        here.mkdir()
        whole = undisturbed(work, here)
        points = recorded(work, here)  # type: ignore[arg-type]  # something with ``build``
        states = list(dict.fromkeys(point.state for point in points))[::every]
        for state in states:
            with fresh(here, "resume") as folder:
                shutil.copytree(here / "states" / state, folder)
                same, some = again(work, folder, whole)
                taken += some
                wrong += [] if same else [f"{name}: state {state}"]
        numbers = list(range(really // 2, len(points), really))
        for number in numbers:
            with fresh(here, "resume") as folder:
                ended = run_forked(lambda w=work, f=folder: w.build(f), faults_=f"kill@{number}")
                killed += ended.code == -signal.SIGKILL
                same, some = again(work, folder, whole)
                taken += some
                wrong += [] if same else [f"{name}: kill@{number}"]
        tried += len(states) + len(numbers)
        shutil.rmtree(here)
    facts = {"real_kills": killed, "went_on": taken, "wrong": wrong[:5]}
    return Count("R2", "a trace killed at a disk point, then the same call: tables equal", tried, len(wrong), facts)


OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "all": {"method": "ekfac"},
    "top": {"method": "kfac", "top_k": 3, "fit_rows": "auto"},
    "lengths": {"method": "ekfac", "normalise": "relative", "per_layer": True, "offload": "disk"},
}


def traces_told_to_stop(place: Path, *, points: tuple[int, ...] = (40, 90, 140)) -> Count:
    """``whence trace`` that SIGTERM reaches at a disk point: exit code 75, then the same command."""
    rows = write_rows(place / "rows.jsonl", animal_rows(16))
    command = ["trace", "--model", str(model_folder(place / "model")), "--data", str(rows), "--fit-rows", "all"]
    command += [
        "--batch-tokens",
        "26",
        "--prompt",
        QUESTION["prompt"],
        "--response",
        QUESTION["completion"],
        "--quiet",
        "-o",
    ]
    told = place / "code"

    def run(folder: Path) -> None:
        keep_everything()
        told.write_text(str(main.run([*command, str(folder)])))

    run_forked(lambda: run(place / "undisturbed"))
    whole, wrong = tables(place / "undisturbed"), []
    for number in points:
        with fresh(place, "stopped") as folder:
            run_forked(lambda f=folder: run(f), faults_=f"term@{number}")
            first = told.read_text()
            run_forked(lambda f=folder: run(f))
            if (first, told.read_text()) != ("75", "0") or tables(folder) != whole:
                wrong.append(f"term@{number}: {first}, then {told.read_text()}")
    return Count("R2", "SIGTERM in a trace, then the same command", len(points), len(wrong), {"wrong": wrong})


def traces_starved(place: Path, *, errors: tuple[str, ...] = ("ENOSPC",), every: int = 1) -> Count:
    """Disk operations of a trace fail: a typed error or (of what is only kept for another try) none, and resume."""
    work = trace(method="kfac")
    whole, results, wrong, tried = undisturbed(work, place), place / "results", [], 0
    for name in errors:
        failing = Failing(getattr(errno, name), "once", results)
        recorded(work, place, _every(failing, every))  # type: ignore[arg-type]
        for told in sorted(results.iterdir(), key=lambda p: int(p.stem)):
            found, tried = json.loads(told.read_text()), tried + 1
            fine = found["code"] in (0, CODES[name]) and (found["code"] == 0) == (not found["error"])
            with fresh(place, "resume") as folder:
                shutil.copytree(place / "states" / found["state"], folder)
                if not fine or not again(work, folder, whole)[0]:
                    wrong.append(f"{name} at {told.stem}: {found['error'][:200]}")
        shutil.rmtree(results)
    shutil.rmtree(place / "states")
    return Count("R3", "disk operations of a trace fail, then the same call", tried, len(wrong), {"wrong": wrong[:5]})


def _every(twin: Callable[[Any, int], None], step: int) -> Callable[[Any, int], None]:
    return lambda recorder, number: twin(recorder, number) if number % step == 0 else None
