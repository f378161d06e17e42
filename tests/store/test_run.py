"""The run folder: ours, held by one, complete or refused, and equal to what was saved."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from whence.errors import StoreError
from whence.results import RowView, Scores, TokenTrack
from whence.store import atomic, run, tables, token_table


def some_scores(*, top: bool = False, layers: bool = True, dtype: str = "float64") -> Scores:
    rng = np.random.default_rng(0)
    queries, rows, wide = 3, 7, 4
    width = wide if top else rows
    values = rng.normal(size=(queries, width)).astype(dtype)
    values[:, 2] = np.nan
    columns = None
    if top:
        columns = np.stack([rng.permutation(rows)[:width] for _ in range(queries)])
        columns[1, 3], values[1, 3] = -1, np.nan
    names = tuple(f"row:{n}" for n in range(rows))
    views = {
        n: RowView(n, f"text {n} \x1b <b>é漢", "file", f"file.jsonl:{i}", spans=(("prompt", "a"),))
        for i, n in enumerate(names)
    }
    views["row:2"] = RowView("row:2", "", status="quarantined:bad_json")
    return Scores(
        values=values,
        query_ids=("q1", "q2", "q3"),
        train_ids=names,
        n_train=6,
        columns=columns,
        about={
            "method": "ekfac",
            "quarantine": [{"id": "row:2", "location": "f:3", "code": "bad_json", "message": "m"}],
        },
        per_layer=rng.normal(size=(queries, width, 2)).astype("float32") if layers else None,
        layer_names=("a.b", "c") if layers else (),
        self_influence=rng.random(rows),
        train_rows=views,
        query_rows={f"q{n}": RowView(f"q{n}", f"question {n}") for n in (1, 2, 3)},
        lexical=rng.random((queries, width)).astype("float32"),
    )


def same(one: Scores, other: Scores) -> None:
    for name in ("values", "columns", "per_layer", "self_influence", "lexical"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("query_ids", "train_ids", "n_train", "layer_names", "train_rows", "query_rows"):
        assert getattr(one, name) == getattr(other, name), name
    assert dict(one.about) == dict(other.about)
    assert one.values.dtype == other.values.dtype


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saved_is_loaded(tmp_path: Path, top: bool, layers: bool, dtype: str) -> None:
    scores = some_scores(top=top, layers=layers, dtype=dtype)
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, scores)
    same(scores, run.load_scores(tmp_path / "run"))


def test_the_table_reads_without_whence(tmp_path: Path) -> None:
    scores = some_scores()
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, scores)
    frame = pq.read_table(tmp_path / "run" / tables.SCORES).to_pandas()
    one = frame[frame.query_id == "q2"]
    assert list(one.train_id) == list(scores.train_ids)
    np.testing.assert_allclose(one.removal_effect, scores.removal_effect("q2"))
    best = one[one["rank"] == 1].iloc[0]
    assert best.train_id == scores.train_ids[int(np.nanargmax(scores.row("q2")))]
    assert np.isnan(one[one.train_id == "row:2"].score).all()
    assert one[one.train_id == "row:2"]["rank"].isna().all()
    assert set(one[one.train_id == "row:2"].status) == {"quarantined:bad_json"}


def test_columns_have_their_types_whatever_is_in_them(tmp_path: Path) -> None:
    """Two results can be put together by whoever reads the tables."""
    tables.write_rows(tmp_path / "none.parquet", {"a": RowView("a", "x")})
    tables.write_rows(tmp_path / "some.parquet", {"a": RowView("a", "x", spans=(("prompt", "x"),))})
    schemas = [pq.read_schema(tmp_path / f"{name}.parquet") for name in ("none", "some")]
    assert schemas[0].equals(schemas[1])
    assert tables.read_rows(tmp_path / "some.parquet") == {"a": RowView("a", "x", spans=(("prompt", "x"),))}


def test_writing_again_replaces(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores(layers=False))
    assert not (tmp_path / "run" / tables.LAYERS).exists()
    same(some_scores(layers=False), run.load_scores(tmp_path / "run"))


def test_an_interrupted_rewrite_is_not_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old numbers beside new ones would be the worst of all results."""
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())

    def stop(point: str, path: Path) -> None:
        if point == "renamed" and path.name == tables.SCORES:
            raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "reach", stop)
    with pytest.raises(KeyboardInterrupt), run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores(layers=False))
    with pytest.raises(StoreError, match="unfinished run"):
        run.load_scores(tmp_path / "run")


