"""Keeps a small model, run folder and index of today's format: every later version must still read them.

Run once for a released format: PYTHONPATH=tests python -m formats.make tests/formats/v1
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import whence
from folders import animal_rows, model_folder

QUESTION = {"prompt": "the cat sat", "completion": " on the mat ."}


def make(place: Path) -> None:
    """Write the three folders; no path of this machine is in them."""
    place.mkdir(parents=True, exist_ok=True)
    sys.argv = ["make"]
    with contextlib.chdir(place):
        _make(Path())


def _make(place: Path) -> None:
    model = model_folder(place / "model")
    rows = [{"id": f"row-{n}", **row} for n, row in enumerate(animal_rows())]
    whence.attribute(str(model), train=rows, query=QUESTION, out=place / "run", fit_rows="all")
    (place / "run" / "report.html").unlink()  # rendered from the rest
    whence.build_index(str(model), train=rows, out=place / "index", compression={"budget": 0.3}, fit_rows="all")
    for name in (".whence.lock", ".whence.owner"):
        for folder in ("run", "index"):
            (place / folder / name).unlink(missing_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
