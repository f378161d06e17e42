"""What whence costs, in passes (multiples of one plain forward and backward over the same rows), against its bars.

In one process, repeated: EK-FAC with every row, then with the converged fit; the floor is measured between the batches
of both. Medians over the repeats are judged. Peak memory comes from a fresh process that only fits and scores.

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

from benchmarks.engine import Pace, Sources, fit_and_score, open_sources
from benchmarks.floor import one_pass
from benchmarks.peers.compare import QUIET, REPOSITORY
from benchmarks.peers.measure import machine
from benchmarks.workload import WORK, Workload, opened
from whence.evaluate.statistics import spearman

SCORING = ("queries", "scoring")


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
    "scoring": Bar("queries + scoring (passes)", 1.15),
    "default": Bar("fit + score, converged fit (passes)", 2.2),
    "spearman": Bar("converged fit, lowest per-query Spearman", 0.99, above=True),
    "peak_mb": Bar("peak memory, every row (MB)", 1000),
}


@dataclass(frozen=True)
class Repeat:
    """One round: passes of the parts of both runs, the floor, and how well the scores agree."""

    floor: float
    full: dict[str, float]
    default: dict[str, float]
    rows: dict[str, int]
    looks: dict[str, list]
    agreement: np.ndarray

    def values(self) -> dict[str, float]:
        """The judged numbers of this round."""
        full = self.full
        return {
            "covariance": full["covariance"],
            "eigenvalues": full["eigendecomposition"] + full["eigenvalues"],
            "scoring": sum(full[name] for name in SCORING),
            "full": sum(full.values()),
            "default": sum(self.default.values()),
            "spearman": float(self.agreement.min()),
            "spearman_mean": float(self.agreement.mean()),
        }


def one_repeat(sources: Sources, pace: Pace) -> Repeat:
    """Full run, default run, the floor between their batches."""
    count, before = len(pace.rows), (pace.seconds, pace.measured)
    full_scores, full = fit_and_score(sources, rows="all", pace=pace)
    scores, default = fit_and_score(sources, rows="auto", pace=pace)
    floor = (pace.seconds - before[0]) / (pace.measured - before[1]) * count
    agreement = spearman(scores, full_scores)
    return Repeat(floor, full.passes(count), default.passes(count), default.rows, default.looks, agreement)


def peak_of_fresh_process(work: Path) -> float:
    """Peak MB of a process that fits and scores with every row, and does nothing else."""
    command = [sys.executable, "-m", "benchmarks.engine", "--work", str(work)]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | QUIET, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def parts_table(repeats: list[Repeat]) -> str:
    """Where the passes go, medians over the repeats, with the rows that each stage read."""
    lines = [f"{'part':24}{'every row':>12}{'converged fit':>16}"]
    last = repeats[-1]
    for name in last.full:
        full, default = median(r.full[name] for r in repeats), median(r.default[name] for r in repeats)
        read = f"   ({last.rows[name]} rows)" if name in last.rows else ""
        lines.append(f"{name:24}{full:12.3f}{default:16.3f}{read}")
    return "\n".join(lines)


def report(values: Mapping[str, float], repeats: list[Repeat]) -> str:
    """The tables as printed."""
    floors = sorted(r.floor for r in repeats)
    head = f"floor: {median(floors):.2f} CPU seconds ({floors[0]:.2f} to {floors[-1]:.2f} over {len(floors)} repeats)"
    bars = "\n".join(bar.line(values[name]) for name, bar in BARS.items() if name in values)
    return f"{head}\n\n{parts_table(repeats)}\n\n{bars}\n"


def measure(workload: Workload, repeats: int) -> tuple[dict[str, float], list[Repeat]]:
    """Medians of the judged numbers, and all rounds."""
    sources = open_sources(workload, workload.model())
    pace = Pace(workload.model(), workload.rows)
    one_pass(pace.model, workload.rows[:64])  # the first batches of a process are slow
    rounds = [one_repeat(sources, pace) for _ in range(repeats)]
    judged = [r.values() for r in rounds]
    values = {name: median(v[name] for v in judged) for name in judged[0]}
    return values | {"peak_mb": peak_of_fresh_process(workload.folder)}, rounds


def save(path: Path, values: Mapping[str, float], rounds: list[Repeat]) -> None:
    """Write everything measured, with the machine and versions."""
    details = [vars(r) | r.values() | {"agreement": r.agreement.tolist()} for r in rounds]
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
    args = parser.parse_args()
    torch.set_num_threads(1)
    values, rounds = measure(opened(args.work, args.data), args.repeats)
    print(report(values, rounds))
    save(WORK / "passes.json", values, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
