"""A trace killed or told to stop: the same command again takes what was finished, and gives the same tables."""

from __future__ import annotations

from pathlib import Path

from reliability import traces


def test_killed_at_some_points(place: Path) -> None:
    found = traces.traces_killed(place, every=24, really=150, names=("all",))
    assert found.failed == 0 and found.tried >= 8, found
    assert found.facts["went_on"] >= 4 and found.facts["real_kills"] >= 1


def test_told_to_stop(place: Path) -> None:
    found = traces.traces_told_to_stop(place, points=(90,))
    assert found.failed == 0, found
