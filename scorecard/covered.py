"""R23, first half: branches that the tests take, also in the processes that they fork and start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage import CoverageData

from scorecard.tests_run import QUIET, ROOT

COVERED = ("whence.store", "whence.report", "whence.tasks.rows", "whence.tasks.formats", "whence.tasks.sources",
           "whence.tasks.shapes", "whence.tasks.records", "whence.tasks.tokenising")  # fmt: skip
COVERING = ("tests/store", "tests/report", "tests/tasks", "tests/formats", "tests/test_resuming.py",
            "tests/test_indexing.py", "tests/test_caching.py", "tests/test_stages.py", "tests/cli/test_select.py",
            "tests/cli/test_index.py", "tests/reliability/test_damage.py",
            "tests/reliability/test_crews.py", "tests/test_indexing_ranks.py")  # fmt: skip
# a process that is killed says nothing: what only such a process runs does not count
SETTINGS = """
[run]
branch = true
parallel = true
data_file = {data}
source_pkgs =
    {modules}
patch =
    subprocess
    fork
    _exit
"""


@dataclass(frozen=True)
class Covered:
    """What the tests run.

    Attributes:
        branches: percent of the branches that are taken.
        count: how many branches there are.
        whole: percent of branches and statements.
        files: file -> percent.
        tests: file -> line -> tests that run it.
        seconds: test -> how long it takes.
        failed: what did not pass, as pytest says it.
    """

    branches: float
    count: int
    whole: float
    files: Mapping[str, float]
    tests: Mapping[str, Mapping[int, Sequence[str]]]
    seconds: Mapping[str, float]
    failed: str = ""


def covered(modules: Sequence[str], tests: Sequence[str], place: Path) -> Covered:
    """Run these tests over these modules, in a process of their own.

    Args:
        modules: packages and modules.
        tests: files, folders or names, as of pytest.
        place: an empty folder.
    """
    data, report, seconds = place / "data", place / "report.json", place / "seconds.json"
    settings = place / "coveragerc"
    settings.write_text(SETTINGS.format(data=data, modules="\n    ".join(modules)))
    env = {**os.environ, **QUIET, "WHENCE_TEST_SECONDS": str(seconds), "PYTHONPATH": str(ROOT)}
    pytest = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-p", "scorecard.named_tests")
    done = _coverage("run", *pytest, *tests, settings=settings, env=env)
    for words in (("combine",), ("json", "-q", "-o", str(report))):
        _coverage(*words, settings=settings, env=env).check_returncode()
    found = json.loads(report.read_text())
    total = found["totals"]
    return Covered(
        branches=100 * total["covered_branches"] / total["num_branches"],
        count=total["num_branches"],
        whole=total["percent_covered"],
        files={name: round(f["summary"]["percent_covered"], 1) for name, f in found["files"].items()},
        tests=_by_line(data, found["files"]),
        seconds=json.loads(seconds.read_text()) if seconds.is_file() else {},
        failed="" if done.returncode == 0 else _failed(done.stdout),
    )


def _coverage(verb: str, *words: str, settings: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coverage", verb, f"--rcfile={settings}", *words]
    return subprocess.run(command, cwd=ROOT, env=dict(env), capture_output=True, text=True, check=False)


def _failed(said: str) -> str:
    lines = said.strip().splitlines()
    return ", ".join(line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))) or lines[-1]


def _by_line(data: Path, files: Mapping[str, Any]) -> dict[str, dict[int, list[str]]]:
    """Tests that run each line; lines that are run only while importing, or only in other processes, have none."""
    read = CoverageData(str(data))
    read.read()
    found = {}
    for name in files:
        lines = read.contexts_by_lineno(str(ROOT / name))
        found[name] = {line: sorted(filter(None, tests)) for line, tests in lines.items()}
    return found
