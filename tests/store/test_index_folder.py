"""What an index's folder says of itself, and what is said when it cannot be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whence.errors import StoreError
from whence.store import atomic, index_folder
from whence.store.index_damage import examine
from whence.store.index_folder import (
    FACTORS,
    FORMAT,
    MANIFEST,
    PLAN,
    IndexFolder,
    entries_of_manifest,
    open_plan,
    read_manifest,
    read_plan,
    read_sealed,
    require_same,
    verify,
)
from whence.store.index_journal import JOURNAL, Journal, journal_name
from whence.store.run import sealed

IDENTITY = {"model": "m", "seed": 0, "layers": {"a": [2, 3]}}


def begun(place: Path, *names: str) -> IndexFolder:
    """An index that is being built, with these files finished."""
    place.mkdir(exist_ok=True)
    folder = open_plan(place, IDENTITY, extra={"command": "whence index"})
    for name in names:
        (place / name).write_text(f"what is in {name}")
        folder.enter(name, rows=3)
    return folder


def finished(place: Path, **more: Any) -> IndexFolder:
    folder = begun(place, "rows.parquet", FACTORS)
    folder.close(("rows.parquet", FACTORS), {"plan": {"command": "whence index"}, **more})
    return folder


def test_a_plan_is_kept_and_what_is_finished_found(tmp_path: Path) -> None:
    begun(tmp_path, "one")
    again = open_plan(tmp_path, IDENTITY, extra={"command": "another"})
    assert again.plan == {"command": "whence index"}  # that of an old plan stays
    assert again.finished("one") == {"name": "one", "file": index_folder.file_record(tmp_path / "one"), "rows": 3}
    assert again.finished("two") is None
    (tmp_path / "one").write_text("what is not in it")
    assert open_plan(tmp_path, IDENTITY).finished("one") is None
    (tmp_path / "one").unlink()
    assert open_plan(tmp_path, IDENTITY).finished("one") is None


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """Each process reads a file once, as long as the disk says that it is the same."""
    folder = begun(tmp_path, "one")
    assert folder.finished("one") is not None
    (tmp_path / "one").write_text("other")
    assert folder.finished("one") is None


def test_a_file_that_goes_while_it_is_looked_at_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it between the look at its size and the reading of it."""
    begun(tmp_path, "a")
    mine = open_plan(tmp_path, IDENTITY)  # has not read it yet
    read = atomic.checksum

    def removed_meanwhile(path: Path) -> str:
        path.unlink()
        return read(path)

    monkeypatch.setattr(atomic, "checksum", removed_meanwhile)
    assert mine.finished("a") is None


def test_every_field_that_differs_is_named_up_to_four(tmp_path: Path) -> None:
    one = dict.fromkeys("abcdef", 0) | {"long": "x" * 100}
    with pytest.raises(StoreError) as caught:
        require_same(tmp_path, {**one, "g": 1}, {**one, "a": 1})
    assert caught.value.got == f"{tmp_path} is an index of something else (a: index 0, now 1; g: index 1, now None)"
    with pytest.raises(StoreError) as caught:
        require_same(tmp_path, one, {})
    assert caught.value.got.endswith("(a: index 0, now None; b: index 0, now None; c: index 0, now None; "
                                     "d: index 0, now None and 3 more)")  # fmt: skip
    with pytest.raises(StoreError) as caught:
        require_same(tmp_path, {"long": one["long"]}, {})
    assert f"long: index '{'x' * 56}..., now None" in caught.value.got
    require_same(tmp_path, one, dict(reversed(one.items())))


def test_a_damaged_plan_is_made_again_from_the_manifest(tmp_path: Path) -> None:
    finished(tmp_path)
    whole = read_sealed(tmp_path / PLAN)
    (tmp_path / PLAN).write_text("{}")
    assert read_plan(tmp_path) == whole == read_sealed(tmp_path / PLAN) | {}
    assert whole["command"] == "whence index" and whole["identity"] == IDENTITY


