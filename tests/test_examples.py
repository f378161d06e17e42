"""The tutorial runs to its last assertion, and the notebook in the documentation is what the script makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/tutorial/look-closer.ipynb"


def _told(path: Path) -> list[tuple[str, str, list[str]]]:
    """Id, source and kinds of outputs of every cell."""
    return [(cell["id"], "".join(cell["source"]), [_kind(o) for o in cell.get("outputs", ())]) for cell in _cells(path)]


def _cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def _kind(output: dict[str, Any]) -> str:
    return next(iter(output.get("data", {"stream": ""})))


def test_the_tutorial_is_an_executed_notebook(tmp_path):
    for needed in ("matplotlib", "nbclient", "ipykernel"):
        pytest.importorskip(needed)
    again = tmp_path / "again.ipynb"
    command = [sys.executable, str(ROOT / "docs/notebook.py"), str(again)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert _told(again) == _told(NOTEBOOK), "make notebook"
    kinds = [kind for _, _, found in _told(again) for kind in found]
    assert kinds.count("image/png") == 2 and kinds.count("text/html") == 1


def test_the_committed_notebook_is_small_and_says_nothing_of_the_machine_it_ran_on():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert str(ROOT) not in text and str(Path.home() / ".cache") not in text and "Traceback" not in text
    frame = next(
        o["data"]["text/html"] for c in _cells(NOTEBOOK) for o in c.get("outputs", ()) if _kind(o) == "text/html"
    )
    assert 'sandbox="allow-scripts allow-downloads"' in "".join(frame)
