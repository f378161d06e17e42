"""One index built under SLURM in many ways: arrays, steps, tasks cancelled, requeued, out of time, killed. Same bytes?

Run where `sbatch` works, into a folder that all nodes see:
python -m benchmarks.slurm_array --model ./model --data train.jsonl --out /shared/tried [--case array --case killed]

What stands behind -- goes to `whence index` (-- --shard-mb 0.2 --max-length 128), --sbatch to every submission
(--sbatch=--partition=short --sbatch=--gpus=1). Use rows for about a minute of work: cases strike in the middle of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.page import table
from whence import __version__
from whence.store.atomic import checksum

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "slurm.md"
LEFT_OUT = ("history.jsonl", ".whence.lock")  # who worked, when; and the lock itself, which is empty
GOING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SIGNALING")
LONGEST = 1800.0  # seconds for one submission
UNDER_WAY = 3  # shards that are there "in the middle"
# a task that ends or stops itself in the middle of its work: what bash becomes has the number of bash
STRIKE = """bash -c 'if [ "$SLURM_PROCID" = {rank} ] && mkdir {out}.struck; then
  (until [ "$(ls {out}/shard-*.safetensors 2>/dev/null | wc -l)" -ge {shards} ]; do sleep 0.1; done
   date +%s.%N > {out}.struck/at; kill -{signal} $$) & fi; exec "$@"' -""".replace("{shards}", str(UNDER_WAY))


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        case: what was done.
        said: states and exit codes as SLURM has them, and what else was measured.
        seconds: from the first submission to the end of the last.
        made: processes that made shards and came to the end.
        equal: every file but the history has the bytes of the reference; None for the reference itself.
    """

    case: str
    said: str
    seconds: float
    made: int
    equal: bool | None


@dataclass(frozen=True)
class Job:
    """What was submitted."""

    number: str
    began: float

    def tasks(self) -> list[dict[str, str]]:
        """The fields of every task, as `scontrol` knows them now."""
        told = _run("scontrol", "show", "job", "-o", self.number)
        found = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in told.splitlines()]
        return sorted(found, key=lambda task: task.get("ArrayTaskId", ""))

    def wait(self) -> str:
        """Until it is over; the state, exit code and signal of every task."""
        while any(task["JobState"] in GOING for task in self.tasks()):
            if time.monotonic() - self.began > LONGEST:
                raise TimeoutError(f"job {self.number} after {LONGEST:.0f} s: {self.tasks()}")
            time.sleep(0.5)
        return ", ".join(f"{task['JobState']} {task['ExitCode']}" for task in self.tasks())


@dataclass(frozen=True)
class Site:
    """Where, and what is run."""

    place: Path
    words: tuple[str, ...]
    flags: tuple[str, ...]

    def folder(self, name: str) -> Path:
        """Of an index; nothing is there yet."""
        out = self.place / name
        _run("rm", "-rf", str(out), f"{out}.struck")
        return out

    def index(self, out: Path) -> str:
        """The command, as a shell reads it."""
        return shlex.join([sys.executable, "-m", "whence", "index", *self.words, "-o", str(out)])

    def submit(self, name: str, *lines: str, flags: tuple[str, ...] = ()) -> Job:
        """A script of these lines, which ends with the code of the last."""
        script = self.place / f"{name}.sh"
        script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        log = f"--output={self.place}/{name}-%j.log"
        told = _run("sbatch", "--parsable", f"--job-name={name}", log, *self.flags, *flags, str(script))
        return Job(told.strip().partition(";")[0], time.monotonic())

    def array(self, out: Path, *, limit: str = "") -> Job:
        """Four tasks."""
        line = f"srun {self.index(out)} --shard $SLURM_ARRAY_TASK_ID/4"
        return self.submit(out.name, line, flags=(f"--array=0-3{limit}",))

    def step(self, out: Path, tasks: int, *, before: str = "", srun: str = "") -> Job:
        """One job of so many ranks; the log ends with the code of `srun` and when it ended."""
        line = f"srun --ntasks={tasks} {srun} {before} {self.index(out)}"
        told = 'code=$?; echo "ended $code $(date +%s.%N)"; exit $code'
        return self.submit(out.name, line, told, flags=(f"--ntasks={tasks}",))

    def log(self, job: Job) -> str:
        """Everything its tasks printed."""
        numbers = {task["JobId"] for task in job.tasks()}
        return "\n".join(path.read_text() for n in sorted(numbers) for path in self.place.glob(f"*-{n}.log"))


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def bytes_of(out: Path) -> dict[str, str]:
    """File -> checksum."""
    names = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in LEFT_OUT)
    return {str(path.relative_to(out)): checksum(path) for path in names}


def under_way(out: Path, job: Job) -> None:
    """Return in the middle of the work."""
    while len(list(out.glob("shard-*.safetensors"))) < UNDER_WAY:
        if all(task["JobState"] not in GOING for task in job.tasks()):
            raise RuntimeError(f"job {job.number} was over before it could be struck: {job.wait()}")
        time.sleep(0.1)


# --- cases: each yields what it has to say, one submission after the other -------------------------------------------

Case = Callable[[Site, Path], Iterator[str]]


def one(site: Site, out: Path) -> Iterator[str]:
    """A batch script without srun, in a job of two tasks: one process"""
    yield site.submit(out.name, f"exec {site.index(out)}", flags=("--ntasks=2",)).wait()


def array(site: Site, out: Path) -> Iterator[str]:
    """`--array=0-3`"""
    yield site.array(out).wait()


def one_by_one(site: Site, out: Path) -> Iterator[str]:
    """`--array=0-3%1`: one after the other"""
    yield site.array(out, limit="%1").wait()


def two_by_two(site: Site, out: Path) -> Iterator[str]:
    """`--array=0-3%2`: two at a time"""
    yield site.array(out, limit="%2").wait()


def cancelled(site: Site, out: Path) -> Iterator[str]:
    """`scancel` of one task in the middle; then the array again"""
    job = site.array(out)
    under_way(out, job)
    _run("scancel", f"{job.number}_1")
    yield job.wait()
    yield site.array(out).wait()


def all_cancelled(site: Site, out: Path) -> Iterator[str]:
    """`scancel` of the array in the middle, and the array again at once"""
    job = site.array(out)
    under_way(out, job)
    _run("scancel", job.number)
    again = site.array(out)
    yield job.wait()
    yield again.wait()


def requeued(site: Site, out: Path) -> Iterator[str]:
    """`scontrol requeue` of one task in the middle"""
    job = site.array(out)
    under_way(out, job)
    _run("scontrol", "requeue", f"{job.number}_1")
    yield job.wait()


def twice(site: Site, out: Path) -> Iterator[str]:
    """Two arrays at once, with the same numbers"""
    line = f"srun {site.index(out)} --shard $SLURM_ARRAY_TASK_ID/2"
    jobs = [site.submit(out.name, line, flags=("--array=0-1",)) for _ in range(2)]
    yield "; and ".join([job.wait() for job in jobs])


def retried(site: Site, out: Path) -> Iterator[str]:
    """A task of two is killed (SIGKILL) in the middle and started again by its script, before it is missed"""
    before = STRIKE.format(out=out, rank=0, signal="KILL")
    command = f"{site.index(out)} --shard $SLURM_ARRAY_TASK_ID/2"
    yield site.submit(out.name, f"srun {before} {command} || srun {command}", flags=("--array=0-1",)).wait()


def limit(site: Site, out: Path) -> Iterator[str]:
    """A task alone reaches `--time` in the middle; then the array"""
    # it stands still until then: SLURM counts in minutes, looks every half, and wakes whom it tells to end
    before = STRIKE.format(out=out, rank=0, signal="STOP")
    line = f"srun {before} {site.index(out)} --shard 0/4"
    job = site.submit(out.name, line, flags=("--array=0-0", "--time=1"))
    state, log = job.wait(), site.log(job)
    yield state + _ends(log) + f", {len(list(out.glob('shard-*.safetensors')))} shards there"
    yield site.array(out).wait()


def warned(site: Site, out: Path) -> Iterator[str]:
    """Told a minute before `--time` (`--signal=TERM@60`), a task requeues itself"""
    again = 'code=$?; [ $code -ne 75 ] || scontrol requeue "$SLURM_JOB_ID"; exit $code'
    lines = ('[ -n "$SLURM_RESTART_COUNT" ] || sleep 22', f"srun {site.index(out)}", again)
    flags = ("--time=2", "--signal=TERM@60", "--requeue", "--open-mode=append")
    job = site.submit(out.name, *lines, flags=flags)
    yield job.wait() + f", restarts {job.tasks()[0].get('Restarts')}" + _ends(site.log(job))


def step_of_2(site: Site, out: Path) -> Iterator[str]:
    """`srun -n 2`"""
    yield site.step(out, 2).wait()


def step_of_4(site: Site, out: Path) -> Iterator[str]:
    """`srun -n 4`"""
    yield site.step(out, 4).wait()


def killed(site: Site, out: Path) -> Iterator[str]:
    """`srun -n 4`, rank 1 killed (SIGKILL) in the middle; then `srun -n 2`"""
    yield from _struck(site, out, signal="KILL", srun="")


def stopped(site: Site, out: Path) -> Iterator[str]:
    """`srun -n 4 --kill-on-bad-exit=1`, rank 1 stopped (SIGSTOP) in the middle; then `srun -n 2`"""
    yield from _struck(site, out, signal="STOP", srun="--kill-on-bad-exit=1")


def _struck(site: Site, out: Path, *, signal: str, srun: str) -> Iterator[str]:
    before = STRIKE.format(out=out, rank=1, signal=signal)
    job = site.step(out, 4, before=before, srun=srun)
    state, log = job.wait(), site.log(job)
    ended = re.search(r"ended (\d+) ([\d.]+)", log)
    named = "named by the others" if re.search(r"rank 1 of 4 .*(dead|no sign of life)", log) else "NOT NAMED"
    after = float(ended[2]) - float((out.parent / f"{out.name}.struck" / "at").read_text()) if ended else float("nan")
    yield f"{state}, {named}, step over {after:.0f} s after"
    yield site.step(out, 2).wait()


def _ends(log: str) -> str:
    """How whence said that it was told to stop."""
    said = len(re.findall(r"whence: stopped; the same command can be run again", log))
    return f", `stopped` said by {said}"


CASES: dict[str, Case] = {
    case.__name__.replace("_", "-"): case
    for case in (
        one, array, one_by_one, two_by_two, cancelled, all_cancelled, requeued, twice, retried, limit, warned,
        step_of_2, step_of_4, killed, stopped,
    )
}  # fmt: skip


def tried(site: Site, name: str, reference: Path) -> Outcome:
    """One case, from an empty folder."""
    out, began = site.folder(name), time.monotonic()
    said = "; then ".join(CASES[name](site, out))
    seconds = time.monotonic() - began
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    equal = None if out == reference else bytes_of(out) == bytes_of(reference)
    made = len({entry["who"] for entry in history if entry["shards_made"]})
    return Outcome(CASES[name].__doc__ or name, said, round(seconds, 1), made, equal)


HEAD = """# Tried under SLURM

