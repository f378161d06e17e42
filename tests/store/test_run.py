"""The run folder: ours, held by one, complete or refused, and equal to what was saved."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whence.errors import StoreError
from whence.results import RowView, Scores
from whence.store import atomic, run, tables


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
    import pyarrow.parquet as pq

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
