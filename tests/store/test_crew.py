"""Joining and leaving a folder that others work on."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from whence.errors import OptionError, RankError, StoreError
from whence.store import atomic, crew
from whence.store.crew import CLAIMS, DONE, FAILED, MEMBERS, WORKING, Alone, Member, Team, joined, member_of
from whence.store.run import LOCK, OWNER, Lock

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


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


@pytest.mark.parametrize("shard", ["4/4", "1/0", "0/0", "-1/4", "a/b", "3", "", "1/2/3"])
def test_what_is_no_shard_is_refused(shard: str) -> None:
    with pytest.raises(OptionError) as caught:
        member_of(shard, TORCHRUN)
    assert f"shard {shard!r}" in caught.value.got and "i from 0 to n - 1" in caught.value.wanted


def test_who_this_process_is() -> None:
    assert member_of(" 2/3 ", TORCHRUN) == Member("shard", 2, 3)  # what the user says comes first
    rank = member_of(None, TORCHRUN)
    assert rank == Member("rank", 1, 4, 1, "here 29500     ") and rank.name == "rank-1"
    step = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "8"}
    assert member_of(None, step) == Member("rank", 3, 8, 0, "    77  ")


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "0"}, {"RANK": "x", "WORLD_SIZE": "4"},
     {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}],
    ids=["nothing", "one of one", "no size", "no number", "a batch script"],
)  # fmt: skip
def test_the_only_process(environment: dict[str, str]) -> None:
    assert member_of(None, environment) is None


def test_one_launch_is_told_from_the_next() -> None:
    """Signs of life that a dead job left say nothing about the ranks of this one."""
    again = {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}
    one, other = member_of(None, TORCHRUN), member_of(None, again)
    assert one is not None and other is not None and one.job != other.job


def test_alone_takes_everything_and_waits_for_nobody() -> None:
    crew_ = Alone()
    assert crew_.take("a") and crew_.take("a") and crew_.name == ""
    crew_.leave("a")
    crew_.finish()
    with pytest.raises(AssertionError):
        crew_.wait()


def said_by(team: Team, name: str, **told: Any) -> None:
    """A sign of life as another process would leave it: of this machine, and alive, unless told otherwise."""
    body = {"state": WORKING, "beat": 1, "job": team.member.job, **crew._process(), **told}
    atomic.overwrite(team.folder / MEMBERS / name, json.dumps(body))


def claimed_by(team: Team, task: str, name: str) -> Path:
    claim = team.folder / CLAIMS / task
    assert atomic.create(claim, name)
    return claim


def test_the_work_of_the_living_is_left_to_them(tmp_path: Path) -> None:
    team = Team(tmp_path, Member("shard", 0, 2))
    said_by(team, "shard-1")
    claim = claimed_by(team, "fit", "shard-1")
    assert not team.take("fit") and claim.read_text() == "shard-1"
    assert team.take("other") and not team.take("other")  # not twice, either
    team.leave("other")
    assert team.take("other")


GONE = {
    "done": {"state": DONE},
    "failed": {"state": FAILED},
    "dead": {"pid": 2**22 + 1},
    "number used again": {"born": "1"},
}


@pytest.mark.parametrize("told", GONE.values(), ids=GONE)
def test_a_shard_takes_the_work_of_whoever_is_gone(tmp_path: Path, told: dict[str, Any]) -> None:
    team = Team(tmp_path, Member("shard", 0, 2))
    said_by(team, "shard-1", **told)
    claim = claimed_by(team, "fit", "shard-1")
    assert team.take("fit") and claim.read_text() == "shard-0"


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(crew, "time", made)
    return made


def test_a_process_of_another_machine_is_gone_when_it_is_silent(tmp_path: Path, clock: Clock) -> None:
    """Its number means nothing here; only that its count stands still for too long."""
    team = Team(tmp_path, Member("shard", 0, 2), patience=20.0)
    claim = claimed_by(team, "fit", "shard-1")
    for beat in range(3):
        said_by(team, "shard-1", host="elsewhere", pid=2**22 + 1, beat=beat)
        assert not team.take("fit")
        clock.now += 19.0
    assert not team.take("fit")
    clock.now += 1.0
    assert not team.take("fit")  # 20 seconds are not too long yet
    clock.now += 0.1
    assert team.take("fit") and claim.read_text() == "shard-0"


def test_whoever_left_no_sign_is_given_as_long(tmp_path: Path, clock: Clock) -> None:
    team = Team(tmp_path, Member("shard", 0, 2), patience=20.0)
    claimed_by(team, "fit", "shard-1")
    assert not team.take("fit")
    clock.now += 20.1
    assert team.take("fit")


def test_a_rank_takes_nothing_from_another(tmp_path: Path) -> None:
    """Its job ends together: the others are told of the death instead."""
    team = Team(tmp_path, Member("rank", 0, 2))
    said_by(team, "rank-1", pid=2**22 + 1)
    claimed_by(team, "fit", "rank-1")
    assert not team.take("fit")
    with pytest.raises(RankError, match=r"rank 1 of 2 .*is dead"):
        team.wait()


def test_time_suspended_with_all_others_is_nobodys_silence(tmp_path: Path, clock: Clock) -> None:
    """Ctrl-Z and fg, or a scheduler that pauses the job: whoever wakes first finds the others as he left them."""
    team = Team(tmp_path, Member("rank", 0, 3), patience=20.0)
    team._beating = threading.Thread()  # which gives signs, and stood still as well
    said_by(team, "rank-1")  # rank 2 has not come yet
    team.wait()
    clock.now += 600.0
    team.wait()
    team._lived += 19.0
    clock.now += 19.0
    team.wait()
    team._lived += 2.0
    clock.now += 2.0
    with pytest.raises(RankError, match=r"rank 1 of 3 .* has given no sign of life for 20 seconds"):
        team.wait()


def test_what_the_thread_of_signs_lives_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat that took an hour was none: the process was suspended; one that took a moment longer counts in full."""
    team, hours = Team(tmp_path, Member("shard", 0, 2), patience=20.0), iter([0.0, 1.2, 3601.2])
    monkeypatch.setattr(crew, "time", SimpleNamespace(monotonic=lambda: next(hours)))
    turns = iter([False, False, True])
    monkeypatch.setattr(team, "_over", SimpleNamespace(wait=lambda pace: next(turns)))
    team._beat()
    assert team._lived == 1.2 + crew.LONGEST_BEAT * crew.BEAT


