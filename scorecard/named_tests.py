"""A plugin of pytest under coverage: which test each line is run by, and how long every test takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import coverage
import pytest

VARIABLE = "WHENCE_TEST_SECONDS"  # names the file for the seconds
_seconds: dict[str, float] = {}
_running: list[str] = [""]
_process = os.getpid()


def test_of(nodeid: str) -> str:
    """The test function, whatever its parameters."""
    return nodeid.partition("[")[0]


test_of.__test__ = False  # type: ignore[attr-defined]


def _say() -> None:
    measuring = coverage.Coverage.current()
    if measuring is not None:
        measuring.switch_context(_running[0])


os.register_at_fork(after_in_child=_say)  # a forked process is measured anew, and knows no test


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _running[0] = test_of(item.nodeid)
    _say()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = test_of(report.nodeid)
    _seconds[name] = _seconds.get(name, 0.0) + report.duration


def pytest_sessionfinish() -> None:
    path = os.environ.get(VARIABLE)
    if path and os.getpid() == _process:
        Path(path).write_text(json.dumps(_seconds))
