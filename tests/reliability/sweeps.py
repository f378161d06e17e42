"""The sweeps of the score-card over an index: each returns a ``Count``. ``place`` is an empty folder (tmpfs is best).

OMP_NUM_THREADS=1 PYTHONPATH=tests python -m reliability.sweeps kill_at_every_point ...
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from reliability.harness import (
    Count,
    Ended,
    Workload,
    forked,
    fresh,
    result_of,
    run_forked,
    shards_at,
    snapshot,
    workload,
)
from reliability.states import Failing, recorded
from whence.store.index_folder import MANIFEST

CODES = {"ENOSPC": 5, "EDQUOT": 5, "EIO": 5, "EMFILE": 5, "EACCES": 4}  # what a user is told, as an exit code


def truth(work: Workload, place: Path) -> dict[str, str]:
    """The files of an undisturbed build."""
    folder = place / "undisturbed"
    if not (folder / MANIFEST).exists():
        work.build(folder)
    return snapshot(folder)


def resumed(work: Workload, folder: Path, whole: dict[str, str]) -> tuple[bool, int]:
    """Build again over what is there; equal to the undisturbed files, and how many shards that were there changed."""
    before = shards_at(folder)
    ended = run_forked(lambda: work.build(folder))
    after = shards_at(folder)
    rewritten = sum(after.get(name) != written for name, written in before.items())
    return ended.code == 0 and snapshot(folder) == whole, rewritten


def kill_at_every_point(place: Path, *, size: str = "small", really: int = 7, every: int = 1) -> Count:
    """R2a, R2c: a build killed at every disk point (of its states every ``every``-th), then the same command again.

    The folder as it is at a point is what SIGKILL leaves there, so it is copied; every ``really``-th point is also
    killed in truth, and at every append half a line is left.
    """
    work = workload(size)
    whole = truth(work, place)
    points = recorded(work, place)
    wrong, most = [], 0
    states = list(dict.fromkeys(point.state for point in points))[::every]
    for state in states:
        with fresh(place, "resume") as folder:
            shutil.copytree(place / "states" / state, folder)
            same, rewritten = resumed(work, folder, whole)
            most = max(most, rewritten)
            wrong += [] if same else [state]
    killed = 0
    numbers = list(range(1, len(points) + 1, really))
    for fault in [f"kill@{n}" for n in numbers] + [f"tear@{n}" for n in _appends(work, place)[:: max(1, really // 2)]]:
        with fresh(place, "resume") as folder:
            ended = run_forked(lambda f=folder: work.build(f), faults_=fault)
            killed += ended.code == -signal.SIGKILL
            same, rewritten = resumed(work, folder, whole)
            most = max(most, rewritten)
            wrong += [] if same else [fault]
    shutil.rmtree(place / "states")
    facts = {
        "points": len(points), "states": len(states), "real_kills": killed,
        "most_shards_made_again": most, "wrong": wrong[:5],
    }  # fmt: skip
    if every == 1:
        return Count("R2a", "kill at every disk point, then resume: files equal", len(points), len(wrong), facts)
    what = f"{size} workload, kill at every {every}th state of {len(points)} points, then resume: files equal"
    return Count("R2a", what, len(states) + killed, len(wrong), facts)


def _appends(work: Workload, place: Path) -> list[int]:
    """Numbers of the points at which a line is about to be appended, as ``tear`` counts them."""
    from whence import faults

    told = place / "appends.json"

    def build() -> None:
        found: list[int] = []
        original = faults.point

        def point(half: object = None) -> None:
            original()
            if half is not None:
                found.append(faults.ARMED.reached)

        faults.point = point
        with fresh(place, "appending") as folder:
            work.build(folder)
        told.write_text(json.dumps(found))

    run_forked(build)
    return json.loads(told.read_text())


def kill_at_random(place: Path, *, count: int = 50, seed: int = 0, size: str = "small") -> Count:
    """R2b, R2c: SIGKILL from outside at a time drawn uniformly over the run, then the same command again."""
    work, draw = workload(size), random.Random(seed)
    whole = truth(work, place)
    with fresh(place, "pace") as folder:
        lasting = run_forked(lambda: work.build(folder)).seconds
    wrong, killed, most = [], 0, 0
    for number in range(count):
        with fresh(place, "resume") as folder:
            pid = forked(lambda f=folder: work.build(f))
            time.sleep(draw.uniform(0, 0.9 * lasting))
            os.kill(pid, signal.SIGKILL)
            killed += result_of(pid).code == -signal.SIGKILL
            same, rewritten = resumed(work, folder, whole)
            most = max(most, rewritten)
            wrong += [] if same else [number]
    facts = {"killed": killed, "most_shards_made_again": most, "wrong": wrong[:5]}
    return Count("R2b", "SIGKILL at a random time, then resume: files equal", count, len(wrong), facts)


def failing_writes(
    place: Path, *, errors: Sequence[str] = ("ENOSPC",), kinds: Sequence[str] = ("once", "forever"), every: int = 1
) -> Count:
    """R3: the k-th disk operation fails (once, and from there on), for all k or every ``every``-th: error, resume."""
    work = workload("small")
    whole = truth(work, place)
    wrong, tried = [], 0
    states: set[str] = set()
    for name in errors:
        for kind in kinds:
            results = place / f"{name}-{kind}"
            failing = Failing(getattr(errno, name), kind, results)
            recorded(work, place, lambda r, n, twin=failing: twin(r, n) if n % every == 0 else None)
            for told in sorted(results.iterdir(), key=lambda p: int(p.stem)):
                found, case = json.loads(told.read_text()), f"{name} {kind} at {told.stem}"
                tried += 1
                states.add(found["state"])
                typed = found.get("code") == CODES[name] and found.get("kind") in ("ResourceError", "StoreError")
                own = [part for part in found.get("left", ()) if part not in found.get("before", ())]
                if not typed or own or (name == "ENOSPC" and "bytes needed" not in found["error"]):
                    wrong.append(f"{case}: {found.get('error', '')[:200]} {own}")
            shutil.rmtree(results)
    for state in states:
        with fresh(place, "resume") as folder:
            shutil.copytree(place / "states" / state, folder)
            if not resumed(work, folder, whole)[0]:
                wrong.append(f"state {state} does not resume")
    shutil.rmtree(place / "states")
    facts = {"states": len(states), "errors": list(errors), "wrong": wrong[:5]}
    return Count(
        "R3",
        f"disk operations fail ({', '.join(errors)}; {', '.join(kinds)}): typed error, resume equal",
        tried,
        len(wrong),
        facts,
    )


def cold_kills(place: Path, *, count: int = 20, seed: int = 1) -> Count:
    """R2b: as ``kill_at_random``, with the command line as processes of their own."""
    command, draw = cold_command(place), random.Random(seed)
    run_cold([*command, str(place / "cold-undisturbed")])
    whole = snapshot(place / "cold-undisturbed")
    began = time.monotonic()
    with fresh(place, "pace") as folder:
        run_cold([*command, str(folder)])
    lasting = time.monotonic() - began
    wrong = []
    for number in range(count):
        with fresh(place, "cold") as folder:
            process = subprocess.Popen([*command, str(folder)], **_quiet())
            time.sleep(draw.uniform(0.4 * lasting, lasting))  # before that it only imports
            process.kill()
            process.wait()
            run_cold([*command, str(folder)])
            wrong += [] if snapshot(folder) == whole else [number]
    return Count("R2b", "SIGKILL of the command line, then the same command: files equal", count, len(wrong), {})


def cold_command(place: Path, size: str = "small") -> list[str]:
    """``whence index`` of the workload, but for the folder at its end."""
    work, model = workload(size), place / "model"
    if not model.exists():
        work.model[0].save_pretrained(model)
        work.model[1].save_pretrained(model)
        (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in work.rows))
    options = work.options
    command = ["--model", str(model), "--data", str(place / "rows.jsonl"), "--fit-rows", str(options["fit_rows"])]
    command += ["--method", options["method"], "--batch-tokens", str(options["batch_tokens"])]
    return [sys.executable, "-m", "whence", "index", *command, "--budget", str(options["compression"]["budget"]), "-o"]


def run_cold(command: Sequence[str], *, within: float = 120, **environment: str) -> Ended:
    """A command to its end."""
    began = time.monotonic()
    done = subprocess.run(command, timeout=within, check=False, **_quiet(**environment))
    return Ended(done.returncode, error=done.stderr.decode(errors="replace"), seconds=time.monotonic() - began)


def _quiet(**environment: str) -> dict:
    extra = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, **extra}}
