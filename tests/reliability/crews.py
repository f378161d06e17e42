"""Several processes on one index: equal files whoever makes them, and nobody waits for the dead."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from reliability.harness import (
    Count,
    Ended,
    Workload,
    forked,
    fresh,
    result_of,
    run_forked,
    snapshot,
    stacks_of,
    workload,
)
from whence.store.crew import DONE, MEMBERS, VARIABLE
from whence.store.index_folder import MANIFEST, read_manifest, verify

PATIENCE = 6.0  # seconds without a sign of life, in these tests; the default is longer
LONGEST = 60.0  # until a job with a dead rank has ended


def ranks(work: Workload, folder: Path, count: int, *, fault: Callable[[int], str] = lambda rank: "") -> list[Ended]:
    """A build by so many ranks; how each of them ended. A rank that is stopped is killed when the others are gone."""
    pids = _begun(work, folder, count, fault=fault)
    return _awaited(pids, lost=lambda rank: fault(rank).startswith(("stop", "freeze")))


def _begun(
    work: Workload, folder: Path, count: int, *, fault: Callable[[int], str], patience: float = PATIENCE
) -> list[int]:
    """The ranks of one job."""
    job = {"WORLD_SIZE": str(count), "MASTER_PORT": str(time.monotonic_ns()), VARIABLE: str(patience)}
    return [
        forked(lambda: work.build(folder), faults_=fault(rank), environment={**job, "RANK": str(rank)})
        for rank in range(count)
    ]


def _begun_array(
    work: Workload,
    folder: Path,
    count: int,
    *,
    fault: Callable[[int], str] = lambda number: "",
    patience: float = PATIENCE,
) -> list[int]:
    """The tasks of an array."""
    return [
        forked(
            lambda n=n: work.build(folder, shard=f"{n}/{count}"),
            faults_=fault(n),
            environment={VARIABLE: str(patience)},
        )
        for n in range(count)
    ]


def _undisturbed(work: Workload, place: Path) -> tuple[dict[str, str], int]:
    """The files of one process, and the disk points that it passed."""
    with fresh(place, "undisturbed") as folder:
        points = run_forked(lambda: work.build(folder)).reached
        return snapshot(folder), points


def _awaited(pids: Sequence[int], *, lost: Callable[[int], bool] = lambda rank: False) -> list[Ended]:
    """How they ended. Those who are lost are killed when nobody else is left; of one that hangs it is said where."""
    count, ended = len(pids), dict[int, Ended]()
    until = time.monotonic() + LONGEST + 60
    while len(ended) < count and time.monotonic() < until:
        for rank, pid in enumerate(pids):
            if rank not in ended and _over(pid):
                ended[rank] = result_of(pid)
        silent = [rank for rank in range(count) if rank not in ended]
        if silent and all(map(lost, silent)):
            for rank in silent:  # as the launcher does
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.01)
    where = {rank: stacks_of(pids[rank]) for rank in set(range(count)) - set(ended)}
    for rank, stacks in where.items():
        os.kill(pids[rank], signal.SIGKILL)
        ended[rank] = replace(result_of(pids[rank]), error=f"HANG at {stacks}")
    return [ended[rank] for rank in range(count)]


def _over(pid: int) -> bool:
    """Has it ended? It is left to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def is_stopped(pid: int) -> bool:
    """Does it stand still? It is left to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


def same_bytes(place: Path, *, counts: Sequence[int] = (1, 2, 4), size: str = "small") -> Count:
    """R9: by 1, 2, 4 ranks, by shards of an array, after a kill with another number of ranks: the same files."""
    wrong, tried, shared = [], 0, 0
    for rows in ("all", "auto"):
        work = workload(size)
        work = replace(work, options={**work.options, "fit_rows": rows, "method": "ekfac"})
        whole, _ = _undisturbed(work, place)
        for name, build in _ways(work, counts):
            with fresh(place, "crew") as folder:
                ended = build(folder)
                tried += 1
                shared += sum(e.code == 0 for e in ended) > 1
                if any(e.code for e in ended) or snapshot(folder) != whole:
                    wrong.append(f"{rows}, {name}: {[(e.code, e.error) for e in ended]}")
    facts = {"with_several_processes": shared, "wrong": wrong[:5]}
    return Count("R9", "any number of ranks, shards of an array, resumed or not: files equal", tried, len(wrong), facts)


def _ways(work: Workload, counts: Sequence[int]) -> Iterator[tuple[str, Callable[[Path], list[Ended]]]]:
    for count in counts:
        yield f"{count} ranks", lambda folder, n=count: ranks(work, folder, n)
    yield "3 shards of an array", lambda folder: shards(work, folder, 3)
    for before, after in ((2, 1), (1, 2), (2, 4)):
        yield f"{before} ranks killed, then {after}", lambda f, b=before, a=after: _killed_then(work, f, b, a)


def _killed_then(work: Workload, folder: Path, before: int, after: int) -> list[Ended]:
    ranks(work, folder, before, fault=lambda rank: f"kill@{60 + 40 * rank}")
    return ranks(work, folder, after)


def shards(work: Workload, folder: Path, count: int) -> list[Ended]:
    """A build by an array."""
    return [result_of(pid) for pid in _begun_array(work, folder, count)]


def late_names(place: Path, *, seconds: float = 0.4, counts: Sequence[int] = (2, 3)) -> Count:
    """F50: on a disk where files of others appear late in listings, shards of an array make the same files."""
    work, wrong = workload("small"), []
    whole, _ = _undisturbed(work, place)
    for count in counts:
        with fresh(place, "late") as folder:

            def build(number: int, of: int = count, out: Path = folder) -> None:
                _hide_new_names(seconds)
                work.build(out, shard=f"{number}/{of}")

            patience = {VARIABLE: str(PATIENCE)}
            ended = [result_of(p) for p in [forked(lambda n=n: build(n), environment=patience) for n in range(count)]]
            run_forked(lambda f=folder: work.build(f))  # who comes alone tidies up
            if any(e.code for e in ended) or snapshot(folder) != whole:
                other = sorted({*snapshot(folder).items()} ^ {*whole.items()})
                wrong.append(f"{count}: {[(e.code, e.error[-1000:]) for e in ended]} {other}")
    return Count("F50", "names that appear late: files equal", len(counts), len(wrong), {"wrong": wrong})


def _hide_new_names(seconds: float) -> None:
    """For this process: what it has not seen in a listing for so long, it does not see yet."""
    listed, first = Path.glob, dict[Path, float]()

    def glob(self: Path, pattern: str) -> Iterator[Path]:
        now = time.monotonic()
        return (path for path in listed(self, pattern) if now - first.setdefault(path, now) >= seconds)

    Path.glob = glob  # type: ignore[method-assign]


DEATHS = ("kill", "stop", "freeze", "exit")
PHASES = {"at the start": 12, "in the fit": 70, "in the shards": 120}


def rank_death(
    place: Path,
    *,
    kinds: Sequence[str] = DEATHS,
    counts: Sequence[int] = (2,),
    phases: Sequence[str] = tuple(PHASES),
    dead: Sequence[int] = (),
) -> Count:
    """R12: one rank is killed, stopped, frozen or fails: the others end in time and name it; then another number
    of ranks finishes the files.

    Every rank (or those in ``dead``) of every count dies in every way in every phase.
    """
    work = workload("small")
    whole, _ = _undisturbed(work, place)
    each = [(count, rank) for count in counts for rank in (dead or range(count))]
    cases = [(kind, *who, phase) for kind in kinds for who in each for phase in phases]
    wrong, slowest = [], 0.0
    for kind, count, victim, phase in cases:
        with fresh(place, "crew") as folder:
            fault = f"{'enospc' if kind == 'exit' else kind}@{PHASES[phase]}"
            began = time.monotonic()
            ended = ranks(work, folder, count, fault=lambda rank, v=victim, f=fault: f if rank == v else "")
            lasted = time.monotonic() - began
            slowest = max(slowest, lasted)
            others = [e for rank, e in enumerate(ended) if rank != victim]
            died = ended[victim].code != 0
            named = died and all(e.code == 75 and f"rank {victim} of {count}" in e.error for e in others)
            # one that died with nothing left to do, or never reached its fault, is missed by nobody; one that died
            # before the others came is missed, although they may have finished everything by then
            missed = died and not _was_done(folder, victim)
            again = ranks(work, folder, 3 if count == 2 else 1)
            fine = named or (not missed and all(e.code == 0 for e in others))
            if not fine or lasted > LONGEST or any(e.code for e in again) or snapshot(folder) != whole:
                told = [(e.code, e.error[-200:]) for e in ended]
                wrong.append(f"{kind} of rank {victim} of {count} {phase}: {told}, then {[e.code for e in again]}")
    facts = {"slowest_seconds": round(slowest, 1), "wrong": wrong[:5]}
    return Count("R12", "a dead rank: named in time by the others, then resumed", len(cases), len(wrong), facts)


def thawed(place: Path, *, every: int = 1) -> Count:
    """R12: somebody is suspended at a disk point until the others can do no more, then goes on: the same files.

    A rank for less than the patience of the others, a shard of an array for so long that they take its work.
    """
    small, wrong, tried, struck = workload("small"), [], 0, 0
    for rows, kind in itertools.product(("all", "auto"), ("rank", "shard")):
        # two stages, so that one can be overtaken
        work = replace(small, options={**small.options, "method": "ekfac", "fit_rows": rows})
        whole, points = _undisturbed(work, place)
        for at in range(1, points, every):
            with fresh(place, "crew") as folder:
                ended, was_stopped = _thawed_at(work, folder, kind, at)
                tried, struck = tried + 1, struck + was_stopped
                if any(e.code for e in ended) or snapshot(folder) != whole:
                    wrong.append(f"{rows}, {kind} at {at}: {[(e.code, e.error) for e in ended]}")
    facts = {"suspended": struck, "wrong": wrong[:5]}
    return Count("R12", "suspended, overtaken, then going on: the same files", tried, len(wrong), facts)


def _thawed_at(work: Workload, folder: Path, kind: str, at: int) -> tuple[list[Ended], bool]:
    """How the two ended, and whether the second got as far as the point."""
    fault = lambda number: f"stop@{at}" if number else ""  # noqa: E731
    if kind == "rank":
        pids = _begun(work, folder, 2, fault=fault)
    else:
        pids = _begun_array(work, folder, 2, fault=fault, patience=0.5)
    while not (stopped := is_stopped(pids[1])) and not _over(pids[1]):
        time.sleep(0.005)
    until = time.monotonic() + (PATIENCE / 4 if kind == "rank" else LONGEST)
    while stopped and time.monotonic() < until and not _over(pids[0]) and not _was_done(folder, 0):
        time.sleep(0.005)
    os.kill(pids[1], signal.SIGCONT)
    return _awaited(pids), stopped


def paused(place: Path, *, times: int = 3) -> Count:
    """R12: all ranks are suspended together for longer than their patience (a paused job), then go on: same files."""
    work, wrong = workload("small"), []
    whole, _ = _undisturbed(work, place)
    for number in range(times):
        with fresh(place, "crew") as folder:
            stop = f"stop@{60 + 20 * number}"
            pids = _begun(work, folder, 2, fault=lambda rank, s=stop: "" if rank else s, patience=4.0)
            while not is_stopped(pids[0]) and not _over(pids[0]):
                time.sleep(0.005)
            time.sleep(0.3)  # the other one waits by now
            os.kill(pids[1], signal.SIGSTOP)
            time.sleep(6.0)
            for pid in reversed(pids):
                os.kill(pid, signal.SIGCONT)
            ended = _awaited(pids)
            if any(e.code for e in ended) or snapshot(folder) != whole:
                wrong.append(f"{[(e.code, e.error) for e in ended]}")
    return Count("R12", "a job paused for longer than its patience", times, len(wrong), {"wrong": wrong})


def _was_done(folder: Path, rank: int) -> bool:
    """Had it said that nothing was left to do?"""
    told = folder / MEMBERS / f"rank-{rank}"
    if not told.exists():
        return (folder / MANIFEST).exists()
    text = told.read_text()  # empty between its making and the first sign
    return bool(text) and json.loads(text)["state"] == DONE


def array_death(place: Path, *, count: int = 3) -> Count:
    """R12: a process of an array is killed while it makes something: the others take its work and finish."""
    work, wrong = workload("small"), []
    whole, _ = _undisturbed(work, place)
    for at in (40, 90, 150):
        with fresh(place, "crew") as folder:
            pids = _begun_array(work, folder, count, fault=lambda n, k=f"kill@{at}": "" if n else k)
            _, *ended = [result_of(pid) for pid in pids]
            if any(e.code for e in ended) or snapshot(folder) != whole:
                wrong.append(f"killed at {at}: {[(e.code, e.error[-300:]) for e in ended]}")
    return Count("R12", "a dead process of an array: its work is taken by the others", 3, len(wrong), {"wrong": wrong})


def races(place: Path, *, builders: int = 10, reads: int = 200) -> Count:
    """R13: two builders at once, readers meanwhile: one wins, the other is told who holds it; nobody reads a half."""
    work, draw, wrong, seen = workload("small"), random.Random(0), [], 0
    whole, _ = _undisturbed(work, place)
    for number in range(builders):
        with fresh(place, "race") as folder:
            first = forked(lambda f=folder: work.build(f))
            time.sleep(draw.uniform(0, 0.3))
            second = forked(lambda f=folder: work.build(f))
            while seen < reads * (number + 1) // builders:
                problem = _read(folder, whole)
                seen += 1
                wrong += [problem] if problem else []
                time.sleep(0.002)
            ended = [result_of(first), result_of(second)]
            codes = sorted(e.code for e in ended)
            told = all("in use by process" in e.error and " since " in e.error for e in ended if e.code == 4)
            if codes not in ([0, 4], [0, 0]) or not told or snapshot(folder) != whole:
                wrong.append(f"race {number}: {[(e.code, e.error[-200:]) for e in ended]}")
    facts = {"reads": seen, "wrong": wrong[:5]}
    return Count("R13", "two builders and readers at once", builders + seen, len(wrong), facts)


def _read(folder: Path, whole: dict[str, str]) -> str:
    """A reader sees no index or all of it."""
    if not (folder / MANIFEST).exists():
        return ""
    try:
        body = read_manifest(folder)
        for name in body["files"]:
            verify(folder, body, name)
    except Exception as error:
        return f"a reader saw: {error}"
    return "" if set(body["files"]) <= set(whole) else "a reader saw other files"