@pytest.mark.parametrize(
    "name", [tables.SCORES, tables.ROWS, tables.QUERIES, tables.LAYERS, "quarantine.jsonl", "run.json"]
)
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in {0, len(whole) - 1, *rng.integers(0, len(whole), 25).tolist()}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(StoreError):
            run.load_scores(tmp_path / "run")
    for keep in (0, 1, len(whole) // 2, len(whole) - 2):  # without its last newline JSON is still whole
        path.write_bytes(whole[:keep])
        with pytest.raises(StoreError):
            run.load_scores(tmp_path / "run")


def test_parquet_pages_carry_checksums(tmp_path: Path) -> None:
    """A reader other than ours finds damage too, if it asks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = np.random.default_rng(0).random(5000)
    tables._write(tmp_path / "a.parquet", [pa.table({"x": values})])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum|corrupt"):
        pq.read_table(tmp_path / "a.parquet", page_checksum_verification=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    (tmp_path / "run" / tables.ROWS).unlink()
    with pytest.raises(StoreError, match=r"rows\.parquet is damaged: it is missing"):
        run.load_scores(tmp_path / "run")


def test_a_report_may_be_edited(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
        atomic.write_text(folder / "report.html", "<p>")
        run.add_file(folder, "report.html")
    (tmp_path / "run" / "report.html").write_text("other")
    run.load_scores(tmp_path / "run")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
        body = run.read_manifest(folder)
        run.write_manifest(folder, {**body, "format": run.FORMAT + 1})
    with pytest.raises(StoreError, match="newer whence"):
        run.load_scores(tmp_path / "run")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
        body: dict[str, Any] = run.read_manifest(folder)
        body["files"]["../x.parquet"] = {"bytes": 0, "checksum": ""}
        run.write_manifest(folder, body)
    with pytest.raises(StoreError, match="outside its folder"):
        run.load_scores(tmp_path / "run")


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"whence did not make \(it holds thesis.tex"), run.claimed(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(StoreError, match="is a file"), run.claimed(tmp_path / "thesis.tex"):
        pass


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with run.claimed(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"


def test_two_who_mark_a_new_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster one holds it by the time the slower one has its mark half made, and clears what is half made."""
    publish, folder = atomic._publish, tmp_path / "run"

    def overtaken(part: Path, path: Path) -> None:
        monkeypatch.setattr(atomic, "_publish", publish)
        with run.claimed(folder):
            pass
        publish(part, path)

    monkeypatch.setattr(atomic, "_publish", overtaken)
    with run.claimed(folder):
        assert (folder / run.MARKER).is_file()


def test_a_mark_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(part: Path, path: Path) -> None:
        part.unlink()
        part.replace(path)

    monkeypatch.setattr(atomic, "_publish", lost)
    with pytest.raises(StoreError, match=r"cannot write .*whence"), run.claimed(tmp_path / "run"):
        pass


def test_a_folder_that_somebody_marks_meanwhile_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look for the mark and the look at what is there, another process begins its work."""
    folder, listed = tmp_path / "run", Path.iterdir
    folder.mkdir()

    def begun(self: Path) -> Any:
        (folder / run.MARKER).write_text(json.dumps({"format": run.FORMAT}))
        (folder / ".members").mkdir(exist_ok=True)
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", begun)
    with run.claimed(folder):
        pass


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no folder"):
        run.load_scores(tmp_path / "nothing")
    with pytest.raises(StoreError, match="not a whence run"):
        run.load_scores(tmp_path)


def _hold(folder: str, ready: Any) -> None:
    with run.claimed(folder):
        ready.set()
        time.sleep(60)


def test_a_run_in_use_names_its_owner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    other.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(StoreError, match=f"in use by process {other.pid} on ") as caught,
            run.claimed(tmp_path / "run"),
        ):
            pass
        assert caught.value.exit_code == 4
    finally:
        other.kill()
        other.join()
    with run.claimed(tmp_path / "run"):
        pass  # the lock of a killed process does not outlive it


def test_who_holds_a_folder_clears_what_the_dead_left_and_signs(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run"):
        pass
    half, mine = tmp_path / "run" / f".scores.parquet.x{atomic.PART}", tmp_path / "run" / "notes.part"
    half.write_text("half")
    mine.write_text("mine")
    with run.claimed(tmp_path / "run") as folder:
        assert not half.exists() and mine.exists()
        assert json.loads((folder / run.OWNER).read_text())["pid"] == os.getpid()
        assert json.loads((folder / run.MARKER).read_text()) == {"format": run.FORMAT}
    assert not (folder / run.OWNER).exists() and mine.exists()


def test_a_folder_for_one_kind_of_files_takes_no_other(tmp_path: Path) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    with pytest.raises(StoreError) as caught, run.claimed(tmp_path / "run", kind="index"):
        pass
    assert caught.value.got == f"{tmp_path / 'run'} holds run files (run.json)"
    assert caught.value.wanted == "a folder for index files"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file is a file"), run.claimed(tmp_path / "file"):
        pass


def test_a_lock_that_fails_otherwise_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without locks is made do with; a disk that fails is not taken for one."""

    def fail(self: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(FileLock, "acquire", fail)
    with pytest.raises(OSError, match="Input/output error"):
        run.Lock(tmp_path).alone()


def test_where_locks_cannot_be_shared_one_process_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "fcntl", None)
    lock = run.Lock(tmp_path)
    assert lock.alone()
    with pytest.raises(StoreError) as caught:
        lock.share()
    assert caught.value.wanted == "a system with flock" and caught.value.try_ == "one process"
    lock.release()


def test_a_lock_is_held_by_one_or_shared_by_many(tmp_path: Path) -> None:
    one, two, three = (run.Lock(tmp_path) for _ in range(3))
    assert one.alone() and not two.alone() and not two.share()
    assert one.share() and two.share() and not three.alone()
    one.release()
    assert not three.alone()
    two.release()
    assert three.alone()
    three.release()
    three.release()  # nothing is held: nothing happens


@pytest.mark.parametrize("files", [None, ["scores.parquet"], "scores.parquet"])
def test_a_manifest_that_lists_no_files_is_damaged(tmp_path: Path, files: object) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    run.write_manifest(tmp_path / "run", {**run.read_manifest(tmp_path / "run"), "files": files})
    with pytest.raises(StoreError, match=r"run.json is damaged: it does not list its files"):
        run.load_scores(tmp_path / "run")


@pytest.mark.parametrize(
    "change", [{"rows": 8}, {"queries": 2, "kept_per_query": 5}, {"layers": ["a.b", "x"]}, {"dtype": "odd"}]
)
def test_tables_that_do_not_fit_the_manifest_are_damage(tmp_path: Path, change: dict[str, Any]) -> None:
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores())
    body = run.read_manifest(tmp_path / "run")
    run.write_manifest(tmp_path / "run", {**body, "scores": {**body["scores"], **change}})
    with pytest.raises(StoreError, match="is damaged: "):
        run.load_scores(tmp_path / "run")


