"""Run named tests once, and say of each name how many of its cases passed."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Cases:
    """Cases of one test: passed, failed, skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Cases) -> Cases:
        return Cases(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    @property
    def held(self) -> bool:
        """At least one case ran and none failed."""
        return self.passed > 0 and self.failed == 0


def run_tests(names: Iterable[str], report: Path, *, timeout: int = 3600) -> dict[str, Cases]:
    """Node ids without parameters -> their cases; a name that does not exist has none.

    Args:
        names: ``tests/file.py::test_name``.
        report: where pytest writes what happened.
        timeout: seconds after which the rest counts as not run.
    """
    wanted = sorted({name for name in names if _defined(name)})
    command = [
        sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "--timeout=900", f"--junitxml={report}",
        *wanted,
    ]  # fmt: skip
    env = {**os.environ, **QUIET}
    try:
        subprocess.run(command, cwd=ROOT, env=env, timeout=timeout, check=False, stdout=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {}
    return read_report(report)


def _defined(name: str) -> bool:
    """A test of that name is in that file; pytest would refuse the whole list for one that is not."""
    file, _, test = name.partition("::")
    path = ROOT / file
    return path.is_file() and f"def {test}(" in path.read_text("utf-8")


def read_report(report: Path) -> dict[str, Cases]:
    """Cases by node id, from JUnit's XML."""
    if not report.is_file():
        return {}
    found: dict[str, Cases] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        name = f"{file}::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        one = Cases(failed=1) if kinds & {"failure", "error"} else Cases(skipped=1) if "skipped" in kinds else Cases(1)
        found[name] = found.get(name, Cases()) + one
    return found


def together(names: Iterable[str], found: Mapping[str, Cases]) -> tuple[int, int, list[str]]:
    """(cases, failed, names without a passed case); a skipped or missing test is not a pass."""
    cases = failed = 0
    absent = []
    for name in dict.fromkeys(names):
        seen = found.get(name, Cases())
        cases += seen.passed + seen.failed
        failed += seen.failed
        if not seen.passed and not seen.failed:
            absent.append(name)
    return cases, failed, absent