def test_one_sign_that_cannot_be_read_is_no_absence(tmp_path: Path, clock: Clock) -> None:
    """On network disks a file that is replaced while it is opened is stale. If it stays so, that is silence."""
    team = Team(tmp_path, Member("rank", 0, 2), patience=20.0)
    for beat in range(600):
        said_by(team, "rank-1", beat=beat)
        team.wait()
    sign = tmp_path / MEMBERS / "rank-1"
    sign.unlink()
    team.wait()
    said_by(team, "rank-1", beat=600)
    team.wait()
    sign.unlink()
    with pytest.raises(RankError, match=r"rank 1 of 2 .whose signs cannot be read. has given no sign of life for 20"):
        for _ in range(250):
            team.wait()


def test_a_second_launch_beside_what_is_left_of_the_first(tmp_path: Path, clock: Clock) -> None:
    """torchrun numbers no launches: orphans of one that was killed say the same of their job."""
    team = Team(tmp_path, Member("rank", 0, 2), called="rank-0.10")
    for name in ("rank-0", "rank-1", "rank-0.10", "rank-1.2", "rank-1.10"):
        said_by(team, name, state=FAILED if name in ("rank-1", "rank-1.2") else WORKING)
    assert team._mates() == ["rank-0.10", "rank-1.10"]
    team.wait()  # those of the first launch are nobody's trouble
    claimed_by(team, "old", "rank-1")
    assert team.take("old")  # and hold nothing
    said_by(team, "rank-1.10", pid=2**22 + 1)
    claimed_by(team, "fit", "rank-1.10")
    assert not team.take("fit")
    with pytest.raises(RankError, match=r"rank 1 of 2 .* is dead"):
        team.wait()


def test_a_number_of_another_container_is_no_process_here(tmp_path: Path) -> None:
    team = Team(tmp_path, Member("rank", 0, 2), patience=60.0)
    said_by(team, "rank-1", space="pid:[1]", pid=2**22 + 1)
    team.wait()


def test_whoever_was_taken_for_dead_leaves_the_claim_of_the_next(tmp_path: Path) -> None:
    team = Team(tmp_path, Member("shard", 0, 3))
    assert team.take("fit")
    claim = tmp_path / CLAIMS / "fit"
    claim.write_text("shard-1")
    team.leave("fit")
    assert claim.read_text() == "shard-1"


def test_a_claim_that_vanishes_is_left_for_the_next_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(tmp_path, Member("shard", 0, 2))
    claimed_by(team, "fit", "shard-1").unlink()
    monkeypatch.setattr(atomic, "create", lambda path, text: False)  # it was there a moment ago
    assert not team.take("fit")


TROUBLE = {
    "stopped with an error": {"state": FAILED},
    "is dead": {"pid": 2**22 + 1},
    "has given no sign of life for 0 seconds": {"host": "elsewhere"},
}


@pytest.mark.parametrize("said", TROUBLE)
def test_the_trouble_of_a_rank_is_named(tmp_path: Path, said: str) -> None:
    team = Team(tmp_path, Member("rank", 0, 2), patience=0.05)
    place = {"host": socket.gethostname(), "pid": os.getpid(), **TROUBLE[said]}
    said_by(team, "rank-1", **TROUBLE[said])
    with pytest.raises(RankError) as caught:
        for _ in range(3):
            team.wait()
    assert caught.value.got == f"rank 1 of 2 (process {place['pid']} on {place['host']}) {said}"
    assert "run the same command again" in caught.value.try_


