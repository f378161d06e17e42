"""The public face: at most twenty names, pinned here, loaded on first use."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import whence
from architecture.tree import PACKAGE

PUBLIC = [
    "Batch",
    "Method",
    "Scores",
    "Task",
    "TraceOptions",
    "WhenceCallback",
    "WhenceError",
    "__version__",
    "absolute",
    "ask",
    "attribute",
    "build_index",
    "factored",
    "load",
    "relative",
    "self_influence",
    "unroll",
]


def test_names_are_pinned() -> None:
    assert whence.__all__ == PUBLIC
    assert dir(whence) == PUBLIC
    assert len(PUBLIC) <= 20


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_loads(name: str) -> None:
    assert getattr(whence, name) is getattr(whence, name)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'atribute'; public names: .*attribute"):
        _ = whence.atribute


def test_no_name_is_also_a_module() -> None:
    """Importing ``whence.report`` sets ``whence.report``: a function of that name would be lost."""
    rooms = {path.stem for path in PACKAGE.iterdir()}
    assert not rooms & set(PUBLIC)


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = _run("import sys, whence; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])")
    assert heavy == "[]"


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_import_is_quick() -> None:
    """Start of Python included; processor time, best of three, so that a busy machine does not fail it."""
    took = []
    for _ in range(3):
        before = _cpu_seconds_of_children()
        _run("import whence")
        took.append(_cpu_seconds_of_children() - before)
    assert min(took) < 0.5, f"import whence takes {min(took):.2f} s"


def test_reading_results_needs_no_torch() -> None:
    loaded = _run("import sys, whence.results, whence.errors; print('torch' in sys.modules)")
    assert loaded == "False"


def test_rendering_a_report_needs_no_torch() -> None:
    loaded = _run("import sys, whence.report; print([m for m in ('torch', 'transformers') if m in sys.modules])")
    assert loaded == "[]"
