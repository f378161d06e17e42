"""The score-card of reliability: counts R1-R24, prints a table, writes JSON and the page of the documentation.

python -m scorecard                       the counts of every change
SCORECARD=full python -m scorecard        the nightly counts
python -m scorecard --only R7,R8          some lines; the others stay as they were counted last
python -m scorecard --plans plans.json    with a comparison of plans and jobs (benchmarks.plan_accuracy --json)
python -m scorecard --covered FILE        with the coverage that scorecard.mutants counted (R23)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from scorecard import page  # noqa: E402 - the tests' own modules are found from here on
from scorecard.measures import messages  # noqa: E402
from scorecard.outcome import Outcome  # noqa: E402
from scorecard.properties import GOLDEN, PROPERTIES, Card, Property  # noqa: E402
from scorecard.tests_run import run_tests  # noqa: E402
from whence.store.provenance import environment  # noqa: E402


def counted(line: Property, card: Card) -> dict[str, Any]:
    """One line; what breaks the counting itself is a failure, not a pass."""
    began = time.perf_counter()
    try:
        outcome = line.count(card)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
        outcome = Outcome("fail", said, 1, 1)
    seconds = round(time.perf_counter() - began, 1)
    return {"id": line.id, "promise": line.promise, "target": line.target, "seconds": seconds, **asdict(outcome)}


def _waiting(line: Property) -> dict[str, Any]:
    """A line that has not been counted yet; it stays so when the run is stopped."""
    outcome = Outcome("not run", "", missing="not counted yet")
    stamp = {"when": "", "commit": "", "mode": ""}
    return {"id": line.id, "promise": line.promise, "target": line.target, "seconds": 0, **asdict(outcome), **stamp}


def _before(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of the last run; every line that it lacks is not run."""
    found = json.loads(path.read_text())["lines"] if path.is_file() else []
    known = {line["id"]: line for line in found}
    return {line.id: known.get(line.id) or _waiting(line) for line in PROPERTIES}


def main() -> int:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--plans", type=Path, default=ROOT / "scorecard" / "plans.json")
    parser.add_argument("--covered", type=Path)
    parser.add_argument("--json", type=Path, default=ROOT / "scorecard" / "reliability.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explanation" / "scorecard.md")
    parser.add_argument(
        "--review", action="store_true", help="Write the messages of R21 anew, to be read and committed."
    )
    given = parser.parse_args()
    if given.review:
        print(messages(GOLDEN, rewrite=True).measured)
        return 0
    wanted = [line for line in PROPERTIES if not given.only or line.id in given.only.split(",")]
    full, began = os.environ.get("SCORECARD") == "full", time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        names = [name for line in wanted for name in line.tests]
        found = run_tests(names, Path(place) / "report.xml") if names else {}
    card = Card(full, found, given.plans, given.covered)
    machine, mode = environment(threads=1), "full" if full else "pr"
    lines = _before(given.json) if given.only else {line.id: _waiting(line) for line in wanted}
    for line in wanted:
        stamp = {"when": time.strftime("%Y-%m-%d %H:%M"), "commit": str(machine["git"])[:10], "mode": mode}
        lines[line.id] = {**counted(line, card), **stamp}
        said = f"{lines[line.id]['measured']} {lines[line.id]['missing']}".strip()
        print(f"{line.id:<4} {lines[line.id]['status']:<8} {said}", flush=True)
        body = {"seconds": round(time.perf_counter() - began), "machine": machine, "lines": list(lines.values())}
        given.json.write_text(json.dumps(body, indent=1, default=str) + "\n")
        given.page.write_text(page.text(body), encoding="utf-8")
    print(page.summary(list(lines.values())))
    return 1 if any(line["status"] == "fail" for line in lines.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
