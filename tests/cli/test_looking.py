"""``methods``, ``info``, ``report``, ``check``: what there is, and whether it can be trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Place, Said
from whence.curvature.base import get_method, method_names

Call = Callable[..., Said]


def test_methods_come_from_their_files(whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    said = whence("methods")
    assert said.code == 0
    for name in method_names():
        method = get_method(name)
        for text in (method.idea, method.reference, method.passes, method.memory, method.exact_when):
            assert text in said.out, name


def test_methods_as_records(whence: Call) -> None:
    records = whence("methods", "--json").records
    assert [record["name"] for record in records] == method_names()
    assert [record["name"] for record in whence("methods", "kfac", "--json").records] == ["kfac"]


def test_info(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert whence(*place.trace, "-o", "run").code == 0
    said = whence("info", "run")
    assert said.code == 0, said.err
    for word in ("ekfac", "relative:0.1", "12 scored, 0 quarantined", "replay", "torch"):
        assert word in said.out
    assert "every file is as it was written" in said.err
    assert whence("info", "run", "--json").records[0]["about"]["method"] == "ekfac"


def test_info_finds_damage(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "-o", "run").code == 0
    data = bytearray(Path("run/scores.parquet").read_bytes())
    data[len(data) // 2] ^= 4
    Path("run/scores.parquet").write_bytes(data)
    for verb in ("info", "report"):
        said = whence(verb, "run")
        assert said.code == 4
        assert "scores.parquet is damaged" in said.err


def test_info_of_nothing(place: Place, whence: Call) -> None:
    assert whence("info", "nowhere").code == 4


def test_report_again(place: Place, whence: Call) -> None:
    assert whence(*place.trace, "-o", "run").code == 0
    said = whence("report", "run", "-o", "again.html", "--title", "A <b>title</b>")
    assert said.code == 0, said.err
    page = Path("again.html").read_text()
    assert "<b>title" not in page
    Path("run/report.html").unlink()
    assert whence("report", "run").code == 0
    assert Path("run/report.html").exists()
    assert whence("info", "run").code == 0


def test_check(place: Place, whence: Call) -> None:
    said = whence("check", place.model, place.data)
    assert said.code == 0, said.err
    assert "every law holds" in said.err
    for law in ("gradients", "tokens", "batch", "padding", "repeat", "labels", "coverage", "dropout", "loss mask"):
        assert law in said.out
    records = whence("check", place.model, place.data, "--json", "--dtype", "float64").records
    laws = {record["law"]: record for record in records if record["type"] == "law"}
    assert laws["gradients"]["verdict"] == "held"
    assert laws["gradients"]["value"] < 1e-12
    assert laws["padding"]["value"] < 1e-12


def test_a_broken_law_is_an_exit_code(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from whence.linalg.matrix_batch import Outer

    honest = Outer.full
    monkeypatch.setattr(Outer, "full", lambda self: honest(self) * 1.01)
    said = whence("check", place.model, place.data)
    assert said.code == 7
    assert "broken: " in said.err
    assert "gradients" in said.err


def test_progress_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One plain line every thirty seconds, with the time left; no carriage returns."""
    from whence.cli import voice as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    voice = module.Voice()
    for done in range(0, 101, 10):
        voice.step("score", done, 100)
        now[0] += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "score     20 of 100 rows · about 3 min left",
        "score     40 of 100 rows · about 2 min left",
        "score     60 of 100 rows · about 80 s left",
        "score     80 of 100 rows · about 40 s left",
    ]


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    from whence.cli.voice import Voice

    screen = io.StringIO()
    voice = Voice()
    voice.err = Console(file=screen, force_terminal=True, width=100, legacy_windows=False)
    for done in (0, 50, 100):
        voice.step("score", done, 100)
    voice.close()
    assert "score" in screen.getvalue()
    assert "/100" in screen.getvalue()


def test_no_colour_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    from whence.cli.voice import Voice

    assert Voice().err.no_color


def test_records_never_hold_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from whence.cli.voice import Voice

    Voice(json=True).emit({"a": float("nan"), "b": np.float64(2), "c": "\u2028\ud800"})
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == {"a": None, "b": 2, "c": "\u2028\ud800"}