@pytest.mark.parametrize("manifest", [None, "{}"])
def test_a_damaged_plan_that_nothing_repeats_is_refused(tmp_path: Path, manifest: str | None) -> None:
    begun(tmp_path)
    (tmp_path / PLAN).write_text('{"half": ')
    if manifest is not None:
        (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(StoreError, match=r"index-plan.json is damaged, and there is no manifest that repeats it"):
        open_plan(tmp_path, IDENTITY)
    assert (tmp_path / PLAN).read_text() == '{"half": '


@pytest.mark.parametrize("change", [{"format": "whence index 99"}, {"identity": "m"}])
def test_a_plan_of_another_format_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    body = sealed({"format": FORMAT, "identity": IDENTITY, **change})
    atomic.write_json(tmp_path / PLAN, body)
    with pytest.raises(StoreError) as caught:
        read_plan(tmp_path)
    assert f"has the format {body['format']!r}" in caught.value.got and caught.value.wanted == FORMAT


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / MANIFEST, sealed({"format": "whence index 99"}))
    with pytest.raises(StoreError) as caught:
        read_manifest(tmp_path)
    assert caught.value.got == f"{tmp_path} has the format 'whence index 99'"
    assert caught.value.try_ == "pip install -U whence"


@pytest.mark.parametrize("lacking", ["identity", "files"])
def test_a_manifest_that_says_nothing_is_damaged(tmp_path: Path, lacking: str) -> None:
    body = {"format": FORMAT, "identity": {}, "files": {}, lacking: []}
    atomic.write_json(tmp_path / MANIFEST, sealed(body))
    with pytest.raises(StoreError, match=r"index.json is damaged: it does not say what it is of"):
        read_manifest(tmp_path)


def test_an_unfinished_index_is_told_from_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not an index") as caught:
        read_manifest(tmp_path)
    assert caught.value.try_.startswith("whence index --model")
    begun(tmp_path)
    with pytest.raises(StoreError, match="is an unfinished index") as caught:
        read_manifest(tmp_path)
    assert caught.value.try_ == "run the same whence index again"


def test_a_seal_holds_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, sealed({"a": 1}))
    whole = path.read_text()
    assert read_sealed(path) == {"a": 1}
    for other in (whole.replace("1", "2", 1), whole.rstrip("\n"), whole.replace(" ", "  ", 1)):
        path.write_text(other)
        with pytest.raises(StoreError, match="its seal does not fit its content"):
            read_sealed(path)
    for other in ("", "[]", "5", '{"a": 1}\n', "[" * 100_000):
        path.write_text(other)
        with pytest.raises(StoreError, match="it is not a sealed JSON object"):
            read_sealed(path)
    path.write_text(whole)
    monkeypatch.setattr(index_folder, "MOST_BYTES", len(whole))
    assert read_sealed(path) == {"a": 1}
    monkeypatch.setattr(index_folder, "MOST_BYTES", len(whole) - 1)
    with pytest.raises(StoreError, match="it is not a sealed JSON object"):  # not read at all
        read_sealed(path)


def test_files_are_those_that_the_manifest_lists(tmp_path: Path) -> None:
    finished(tmp_path)
    body = read_manifest(tmp_path)
    assert verify(tmp_path, body, FACTORS) == tmp_path / FACTORS
    with pytest.raises(StoreError, match=r"index.json is damaged: it does not list 'other'"):
        verify(tmp_path, body, "other")
    body["files"]["../x"] = body["files"][FACTORS]
    with pytest.raises(StoreError, match=r"does not list '\.\./x'"):
        verify(tmp_path, body, "../x")
    (tmp_path / FACTORS).write_text("what is in FACTORS.safetensors")
    with pytest.raises(StoreError, match=r"factors.safetensors is damaged: its content is not what was written"):
        verify(tmp_path, body, FACTORS)
    (tmp_path / FACTORS).unlink()
    with pytest.raises(StoreError, match=r"factors.safetensors is damaged: it is missing") as caught:
        verify(tmp_path, body, FACTORS)
    assert caught.value.try_.startswith(f"whence repair {tmp_path},")


def test_a_manifest_stands_in_for_a_damaged_journal(tmp_path: Path) -> None:
    split = {"name": "split 3", "rows": [1, 2]}
    folder = finished(tmp_path, places={"a": {"Q": "0"}}, fit={"stages": ["one"]}, splits=[split])
    (tmp_path / JOURNAL).write_text("nothing of use\n")
    again = open_plan(tmp_path, IDENTITY)
    assert again.finished("rows.parquet") == {"name": "rows.parquet", "file": folder.finished("rows.parquet")["file"]}
    assert again.finished(FACTORS)["places"] == {"a": {"Q": "0"}} and again.finished(FACTORS)["about"] == {
        "stages": ["one"]
    }
    assert again.remembered("split") == [split]
    (tmp_path / MANIFEST).unlink()
    assert entries_of_manifest(tmp_path) == {} and open_plan(tmp_path, IDENTITY).finished("rows.parquet") is None


