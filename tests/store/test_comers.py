"""Who comes again while others work: a requeued task, a job submitted twice, another job's ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from whence.errors import RankError
from whence.store import crew
from whence.store.crew import MEMBERS, Member, Team, joined


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who leaves looks only for a moment whether the others leave too."""
    monkeypatch.setattr(crew, "BEAT", 0.05)


@contextmanager
def team(folder: Path, member: Member) -> Iterator[Team]:
    with joined(folder, member, kind="index", after=lambda place: None) as (_, found):
        yield found


def killed_with(folder: Path, member: Member, task: str) -> None:
    """Another process joins, claims a task and is killed."""
    child = os.fork()
    if not child:
        with joined(folder, member, kind="index", after=lambda place: None) as (_, found):
            found.take(task)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_requeued_task_is_not_taken_for_the_one_that_died(tmp_path: Path) -> None:
    """Nobody missed it meanwhile; under the same name its claim would be that of a living process, and stand."""
    with team(tmp_path / "index", Member("shard", 0, 2)) as other:
        killed_with(tmp_path / "index", Member("shard", 1, 2), "fit")
        with team(tmp_path / "index", Member("shard", 1, 2)) as again:
            assert again.name == "shard-1.1" and other.name == "shard-0"
            assert again.take("fit")
            assert not other.take("fit")


def test_an_array_submitted_twice(tmp_path: Path) -> None:
    """Both work; no two share a name, and with it a journal."""
    with ExitStack() as stack:
        names = [stack.enter_context(team(tmp_path / "index", Member("shard", 1, 2))).name for _ in range(3)]
        assert names == ["shard-1", "shard-1.1", "shard-1.2"]
        assert sorted(path.name for path in (tmp_path / "index" / MEMBERS).iterdir()) == names


def test_ranks_of_the_next_job_find_each_other_beside_the_last(tmp_path: Path) -> None:
    """And take over what a rank of the last job left, which they cannot wait for."""
    place = tmp_path / "index"
    with team(place, Member("rank", 0, 2, job="last")) as last:
        killed_with(place, Member("rank", 1, 2, job="last"), "fit")
        with team(place, Member("rank", 0, 2, job="next")) as one, team(place, Member("rank", 1, 2, job="next")) as two:
            assert (one.name, two.name) == ("rank-0.1", "rank-1.1")
            one.wait()
            assert two.take("fit")  # the death of a stranger is no trouble of theirs
            assert not one.take("fit")
            two.sign("done")
            one.finish()
            with pytest.raises(RankError, match=r"rank 1 of 2 .*is dead"):
                last.wait()