def test_token_scores_come_back(tmp_path: Path) -> None:
    track = TokenTrack(((0, 2), (2, 5)), (0.5, -1.0), (True, False), "position", 0.25)
    other = TokenTrack(((0, 1),), (2.0,), (), "output", 0.0)
    cells = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = {
        "token_tracks": {("q1", "row:0"): (track, other), ("q2", "row:1"): (other,)},
        "query_tracks": {"q1": other},
        "token_pairs": {("q1", "row:0"): cells},
        "heads": {"q1": {"attn": (1.0, -2.0)}},
    }
    with run.claimed(tmp_path / "run") as folder:
        run.save_scores(folder, some_scores().with_(**given))
    found = run.load_scores(tmp_path / "run")
    assert dict(found.token_tracks) == given["token_tracks"] and dict(found.query_tracks) == given["query_tracks"]
    assert {q: dict(layers) for q, layers in found.heads.items()} == given["heads"]
    np.testing.assert_array_equal(found.token_pairs["q1", "row:0"], cells)
    assert list(found.token_pairs) == [("q1", "row:0")]


@pytest.mark.parametrize("change", [{"scores": [1.0]}, {"masked": [True]}, {"ends": [1]}])
def test_a_track_whose_lengths_do_not_fit_is_damage(change: dict[str, Any]) -> None:
    track = TokenTrack(((0, 2), (2, 5)), (0.5, -1.0))
    (line,) = token_table.token_table(some_scores().with_(query_tracks={"q1": track})).to_pylist()
    assert token_table.read_token_table(pa.Table.from_pylist([line], schema=token_table.SCHEMA))["query_tracks"] == {
        "q1": track
    }
    with pytest.raises(ValueError, match=r"spans with|zip\(\)"):
        token_table.read_token_table(pa.Table.from_pylist([{**line, **change}], schema=token_table.SCHEMA))


