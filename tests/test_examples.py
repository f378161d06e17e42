"""Every example runs to its last assertion."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    pytest.importorskip("matplotlib")
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out
