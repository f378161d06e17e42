"""Killed and starved at every point: the same command again gives the files of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from reliability import sweeps


def test_killed_at_every_point(place: Path) -> None:
    found = sweeps.kill_at_every_point(place, really=61)
    assert found.failed == 0 and found.tried >= 150, found
    assert found.facts["most_shards_made_again"] <= 1 and found.facts["real_kills"] >= 3


def test_killed_at_random_times(place: Path) -> None:
    found = sweeps.kill_at_random(place, count=8)
    assert found.failed == 0 and found.tried == 8, found
    assert found.facts["most_shards_made_again"] <= 1 and found.facts["killed"] >= 3


def test_a_full_disk_at_every_write(place: Path) -> None:
    found = sweeps.failing_writes(place, kinds=("once",))
    assert found.failed == 0 and found.tried >= 150, found


def test_other_failures_of_the_disk(place: Path) -> None:
    """EIO, EACCES and EMFILE, each at every 24th write; the score-card has them at every one."""
    found = sweeps.failing_writes(place, errors=("EIO", "EACCES", "EMFILE"), kinds=("once",), every=24)
    assert found.failed == 0 and found.tried >= 18, found
