"""What whence costs, in passes (multiples of one plain forward and backward over the same rows), against its bars.

In one process, repeated and interleaved: the floor, EK-FAC with every row, the floor, EK-FAC with the converged fit.
Medians of the ratios are judged. Peak memory comes from a fresh process that only fits and scores.

Run: python -m benchmarks.passes [--data ../shared/data] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.engine import Parts, Sources, fit_and_score, open_sources
from benchmarks.floor import one_pass, peak_megabytes
from benchmarks.peers.compare import QUIET, REPOSITORY, spearman
from benchmarks.peers.measure import machine
from benchmarks.workload import WORK, Sizes, Workload, build, load_workload

SCORING = ("queries", "inverse", "scoring")


@dataclass(frozen=True)
class Bar:
    """A number to be reached; `above` says from which side."""

    name: str
    limit: float
    above: bool = False

    def line(self, value: float) -> str:
        """One line of the table."""
        met = value >= self.limit if self.above else value <= self.limit
        sign = ">=" if self.above else "<="
        return f"{self.name:44}{value:10.3f}   {sign} {self.limit:<8g}{'met' if met else 'MISSED'}"


BARS = {
    "covariance": Bar("covariance, every row (passes)", 1.1),
    "eigenvalues": Bar("eigendecomposition + eigenvalues (passes)", 1.4),
    "scoring": Bar("queries + inverse + scoring (passes)", 1.15),
    "default": Bar("fit + score, converged fit (passes)", 2.2),
    "spearman": Bar("converged fit, lowest per-query Spearman", 0.99, above=True),
    "peak_mb": Bar("peak memory, every row (MB)", 1000),
}


@dataclass(frozen=True)
class Repeat:
    """One round: seconds of the floors around the two runs, the parts of both, and how well their scores agree."""

    floors: tuple[float, float, float]
    full: Parts
    default: Parts
    agreement: np.ndarray

    def values(self) -> dict[str, float]:
        """The judged numbers of this round."""
        before, after = (self.floors[0] + self.floors[1]) / 2, (self.floors[1] + self.floors[2]) / 2
        full = {name: seconds / before for name, seconds in self.full.seconds.items()}
        return {
            "covariance": full["covariance"],
            "eigenvalues": full["eigendecomposition"] + full["eigenvalues"],
            "scoring": sum(full[name] for name in SCORING),
            "full": sum(full.values()),
            "default": sum(self.default.seconds.values()) / after,
            "spearman": float(self.agreement.min()),
            "spearman_mean": float(self.agreement.mean()),
        }


def one_repeat(sources: Sources, rows: np.ndarray) -> Repeat:
    """Floor, full run, floor, default run, floor."""
    model = sources.train.model
    first = one_pass(model, rows)
    full_scores, full = fit_and_score(sources, rows="all")
    second = one_pass(model, rows)
    scores, default = fit_and_score(sources, rows="auto")
    return Repeat((first, second, one_pass(model, rows)), full, default, spearman(scores, full_scores))


def peak_of_fresh_process(work: Path) -> float:
    """Peak MB of a process that fits and scores with every row, and does nothing else."""
    command = [sys.executable, "-m", "benchmarks.passes", "--only-memory", "--work", str(work)]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | QUIET, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def parts_table(repeats: list[Repeat]) -> str:
    """Where the passes go, medians over the repeats, with the rows that each stage read."""
    lines = [f"{'part':24}{'every row':>12}{'converged fit':>16}"]
    last = repeats[-1]
    for name in last.full.seconds:
        full = median(r.full.seconds[name] / r.floors[0] for r in repeats)
        default = median(r.default.seconds[name] / r.floors[1] for r in repeats)
        read = f"   ({last.default.rows[name]} rows)" if name in last.default.rows else ""
        lines.append(f"{name:24}{full:12.3f}{default:16.3f}{read}")
    return "\n".join(lines)


def report(values: Mapping[str, float], repeats: list[Repeat]) -> str:
    """The tables as printed."""
    floors = sorted(floor for r in repeats for floor in r.floors)
    head = f"floor: {median(floors):.2f} CPU seconds ({floors[0]:.2f} to {floors[-1]:.2f} over {len(floors)} runs)"
    bars = "\n".join(bar.line(values[name]) for name, bar in BARS.items() if name in values)
    return f"{head}\n\n{parts_table(repeats)}\n\n{bars}\n"


def measure(workload: Workload, repeats: int) -> tuple[dict[str, float], list[Repeat]]:
    """Medians of the judged numbers, and all rounds."""
    sources = open_sources(workload, workload.model())
    one_pass(sources.train.model, workload.rows[:64])  # the first batches of a process are slow
    rounds = [one_repeat(sources, workload.rows) for _ in range(repeats)]
    judged = [r.values() for r in rounds]
    values = {name: median(v[name] for v in judged) for name in judged[0]}
    return values | {"peak_mb": peak_of_fresh_process(workload.folder)}, rounds


def save(path: Path, values: Mapping[str, float], rounds: list[Repeat]) -> None:
    """Write everything measured, with the machine and versions."""
    details = [{"floors": r.floors, "full": vars(r.full), "default": vars(r.default), **r.values()} for r in rounds]
    bars = {name: bar.limit for name, bar in BARS.items()}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    found = {"when": when, "machine": machine(), "bars": bars, "medians": values, "rounds": details}
    path.write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(f"written: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with wikitext2/, used when there is no workload yet")
    parser.add_argument("--work", type=Path, default=WORK / "workload")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-memory", action="store_true", help="fit and score once and print the peak in MB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.work / "workload.json").exists():
        build(args.work, args.data, Sizes())
    workload = load_workload(args.work)
    if args.only_memory:
        fit_and_score(open_sources(workload, workload.model()), rows="all")
        print(peak_megabytes())
        return 0
    values, rounds = measure(workload, args.repeats)
    print(report(values, rounds))
    save(WORK / "passes.json", values, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
