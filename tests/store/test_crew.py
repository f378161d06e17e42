"""Joining and leaving a folder that others work on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from whence.errors import RankError
from whence.store import atomic, crew
from whence.store.crew import CLAIMS, MEMBERS, Member, joined
from whence.store.run import LOCK, Lock


def test_no_sign_of_life_after_the_last_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign on its way when the work ends would leave a member behind that nobody removes."""
    monkeypatch.setattr(crew, "BEAT", 0.01)
    overwrite = atomic.overwrite

    def slowly(path: Path, text: str) -> None:
        time.sleep(0.05)
        overwrite(path, text)

    monkeypatch.setattr(atomic, "overwrite", slowly)
    for number in range(5):
        with joined(tmp_path / "index", Member("shard", number, 5), kind="index", after=lambda place: None):
            time.sleep(0.02)
        time.sleep(0.1)
        assert not (tmp_path / "index" / MEMBERS).exists()


def test_the_last_word_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads give signs; an older one must never come after ``done``."""
    monkeypatch.setattr(crew, "BEAT", 0.0005)
    for number in range(20):
        with joined(tmp_path / "index", Member("shard", number, 20), kind="index", after=lambda place: None) as (
            place,
            team,
        ):
            team.finish()
            for _ in range(10):
                assert f'"{crew.DONE}"' in (place / MEMBERS / team.name).read_text()
                time.sleep(0.001)


def test_whoever_was_killed_is_given_a_moment_to_let_go(tmp_path: Path) -> None:
    """A killed process holds its lock until the system has taken it down; somebody must still clear up."""
    cleared = []
    with joined(tmp_path / "index", Member("shard", 0, 2), kind="index", after=cleared.append) as (place, team):
        assert team.take("something")
        ready, tell = os.pipe()
        dying = os.fork()
        if not dying:
            Lock(place).share()
            os.write(tell, b"x")
            time.sleep(0.5)
            os._exit(0)
        os.read(ready, 1)
    os.waitpid(dying, 0)
    assert cleared == [place] and not (place / CLAIMS).exists() and (place / LOCK).exists()


def test_a_rank_that_never_comes_is_named_within_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while it imports: nothing of it is in the folder. At the default patience that takes less than 60 s."""
    assert crew.ARRIVAL * crew.PATIENCE + 5 < 60
    monkeypatch.setenv(crew.VARIABLE, "0.4")
    began = time.monotonic()
    with (
        pytest.raises(RankError, match="rank 1 of 2 was not there within 1 seconds"),
        joined(tmp_path / "index", Member("rank", 0, 2), kind="index", after=lambda place: None) as (_, team),
    ):
        team.finish()
    assert time.monotonic() - began >= crew.ARRIVAL * 0.4
