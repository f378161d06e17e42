"""The training that was taken back, as tables: what ran, and what is said of how smooth it is."""

from __future__ import annotations

from typing import Any

from whence.report.unrolled import ROUGH, run_tables

RAN: dict[str, Any] = {
    "optimiser": "adamw", "steps": 30, "peak_rate": 0.0005, "parameters": 1234, "seed": 7, "states": 6,
    "trainings": 9.5, "repeated_within": 1e-9, "smoothness": None,
}  # fmt: skip
SMOOTH = {
    "rows": 4, "width": 0.25, "parameters": -0.125, "slope": 0.984, "left_slope": 1.5,
    "foretold": [0.5, -1.0, 2.0], "measured": [0.25, -1.5],
}  # fmt: skip


def test_what_ran_is_said_line_by_line() -> None:
    (table,) = run_tables(RAN)
    assert table.columns == ("what", "value")
    assert dict(table.rows) == {
        "optimiser": "adamw", "steps": 30, "peak learning rate": "0.0005", "parameters that move": 1234,
        "seed of the order": 7, "optimiser states in memory": 6, "cost, in trainings": 9.5,
        "the run repeats itself within": "1e-09",
    }  # fmt: skip
    assert "derivatives through all of these steps" in table.note


def test_smoothness_stands_in_a_table_of_its_own() -> None:
    ran, smooth = run_tables({**RAN, "smoothness": SMOOTH})
    assert ran == run_tables(RAN)[0] and smooth.title == "Is it smooth?"
    assert smooth.rows == (("question 1", 0.5, 0.25), ("question 2", -1.0, -1.5))  # as many as were measured
    assert smooth.note.startswith("4 rows weigh 0.25 more") and "agree to -0.12 of 1. " + ROUGH in smooth.note
    assert "0.98 times those foretold; without the strongest row 1.50 times." in smooth.note


def test_a_run_of_another_version_lacks_lines_and_breaks_nothing() -> None:
    ran, smooth = run_tables({"smoothness": {}})
    assert dict(ran.rows)["steps"] is None and dict(ran.rows)["peak learning rate"] == "0"
    assert smooth.rows == () and smooth.note.startswith("None rows weigh 0 more")
    assert len(run_tables({})) == 1