def test_a_rank_that_is_done_may_be_gone(tmp_path: Path) -> None:
    team = Team(tmp_path, Member("rank", 0, 2))
    said_by(team, "rank-1", state=DONE, pid=2**22 + 1)
    team.finish()
    assert json.loads((tmp_path / MEMBERS / "rank-0").read_text())["state"] == DONE


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state": "done", "job": "of last week"}'])
def test_what_is_no_sign_of_this_job_is_none(tmp_path: Path, text: str) -> None:
    """Half a file, something else, or what an earlier launch left: as if nobody had been there yet."""
    team = Team(tmp_path, Member("rank", 0, 2, job="now"), patience=60.0)
    atomic.overwrite(tmp_path / MEMBERS / "rank-1", text)
    team.wait()  # no trouble yet, and not done either
    assert team._told("rank-1") == {}


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    """A process that ended and was not waited for still has its number."""
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        os.read(ready, 1)
        os._exit(0)
    team = Team(tmp_path, Member("shard", 0, 2))
    said_by(team, "shard-1", pid=child, born=crew._born(child))
    claimed_by(team, "fit", "shard-1")
    assert not team.take("fit")
    os.write(tell, b"x")
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert team.take("fit")
    os.waitpid(child, 0)


def test_who_fails_says_so_and_lets_go(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="mine"),
        joined(tmp_path / "index", Member("shard", 0, 2), kind="index", after=pytest.fail) as (place, _),
    ):
        raise ValueError("mine")
    assert json.loads((place / MEMBERS / "shard-0").read_text())["state"] == FAILED
    lock = Lock(place)
    assert lock.alone()
    lock.release()


def test_the_first_clears_what_a_dead_crew_left(tmp_path: Path) -> None:
    place = tmp_path / "index"
    for folder in (CLAIMS, MEMBERS):
        (place / folder).mkdir(parents=True)
        (place / folder / "shard-9").write_text("{}")
    (place / ".whence").write_text('{"format": 1}')
    (place / f".rows{atomic.PART}").write_text("half")
    with joined(place, Member("shard", 0, 2), kind="index", after=lambda _: None):
        assert [p.name for p in (place / MEMBERS).iterdir()] == ["shard-0"] and not (place / CLAIMS).exists()
        assert not (place / f".rows{atomic.PART}").exists()
        assert json.loads((place / OWNER).read_text())["pid"] == os.getpid()
    assert not (place / MEMBERS).exists() and not (place / OWNER).exists()


def test_a_folder_that_one_process_holds_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(crew.VARIABLE, "0.3")
    with joined(tmp_path / "index", Member("shard", 0, 2), kind="index", after=lambda _: None):
        pass
    holder = Lock(tmp_path / "index")
    assert holder.alone()
    with (
        pytest.raises(StoreError, match="in use by another process"),
        joined(tmp_path / "index", Member("shard", 1, 2), kind="index", after=pytest.fail),
    ):
        pytest.fail("it went in")
    holder.release()


def test_who_is_overtaken_at_the_door_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between holding the lock alone and sharing it, another may hold it alone for a moment."""
    share, turns = Lock.share, []

    def late(lock: Lock) -> bool:
        turns.append(lock)
        if len(turns) == 1:
            lock.release()
            return False
        return share(lock)

    monkeypatch.setattr(Lock, "share", late)
    with joined(tmp_path / "index", Member("shard", 0, 2), kind="index", after=lambda _: None) as (place, _):
        assert len(turns) == 2 and (place / MEMBERS / "shard-0").is_file()


def test_who_leaves_others_behind_clears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "BEAT", 0.1)
    other = Lock(tmp_path / "index")
    with joined(tmp_path / "index", Member("shard", 0, 2), kind="index", after=pytest.fail) as (place, team):
        assert other.share() and team.take("fit")
    assert (place / CLAIMS / "fit").is_file() and (place / MEMBERS / "shard-0").is_file()
    other.release()


def test_signs_of_life_outlive_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is full is found by whoever writes results; until then the others must hear from this process."""
    monkeypatch.setattr(crew, "BEAT", 0.01)
    overwrite, failures = atomic.overwrite, []

    def now_and_then(path: Path, text: str) -> None:
        if len(failures) < 3:
            failures.append(text)
            raise StoreError("no room")
        overwrite(path, text)

    team = Team(tmp_path, Member("shard", 0, 2))
    team.live()
    monkeypatch.setattr(atomic, "overwrite", now_and_then)
    until = time.monotonic() + 10
    while len(failures) < 3 or json.loads((tmp_path / MEMBERS / "shard-0").read_text())["beat"] < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    team.stop()
