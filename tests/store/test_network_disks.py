"""Disks on the network: no hard links, no locks, names that appear late. What still holds, and what is said."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from whence.errors import StoreError
from whence.store import atomic
from whence.store.index_journal import Journal
from whence.store.run import Lock, claimed


@pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP], ids=["ENOSYS", "ENOTSUP"])
def no_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_without_hard_links_a_plan_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "index-plan.json"
    atomic.write_json_once(path, {"a": 1})
    assert path.read_text() == atomic.json_text({"a": 1}) and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_another_failure_of_a_link_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(StoreError, match="cannot write"):
        atomic.write_json_once(tmp_path / "index-plan.json", {"a": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_flock")
@pytest.mark.filterwarnings("ignore:flock not supported", "ignore:.*disk without locks")
def test_without_flock_a_second_process_is_still_refused(tmp_path: Path) -> None:
    """Exclusive create takes the place of the lock."""
    with claimed(tmp_path / "run") as place:
        assert place.is_dir()
        with pytest.raises(StoreError, match="in use by process"), claimed(tmp_path / "run"):
            pass
    with claimed(tmp_path / "run"):
        pass


def test_without_flock_many_processes_are_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock(tmp_path)
    assert lock.alone()

    whole = fcntl.flock

    def refuse(handle: int, how: int) -> None:
        if how & fcntl.LOCK_SH:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        whole(handle, how)

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreError, match="disk without locks"):
        lock.share()
    lock.release()


def test_an_entry_is_for_its_writer_as_for_everybody(tmp_path: Path) -> None:
    """Also where a listing does not show the own journal yet: the order of the keys is the order in the next file."""
    writer, reader = Journal(tmp_path), Journal(tmp_path)
    writer.enter({"name": "fit-0.safetensors", "places": {"z": {"b": "0", "a": "1"}, "a": {}}})
    reader.refresh()
    told = [str(journal.entries["fit-0.safetensors"]) for journal in (writer, reader)]
    assert told[0] == told[1]
