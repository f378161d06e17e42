"""What every peer's runner shares: reading the job, the stopwatch, and writing scores and timings.

A runner is a module with one function `attribute(job, clock) -> Q x N scores`; it calls `clock.lap("fit")` when the
curvature is fitted. The floor is measured in the same process, before and after.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.floor import one_pass, peak_megabytes
from benchmarks.workload import BATCH, WORK, Workload, load_workload

Fisher = Literal["sampled", "empirical"]
DAMPING = 0.1
"""Times the mean eigenvalue of each layer, for everybody."""


@dataclass(frozen=True)
class Job:
    """What a peer is asked to do; `scratch` is an empty folder for its files."""

    workload: Workload
    fisher: Fisher
    scratch: Path
    batch: int = BATCH


@dataclass
class Clock:
    """CPU and wall seconds of the parts of a run, in the order of their laps."""

    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    since: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Begin the first lap."""
        self.since = (time.process_time(), time.perf_counter())

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = (time.process_time(), time.perf_counter())
        self.cpu[name], self.wall[name] = now[0] - self.since[0], now[1] - self.since[1]
        self.since = now

    def split(self, name: str, cpu: float) -> None:
        """Book known CPU seconds of the running lap under `name`; the rest goes to the next lap."""
        self.cpu[name] = cpu
        self.since = (self.since[0] + cpu, self.since[1])


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}


def measured(job: Job, attribute: Callable[[Job, Clock], np.ndarray]) -> tuple[np.ndarray, dict[str, object]]:
    """Run one peer between two floors; returns its scores and its timings (seconds and passes)."""
    model = job.workload.model()
    floors = [one_pass(model, job.workload.rows)]
    clock = Clock()
    clock.start()
    scores = attribute(job, clock)
    clock.lap("score")
    floors.append(one_pass(model, job.workload.rows))
    floor = statistics.mean(floors)
    passes = {name: seconds / floor for name, seconds in clock.cpu.items()}
    passes["total"] = sum(passes.values())
    times = {"floor_cpu": floors, "cpu": clock.cpu, "wall": clock.wall, "passes": passes, "peak_mb": peak_megabytes()}
    return scores, times


def run(peer: str, packages: tuple[str, ...], attribute: Callable[[Job, Clock], np.ndarray]) -> int:
    """The main function of every runner."""
    parser = argparse.ArgumentParser(description=f"EK-FAC of the shared workload with {peer}")
    parser.add_argument("--work", type=Path, default=WORK / "workload")
    parser.add_argument("--out", type=Path, default=WORK / "peers")
    parser.add_argument("--fisher", choices=["sampled", "empirical"], default="sampled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    scratch = args.out / f"{peer}-{args.fisher}-scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    job = Job(load_workload(args.work), args.fisher, scratch)
    scores, times = measured(job, attribute)
    shutil.rmtree(scratch, ignore_errors=True)
    wanted = (len(job.workload.queries), len(job.workload.rows))
    if scores.shape != wanted or not np.isfinite(scores).all():
        raise SystemExit(f"{peer}: scores of shape {scores.shape}, wanted {wanted} and finite")
    about = {"peer": peer, "fisher": args.fisher, "versions": {p: version(p) for p in packages}, "machine": machine()}
    np.save(args.out / f"{peer}-{args.fisher}.npy", scores.astype(np.float32))
    (args.out / f"{peer}-{args.fisher}.json").write_text(json.dumps(about | times, indent=1) + "\n")
    print(json.dumps({"peer": peer, "fisher": args.fisher, "passes": times["passes"], "peak_mb": times["peak_mb"]}))
    return 0
