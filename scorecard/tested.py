"""R23: what the tests run, and what they notice. Mutants are counted in a process of their own, without whence."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scorecard.covered import COVERED, COVERING, ROOT, covered
from scorecard.mutants import keep, kept
from scorecard.outcome import Outcome, counted

RECORDED = Path(__file__).with_name("mutants.json")
LEAST_BRANCHES, LEAST_KILLED = 95.0, 80.0  # percent


def measured(count: int = 0, earlier: Path | None = None) -> Outcome:
    """R23: coverage, and the score of a sample of mutants: of ``count`` now, or the last that was recorded.

    Args:
        count: how many mutants; 0: those of ``mutants.json``.
        earlier: coverage that ``scorecard.mutants --covered`` left; by default it is counted now.
    """
    with tempfile.TemporaryDirectory() as place:
        found = kept(earlier) if earlier else covered(COVERED, COVERING, Path(place))
        told = Path(place) / "mutants.json"
        if count:
            keep(found, Path(place) / "covered.json")
            words = ("--count", str(count), "--covered", f"{place}/covered.json", "--json", str(told))
            command = [sys.executable, "-m", "scorecard.mutants", *words]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        score = _score(told if count else RECORDED)
    held = [found.branches >= LEAST_BRANCHES, not found.failed, *([score["score"] >= LEAST_KILLED] if score else [])]
    said = f"{found.branches:.1f} % of {found.count:,} branches, {found.whole:.1f} % with statements"
    if score:
        said += f"; {score['score']:.1f} % of mutants ({score['killed']} of {score['mutants']} noticed, "
        said += f"{score['equivalent']} judged to change nothing; counted {score['when']}, {score['commit']})"
    said += f"; tests: {found.failed}" if found.failed else ""
    weakest = dict(sorted(found.files.items(), key=lambda item: item[1])[:5])
    missing = "" if score else "mutation score (python -m scorecard.mutants --json scorecard/mutants.json)"
    facts = {"weakest": weakest, "tests": list(COVERING), "mutants": score}
    return counted(said, len(held), held.count(False), missing=missing, facts=facts)


def _score(path: Path) -> Mapping[str, Any]:
    """Of ``scorecard.mutants --json``, without the single verdicts; nothing where there is none."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return {name: value for name, value in found.items() if name != "verdicts"}
