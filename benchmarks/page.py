"""The documentation's page on speed, from what `benchmarks.passes` and `benchmarks.peers.compare` measured last.

Run: python -m benchmarks.page (after `make bench` and `make bench-peers`)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.passes import BARS
from benchmarks.peers.compare import Result, cases, read_result
from benchmarks.workload import WORK
from whence.evaluate.statistics import spearman

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "speed.md"
INTRODUCTION = """# Speed and memory

Everything is measured in *passes*: multiples of the CPU seconds of one plain forward and backward over the same rows in
the same process, one thread. The workload is a Llama of 4 layers and width 128 (28 linear maps, vocabulary 2,048) with
1,000 training rows of 128 WikiText-2 tokens and 32 questions, float32.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


def own_costs(found: dict) -> str:
    """The bars and what was measured."""
    rows = [
        [bar.name, f"{found['medians'][name]:.3f}", f"{'≥' if bar.above else '≤'} {bar.limit:g}"]
        for name, bar in BARS.items()
    ]
    read = found["rounds"][-1]["rows"]
    stages = " and ".join(f"{count} ({name})" for name, count in read.items())
    machine = found["machine"]
    return (
        f"## whence\n\n{table(['', 'measured', 'aim'], rows)}\n\n"
        f"The converged fit stopped by itself after {stages} rows. "
        f"Medians of {len(found['rounds'])} round(s), {found['when'][:10]}, {machine['cpu']}, "
        f"torch {machine['torch']}; measured by `make bench DATA=path`."
    )


def peers(results: list[Result]) -> str:
    """All libraries on the same rows, every row used in every fit."""
    rows = [
        [r.name, *(f"{r.times['passes'][p]:.2f}" for p in ("fit", "score", "total")), f"{r.times['peak_mb']:.0f}"]
        for r in results
    ]
    ours = {r.fisher: r for r in results if r.peer == "whence"}
    agreement = [
        f"{r.name} {rho.mean():.4f} (lowest question {rho.min():.4f})"
        for r in results
        if r.peer != "whence" and r.fisher in ours
        for rho in [spearman(ours[r.fisher].scores, r.scores)]
    ]
    return (
        "## Beside other libraries\n\nEK-FAC with every row used, the same damping and the Fisher named; each in an "
        f"environment of its own.\n\n{table(['', 'fit', 'score', 'total (passes)', 'peak MB'], rows)}\n\n"
        "Rank correlation of whence's scores with theirs at the same Fisher, mean over questions: "
        f"{'; '.join(agreement)}. `make bench-peers` sets all of it up and measures again."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=WORK)
    args = parser.parse_args()
    found = json.loads((args.work / "passes.json").read_text())
    results = [r for case in cases() if (r := read_result(*case, args.work / "peers")) is not None]
    PAGE.write_text("\n\n".join([INTRODUCTION.strip(), own_costs(found), peers(results)]) + "\n", encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