The same `whence index` under a real SLURM, in the ways that {doc}`../howto/many-processes` describes. *Bytes equal*:
every file but `history.jsonl` has the checksum that it has in the index of one process (the first line). Seconds
include waiting in the queue; a requeued task waits longest: SLURM holds it back until its old credential has expired.
"""


def page(found: dict[str, Any]) -> str:
    """The documentation's page."""
    facts, word = found["machine"], {None: "reference", True: "yes", False: "NO"}
    rows = [
        [o["case"], o["said"], f"{o['seconds']:.0f}", str(o["made"]), word[o["equal"]]]
        for o in found["outcomes"].values()
    ]
    head = [
        "what was done",
        "states and exit codes (code:signal)",
        "s",
        "made shards and came to the end",
        "bytes equal",
    ]
    measured = (
        f"{facts['slurm']}, {facts['nodes']}; {facts['cpu']}, torch {facts['torch']}, whence {facts['whence']}; "
        f"{facts['when']}.\n`whence index {facts['words']}`.\nWritten by `python -m benchmarks.slurm_array "
        "--model path --data path --out path --page`,\nwhich works wherever `sbatch` does."
    )
    return "\n".join([HEAD, table(head, rows), "", measured, ""])


def machine(words: list[str]) -> dict[str, str]:
    """What a figure needs beside it."""
    nodes = _run("sinfo", "-h", "-o", "%D").split()
    return {
        "slurm": "SLURM " + _run("sbatch", "--version").split()[-1],
        "nodes": f"{sum(map(int, nodes))} node(s)",
        "cpu": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "whence": __version__,
        "when": time.strftime("%Y-%m-%d"),
        "words": shlex.join(["--model", "...", "--data", "...", *words]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder that all nodes see")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only these (and those tried before)")
    parser.add_argument("--sbatch", action="append", default=[], help="a further word of sbatch")
    parser.add_argument("--page", action="store_true", help="write the documentation's page")
    parser.add_argument("words", nargs="*", help="further words of whence index, behind --")
    args = parser.parse_args()
    place = args.out.resolve()
    place.mkdir(parents=True, exist_ok=True)
    paths = ("--model", str(args.model.resolve()), "--data", str(args.data.resolve()))
    site = Site(place, (*paths, *args.words), tuple(args.sbatch))
    kept = place / "tried.json"
    found = json.loads(kept.read_text()) if kept.exists() else {"outcomes": {}}
    found["machine"] = machine(args.words)
    names = args.case or CASES
    if "one" not in found["outcomes"]:  # what all others are compared with
        names = ["one", *(name for name in names if name != "one")]
    for name in names:
        outcome = tried(site, name, place / "one")
        found["outcomes"][name] = asdict(outcome)
        kept.write_text(json.dumps(found, indent=2))
        print(f"{name}: {outcome}", flush=True)
    found["outcomes"] = {name: found["outcomes"][name] for name in CASES if name in found["outcomes"]}
    print(page(found))
    if args.page:
        PAGE.write_text(page(found), encoding="utf-8")
    return int(any(outcome["equal"] is False for outcome in found["outcomes"].values()))


if __name__ == "__main__":
    sys.exit(main())
