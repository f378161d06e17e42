"""Eigendecompositions shared out among processes: the files of one process, whoever dies on the way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reliability import crews
from reliability.harness import Workload, forked, fresh, result_of, run_forked, snapshot, workload
from whence.building import Site
from whence.curvature import apart


@pytest.fixture(scope="module")
def work() -> Workload:
    small = workload("small")
    return replace(small, options={**small.options, "method": "ekfac"})


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parts of a model too small for them; forked processes inherit it."""
    monkeypatch.setattr(apart, "PART", 1.0)
    yield


def written(work: Workload, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the factor files, in order."""
    names: list[str] = []
    original = Site.write

    def write(self: Site, name: str, tensors: object) -> dict[str, object]:
        names.append(name)
        return original(self, name, tensors)

    monkeypatch.setattr(Site, "write", write)
    work.build(folder)
    return names


def test_parts_are_made_where_it_is_said_and_change_no_byte(
    place: Path, work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("part" in name for name in written(work, place / "whole", monkeypatch))
    monkeypatch.setattr(apart, "PART", 1.0)
    names = written(work, place / "parts", monkeypatch)
    parts = [name for name in names if "part" in name]
    assert parts == [f"fit-1-prepared-part-{n}.safetensors" for n in range(2)]
    assert names.index("fit-1-prepared.safetensors") > names.index(parts[-1])
    assert snapshot(place / "parts") == snapshot(place / "whole")


def test_any_number_of_processes(place: Path, work: Workload, divided: None) -> None:
    with fresh(place, "alone") as folder:
        run_forked(lambda: work.build(folder))
        whole = snapshot(folder)
    for count in (2, 4):
        with fresh(place, "crew") as folder:
            ended = crews.ranks(work, folder, count)
            assert [e.code for e in ended] == [0] * count and snapshot(folder) == whole, ended
    with fresh(place, "array") as folder:
        assert [e.code for e in crews.shards(work, folder, 3)] == [0, 0, 0] and snapshot(folder) == whole


def test_killed_around_the_parts(place: Path, work: Workload, divided: None) -> None:
    """At points before, between and after the parts, alone and as one of two; then finished by another number."""
    with fresh(place, "alone") as folder:
        run_forked(lambda: work.build(folder))
        whole = snapshot(folder)
    told = place / "points"
    with fresh(place, "points of parts") as folder:
        result_of(forked(lambda: _points(work, folder, told), faults_="count@0"))
    first, last = (int(n) for n in told.read_text().split())
    assert last - first > 20
    for at in range(first, last + 12, 7):
        with fresh(place, "killed") as folder:
            assert run_forked(lambda f=folder: work.build(f), faults_=f"kill@{at}").code == -signal.SIGKILL
            assert run_forked(lambda f=folder: work.build(f)).code == 0
            assert snapshot(folder) == whole, at
    with fresh(place, "killed") as folder:
        crews.ranks(work, folder, 2, fault=lambda rank: f"kill@{first + 5}" if rank else "")
        assert [e.code for e in crews.ranks(work, folder, 3)] == [0, 0, 0] and snapshot(folder) == whole


def _points(work: Workload, folder: Path, told: Path) -> None:
    """Numbers of the first and last disk point while parts are written and joined."""
    from whence import faults

    seen, original = [], Site.write

    def write(self: Site, name: str, tensors: object) -> dict[str, object]:
        before = faults.ARMED.reached
        made = original(self, name, tensors)
        if "prepared" in name and name.startswith("fit-1"):
            seen.extend((before, faults.ARMED.reached))
        return made

    Site.write = write
    work.build(folder)
    told.write_text(f"{seen[0]} {seen[-1]}")
