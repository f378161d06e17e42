"""All libraries side by side on the same rows: passes, memory, and per-query rank correlation between every pair.

Runs each library in a fresh process of its own environment (make them with benchmarks.peers.set_up), keeps finished
results under `benchmarks/.work/peers/`, and prints the tables. Run: python -m benchmarks.peers.compare [--again]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.peers.set_up import PEERS, python_of
from benchmarks.workload import WORK, opened
from whence.evaluate.statistics import spearman

BAR = 0.995
REPOSITORY = Path(__file__).resolve().parents[2]
EMPIRICAL_ONLY = ("dattri_llm",)
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class Result:
    """One library with one Fisher: its timings and its Q x N scores."""

    peer: str
    fisher: str
    times: dict
    scores: np.ndarray

    @property
    def name(self) -> str:
        """Library, version and Fisher."""
        return f"{self.peer} {next(iter(self.times['versions'].values()))}, {self.fisher}"


def cases() -> list[tuple[str, str]]:
    """Every (library, Fisher) pair that exists."""
    pairs = [(peer, fisher) for fisher in ("sampled", "empirical") for peer in ("whence", *PEERS)]
    return [(peer, fisher) for peer, fisher in pairs if fisher == "empirical" or peer not in EMPIRICAL_ONLY]


def run_case(peer: str, fisher: str, *, work: Path, out: Path) -> bool:
    """Run one library in its environment; False (and its last words) when it fails."""
    python = Path(sys.executable) if peer == "whence" else python_of(peer)
    if not python.exists():
        print(f"{peer}: no environment; make it: python -m benchmarks.peers.set_up {peer}")
        return False
    print(f"running {peer}, {fisher} Fisher ...", flush=True)
    command = [str(python), "-m", f"benchmarks.peers.run_{peer}", "--fisher", fisher]
    command += ["--work", str(work), "--out", str(out)]
    done = subprocess.run(command, check=False, cwd=REPOSITORY, env=os.environ | QUIET, capture_output=True, text=True)
    if done.returncode:
        print(f"{peer}, {fisher}: failed\n{done.stderr[-2000:]}")
    return done.returncode == 0


def read_result(peer: str, fisher: str, out: Path) -> Result | None:
    """A finished result, or None."""
    path = out / f"{peer}-{fisher}.json"
    if not path.exists():
        return None
    return Result(peer, fisher, json.loads(path.read_text()), np.load(path.with_suffix(".npy")))


def times_table(results: list[Result]) -> str:
    """Fit, score and total in passes, and the peak memory, one line per result."""
    lines = [f"{'':34}{'fit':>8}{'score':>8}{'total':>8}{'floor s':>9}{'peak MB':>9}"]
    for result in results:
        passes = result.times["passes"]
        columns = "".join(f"{passes[part]:8.2f}" for part in ("fit", "score", "total"))
        floor = sum(result.times["floor_cpu"]) / len(result.times["floor_cpu"])
        lines.append(f"{result.name:34}{columns}{floor:9.1f}{result.times['peak_mb']:9.0f}")
    return "\n".join(lines)


def agreement_table(results: list[Result]) -> str:
    """Mean and lowest per-query Spearman of every pair; whence and kronfluence at equal Fisher carry the bar."""
    lines = [f"{'per-query Spearman':70}{'mean':>8}{'lowest':>8}"]
    for left, right in combinations(results, 2):
        rho = spearman(left.scores, right.scores)
        judged = {left.peer, right.peer} == {"whence", "kronfluence"} and left.fisher == right.fisher
        verdict = f"   bar {BAR}: {'met' if rho.mean() >= BAR else 'MISSED'}" if judged else ""
        lines.append(f"{left.name:34}| {right.name:34}{rho.mean():8.4f}{rho.min():8.4f}{verdict}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with wikitext2/, used when there is no workload yet")
    parser.add_argument("--work", type=Path, default=WORK / "workload")
    parser.add_argument("--out", type=Path, default=WORK / "peers")
    parser.add_argument("--again", nargs="*", metavar="LIBRARY", help="run again, all or these")
    args = parser.parse_args()
    opened(args.work, args.data)
    for peer, fisher in cases():
        again = args.again is not None and (not args.again or peer in args.again)
        if again or read_result(peer, fisher, args.out) is None:
            run_case(peer, fisher, work=args.work, out=args.out)
    found = [result for case in cases() if (result := read_result(*case, args.out)) is not None]
    print("\nCPU seconds in passes (one plain forward and backward over the same rows), one thread\n")
    print(times_table(found), agreement_table(found), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
