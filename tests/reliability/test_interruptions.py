"""Killed and starved at every point: the same command again gives the files of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from reliability import sweeps


def test_killed_at_every_point(place: Path) -> None:
    found = sweeps.kill_at_every_point(place, really=31)
    assert found.failed == 0 and found.tried >= 150, found
    assert found.facts["most_shards_made_again"] <= 1 and found.facts["real_kills"] >= 5


def test_killed_at_random_times(place: Path) -> None:
    found = sweeps.kill_at_random(place, count=10)
    assert found.failed == 0 and found.tried == 10, found
    assert found.facts["most_shards_made_again"] <= 1 and found.facts["killed"] >= 3


def test_a_full_disk_at_every_write(place: Path) -> None:
    found = sweeps.failing_writes(place, kinds=("once",))
    assert found.failed == 0 and found.tried >= 150, found
