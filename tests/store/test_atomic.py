"""No reader ever sees half a file."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from whence.errors import ResourceError, StoreError
from whence.store import atomic


def test_a_file_appears_whole_and_nothing_else(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "deep" / "a.txt", "hello")
    assert (tmp_path / "deep" / "a.txt").read_text() == "hello"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("point", ["open", "written", "synced"])
def test_a_failure_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"old": 1})

    def fail(reached: str, _path: Path) -> None:
        if reached == point:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "reach", fail)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic.writing(tmp_path / "a") as part:
        part.write_text("half")
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []


def test_order_of_the_disk_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced before the rename, the folder after it (power cuts)."""
    calls: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), rename(self, to))[1])
    atomic.write_text(tmp_path / "a", "x")
    assert calls == ["sync", "rename", "sync"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_resource_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def full(_reached: str, _path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "reach", full)
    with pytest.raises(ResourceError, match="no room to write") as caught:
        atomic.write_text(tmp_path / "a", "x")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(StoreError, match="cannot write"):
        atomic.write_text(tmp_path / "a" / "b", "x")


EXHAUSTED = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM]


@pytest.mark.parametrize("code", EXHAUSTED, ids=[errno.errorcode[code] for code in EXHAUSTED])
def test_what_has_run_out_is_told_from_what_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(_reached: str, _path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic, "reach", fail)
    with pytest.raises(ResourceError) as caught:
        atomic.write_text(tmp_path / "a", "x")
    assert caught.value.got == f"cannot write {tmp_path / 'a'}: {os.strerror(code)}"
    assert "what is finished is kept" in caught.value.wanted and "ulimit -n" in caught.value.try_


def test_how_much_is_needed_and_free_is_said_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_reached: str, _path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def unknown(_place: Path) -> None:
        raise OSError("no such disk")

    monkeypatch.setattr(atomic, "reach", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6 - 1234, 1234))
    with pytest.raises(ResourceError, match=r"No space left on device \(5,000 bytes needed, 1,234 free\)"):
        atomic.write_bytes(tmp_path / "a", bytes(5000))
    with (
        pytest.raises(ResourceError, match=r"\(more bytes needed than there are, 1,234 free\)"),
        atomic.writing(tmp_path / "a"),
    ):
        pass
    monkeypatch.setattr(shutil, "disk_usage", unknown)
    with pytest.raises(ResourceError, match=r"\(5,000 bytes needed\)"):
        atomic.write_bytes(tmp_path / "a", bytes(5000))


def test_what_a_writer_in_another_language_says_of_the_system_is_understood(tmp_path: Path) -> None:
    """safetensors tells of a full disk in words."""
    with (
        pytest.raises(ResourceError, match=f"no room to write .*{os.strerror(errno.ENOSPC)}"),
        atomic.writing(tmp_path / "a"),
    ):
        raise RuntimeError(f"I/O error: anything at all (os error {errno.ENOSPC})")
    with pytest.raises(StoreError, match=f"cannot write .*{os.strerror(errno.EACCES)}"), atomic.writing(tmp_path / "a"):
        raise RuntimeError(f"(os error {errno.EACCES})")
    with pytest.raises(RuntimeError, match="no such thing"), atomic.writing(tmp_path / "a"):
        raise RuntimeError("no such thing")
    assert list(tmp_path.iterdir()) == []


def test_half_a_line_is_a_full_disk_and_the_next_line_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "journal", os.write
    atomic.append_line(path, "first")
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:3]))
    with pytest.raises(ResourceError, match="no room to write"):
        atomic.append_line(path, "second")
    assert path.read_text() == "first\nsec"
    monkeypatch.setattr(os, "write", write)
    atomic.append_line(path, "third")
    assert path.read_text() == "first\nsec\nthird\n"


def test_who_comes_second_changes_nothing(tmp_path: Path) -> None:
    atomic.write_json_once(tmp_path / "plan", {"a": 1})
    atomic.write_json_once(tmp_path / "plan", {"a": 2})
    assert json.loads((tmp_path / "plan").read_text()) == {"a": 1}
    assert atomic.create(tmp_path / "deep" / "claim", "me") and not atomic.create(tmp_path / "deep" / "claim", "you")
    assert (tmp_path / "deep" / "claim").read_text() == "me"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "plan"]


def test_two_containers_with_one_process_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write the same plan at the same time; neither takes the other's unfinished file for its own."""
    write = atomic.write_json

    def overtaken(path: Path, value: dict[str, int]) -> None:
        write(path, value)
        monkeypatch.setattr(atomic, "write_json", write)
        atomic.write_json_once(tmp_path / "plan", value)

    monkeypatch.setattr(atomic, "write_json", overtaken)
    atomic.write_json_once(tmp_path / "plan", {"a": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_folders_above_a_file_are_made(tmp_path: Path) -> None:
    assert atomic.create(tmp_path / "a" / "b" / "claim", "me")
    atomic.overwrite(tmp_path / "c" / "d" / "sign", "1")
    atomic.write_text(tmp_path / "e" / "f" / "text", "x")
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 3


def test_files_folders_and_nothing_are_removed(tmp_path: Path) -> None:
    atomic.make_folder(tmp_path / "a" / "b")
    atomic.overwrite(tmp_path / "a" / "sign", "1")
    atomic.overwrite(tmp_path / "a" / "sign", "2")
    assert (tmp_path / "a" / "sign").read_text() == "2" and len(list((tmp_path / "a").iterdir())) == 2
    with pytest.raises(StoreError, match="cannot write"):
        atomic.remove(tmp_path / "a")  # not empty
    for name in ("sign", "b", "gone"):
        atomic.remove(tmp_path / "a" / name)
    atomic.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.sync_folder(tmp_path / "gone")
    sync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    atomic.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_json_never_holds_a_bare_nan(tmp_path: Path) -> None:
    value = {
        "a": math.nan,
        "b": (np.float32(2), np.int64(3)),
        "c": Path("x"),
        "d": np.array([1.0, math.inf]),
        "e": {"z", "y"},
    }
    atomic.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [2, 3],
        "c": "x",
        "d": [1, None],
        "e": ["y", "z"],
    }


def test_text_that_utf8_cannot_hold(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "lone \ud800 surrogate")
    assert (tmp_path / "a").read_text() == "lone ? surrogate"
    atomic.write_jsonl(tmp_path / "b", [{"t": "\ud800\x00\x1b"}])
    assert json.loads((tmp_path / "b").read_text())["t"] == "\ud800\x00\x1b"


def test_the_umask_counts(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_checksum_sees_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(3_000_000))
    whole = atomic.checksum(path)
    data = bytearray(path.read_bytes())
    data[2_999_999] ^= 1
    path.write_bytes(data)
    assert whole.startswith("xxh3:")
    assert atomic.checksum(path) != whole