def test_scores_without_words_or_questions_are_kept_too(tmp_path: Path) -> None:
    scores = some_scores(layers=False).with_(lexical=None, self_influence=None)
    nothing = {"values": np.zeros((0, 7)), "query_ids": (), "query_rows": {}}
    layers = some_scores().with_(**nothing, per_layer=np.zeros((0, 7, 2)), lexical=None)
    top = scores.with_(**{**nothing, "values": np.zeros((0, 4))}, columns=np.zeros((0, 4), dtype=np.int64))
    for name, given in (("bare", scores), ("empty", scores.with_(**nothing)), ("layers", layers), ("top", top)):
        with run.claimed(tmp_path / name) as folder:
            run.save_scores(folder, given)
    found = run.load_scores(tmp_path / "bare")
    assert found.lexical is None and found.self_influence is None and not found.token_tracks
    np.testing.assert_array_equal(found.values, scores.values)
    empty = run.load_scores(tmp_path / "empty")
    assert empty.values.shape == (0, 7) and empty.query_ids == () and empty.train_ids == scores.train_ids
    assert run.load_scores(tmp_path / "layers").per_layer.shape == (0, 7, 2)
    same(top, run.load_scores(tmp_path / "top"))


def test_secrets_stay_out(tmp_path: Path) -> None:
    from whence.store.provenance import redacted, redacted_argv

    shown = redacted_argv(
        ["trace", "--hf-token", "abc123", "--token=xyz", "hf_abcdefghijklmnop", "https://me:pw@host/x?token=t0k"]
    )
    assert shown == [
        "trace",
        "--hf-token",
        "[redacted]",
        "--token=[redacted]",
        "[redacted]",
        "https://[redacted]@host/x?token=[redacted]",
    ]
    assert redacted("key sk-abcdefghijkl and ghp_abcdefgh1234") == "key [redacted] and [redacted]"


def test_the_environment_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from whence.store.provenance import environment, peak_memory_bytes

    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    said = environment(threads=2)
    assert {"torch", "whence", "transformers"} <= set(said["versions"])
    assert said["threads"] == 2
    assert "secret" not in json.dumps(said)
    assert (peak_memory_bytes() or 0) > 10_000_000


def test_the_peak_is_this_process_own() -> None:
    """Linux tells a launched process its launcher's ru_maxrss."""
    from whence.store.provenance import peak_memory_bytes

    large = b"\1" * 200_000_000
    code = "from whence.store.provenance import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(large) < (peak_memory_bytes() or 0)
    assert int(done.stdout) < 150_000_000
