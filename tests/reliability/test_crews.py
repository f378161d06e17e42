"""Many processes, one index: the same files, and nobody waits for the dead."""

from __future__ import annotations

from pathlib import Path

from reliability import crews


def test_any_number_of_ranks_gives_the_same_files(place: Path) -> None:
    found = crews.same_bytes(place)
    assert found.failed == 0 and found.tried == 14, str(found)
    assert found.facts["with_several_processes"] >= 8


def test_a_dead_rank_is_named(place: Path) -> None:
    found = crews.rank_death(place, kinds=("kill", "exit"), phases=("in the fit",))
    assert found.failed == 0 and found.tried == 4, str(found)


def test_a_silent_rank_is_named(place: Path) -> None:
    found = crews.rank_death(place, kinds=("stop", "freeze"), phases=("in the shards",), dead=(1,))
    assert found.failed == 0 and found.tried == 2, str(found)
    assert found.facts["slowest_seconds"] <= crews.LONGEST


def test_an_array_takes_the_work_of_the_dead(place: Path) -> None:
    found = crews.array_death(place)
    assert found.failed == 0, str(found)


def test_whoever_is_overtaken_goes_on(place: Path) -> None:
    """Between two looks at the folder the others may finish a stage and remove what it was made from."""
    found = crews.thawed(place, every=23)
    assert found.failed == 0 and found.facts["suspended"] > found.tried // 2, str(found)


def test_a_job_that_is_paused_goes_on(place: Path) -> None:
    found = crews.paused(place)
    assert found.failed == 0 and found.tried == 3, str(found)


def test_two_builders_and_a_reader(place: Path) -> None:
    found = crews.races(place, builders=3, reads=60)
    assert found.failed == 0 and found.facts["reads"] == 60, found


def test_names_that_appear_late(place: Path) -> None:
    found = crews.late_names(place, counts=(2,))
    assert found.failed == 0 and found.tried == 1, str(found)