def test_a_manifest_without_factors_is_read_too(tmp_path: Path) -> None:
    begun(tmp_path, "rows.parquet").close(("rows.parquet",), {})
    assert list(entries_of_manifest(tmp_path)) == ["rows.parquet"]


def test_the_same_manifest_is_not_written_twice(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = (tmp_path / MANIFEST).stat().st_ino
    folder.close(("rows.parquet", FACTORS), {"plan": {"command": "whence index"}})
    assert (tmp_path / MANIFEST).stat().st_ino == before
    folder.close(("rows.parquet", FACTORS), {"plan": {"command": "another"}})
    assert (tmp_path / MANIFEST).stat().st_ino != before and read_manifest(tmp_path)["plan"]["command"] == "another"


# --- the journal ----------------------------------------------------------------------------------------------------


def test_journals_of_many_are_one_when_all_is_done(tmp_path: Path) -> None:
    assert journal_name() == JOURNAL and journal_name("rank-1") == "journal-rank-1.jsonl"
    for number, name in enumerate(("b", "a")):
        Journal(tmp_path, journal_name(f"shard-{number}")).enter({"name": name})
    journal = Journal(tmp_path)
    journal.merged()
    lines = (tmp_path / JOURNAL).read_text().splitlines()
    assert [json.loads(line.partition("\t")[0])["name"] for line in lines] == ["a", "b"]
    assert [p.name for p in tmp_path.iterdir()] == [JOURNAL]
    before = (tmp_path / JOURNAL).stat().st_ino
    journal.merged()
    assert (tmp_path / JOURNAL).stat().st_ino == before  # nothing changed, nothing is written
    journal.merged(kept=["b", "c"])
    assert [line.partition("\t")[0] for line in (tmp_path / JOURNAL).read_text().splitlines()] == ['{"name":"b"}']


def test_lines_that_cannot_be_believed_are_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.enter({"name": "a"})
    whole = (tmp_path / JOURNAL).read_text()
    odd = ["", "no tab", whole.rstrip("\n").replace('"a"', '"b"'), "é\txxh3:0", f"[]\t{atomic.text_checksum('[]')}",
           '{"x":1}\t' + atomic.text_checksum('{"x":1}')]  # fmt: skip
    (tmp_path / JOURNAL).write_text(whole + "\n".join(odd) + "\nhalf a li")
    fresh = Journal(tmp_path)
    fresh.refresh()
    assert list(fresh.entries) == ["a"] and fresh.broken == 5 and fresh.torn
    fresh.refresh()
    assert fresh.broken == 5  # what was read is not read again
    fresh.enter({"name": "c"})  # ends the half line first
    read = Journal(tmp_path)
    read.refresh()
    assert sorted(read.entries) == ["a", "c"] and read.broken == 6 and not read.torn


def test_a_journal_that_cannot_be_read_is_as_if_it_were_empty(tmp_path: Path) -> None:
    (tmp_path / "journal-x.jsonl").mkdir()
    Journal(tmp_path).enter({"name": "a"})
    journal = Journal(tmp_path)
    journal.refresh()
    assert list(journal.entries) == ["a"]


# --- damage ---------------------------------------------------------------------------------------------------------


def test_an_unfinished_index_is_examined_by_its_journal(tmp_path: Path) -> None:
    begun(tmp_path, "one", "two", "three", "fit-0.safetensors", "fit-1.safetensors")
    (tmp_path / "two").write_text("something else")
    for name in ("three", "fit-0.safetensors"):  # sums of a fit are removed when they are not needed any more
        (tmp_path / name).unlink()
    (tmp_path / "note.txt").write_text("mine")
    found = examine(tmp_path)
    assert not found.finished and found.extra == ("note.txt",)
    assert found.damaged == {
        "two": "its content is not what was written (checksum differs)", "three": "it is missing",
    }  # fmt: skip


def test_a_folder_of_something_else_is_not_examined(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not an index"):
        examine(tmp_path)


def test_a_torn_journal_and_a_false_one_are_damage(tmp_path: Path) -> None:
    begun(tmp_path, "one")
    with (tmp_path / JOURNAL).open("a") as out:
        out.write("half")
    assert examine(tmp_path).damaged == {JOURNAL: "it has lines that do not fit their checksum"}
    (tmp_path / PLAN).write_text("{}")
    assert PLAN in examine(tmp_path).damaged
