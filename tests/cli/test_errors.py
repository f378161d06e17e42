"""Every way a user can go wrong: one cause, one next step, its exit code, no traceback, nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.conftest import Place, Said, process
from folders import animal_rows, edit_weights, write_rows
from whence.cli import main
from whence.errors import retold
from whence.store.run import claimed

Call = Callable[..., Said]


def refused(said: Said, code: int, *words: str) -> None:
    assert said.code == code, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err
    assert said.out == ""
    assert not Path("crash.txt").exists()


def test_wrong_model_path(place: Place, whence: Call) -> None:
    given = ["trace", "--model", "./no-such-model", *place.trace[3:], "-o", "run"]
    refused(whence(*given), 6, "no model folder ./no-such-model", "wanted:", "try:")
    assert not Path("run/run.json").exists()


def test_empty_file(place: Place, whence: Call) -> None:
    place.data.write_text("")
    refused(whence(*place.trace), 3, "train.jsonl", "no rows", "try:")


def test_all_rows_bad(place: Place, whence: Call) -> None:
    write_rows(place.data, ["{", "{", "{"])
    refused(whence(*place.trace), 3, "train.jsonl:1", "try:")


def test_too_many_bad_rows(place: Place, whence: Call) -> None:
    write_rows(place.data, [*animal_rows(8), "{", "{"])
    refused(whence(*place.trace), 3, "2 of 10 rows cannot be used", "train.jsonl:9", "--max-bad-rows")
    refused(whence(*place.trace, "--max-bad-rows", "1"), 3, "at most 1 (max_bad_rows = 1)")  # a count, not 100 %


def test_nan_weights(place: Place, whence: Call, tmp_path: Path) -> None:
    model = shutil.copytree(place.model, tmp_path / "spoilt")
    edit_weights(model, model__layers__0__self_attn__q_proj__weight=lambda t: t * torch.nan)
    refused(whence("trace", "--model", model, *place.trace[3:]), 6, "q_proj.weight", "NaN", "try:")


def test_unknown_method(place: Place, whence: Call) -> None:
    refused(whence(*place.trace, "--method", "ekfak"), 2, "unknown method 'ekfak'", "did you mean 'ekfac'", "kfac, ")


@pytest.mark.parametrize("damping", ["0", "relative:0", "absolute:-1", "nan"])
def test_zero_damping(place: Place, whence: Call, damping: str) -> None:
    refused(whence(*place.trace, "--damping", damping), 2, "damping", "wanted:")


def test_missing_column(place: Place, whence: Call) -> None:
    write_rows(place.data, [{"story": row["text"]} for row in animal_rows()])
    refused(whence(*place.trace), 3, "story", "--column text=story")
    assert whence(*place.trace, "--column", "text=story").code == 0


def test_output_folder_in_use(place: Place, whence: Call) -> None:
    with claimed("run"):
        refused(whence(*place.trace, "-o", "run"), 4, "run is in use by process", "try:")
    assert whence(*place.trace, "-o", "run").code == 0


def test_output_folder_of_somebody_else(place: Place, whence: Call) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("x")
    refused(whence(*place.trace, "-o", "thesis"), 4, "whence did not make", "try:")
    assert [p.name for p in Path("thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace"], ["no model given", "--model"]),
        (["trace", "--model", "x", "--data", "y"], ["no question", "--response"]),
        (["trace", "--model", "x", "--data", "y", "--prompt", "z"], ["a prompt without a response"]),
        (["trace", "--modle", "x"], ["--modle", "--model"]),
        (["trace", "--top-k", "many"], ["top-k"]),
        (["trace", "--model", "x", "--data", "y", "--response", "z", "--top-k", "0"], ["top_k = 0"]),
        (["trace", "--model", "x", "--data", "y", "--response", "z", "--fisher", "exact"], ["fisher = 'exact'"]),
        (["trace", "--model", "x", "--data", "y", "--response", "z", "--column", "story"], ["--column text=story"]),
        (["trace", "--model", "x", "--data", "y", "--response", "z", "--task", "chess"], ["unknown task 'chess'"]),
        (["trace", "-c", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["tarce"], ["tarce", "trace"]),
        (["methods", "ekfak"], ["unknown method 'ekfak'", "ekfac"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage(
    whence: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    refused(whence(*arguments), 2, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("metod: kfac\n", ["unknown option 'metod'", "did you mean 'method'"]),
        ("- a\n- b\n", ["holds a list"]),
        ("a: [b\n", ["is not YAML"]),
        ("model: !!python/object/apply:os.getcwd []\n", ["is not YAML"]),
        ("options: 3\n", ["options: 3"]),
    ],
)
def test_config_files(place: Place, whence: Call, text: str, words: list[str]) -> None:
    Path("run.yaml").write_text(text)
    refused(whence(*place.trace, "-c", "run.yaml"), 2, *words)


def test_errors_as_records(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "--method", "ekfak", "--json")
    assert said.code == 2
    last = said.records[-1]
    assert last["type"] == "error"
    assert last["exit_code"] == 2
    assert last["kind"] == "OptionError"
    assert last["got"] == "unknown method 'ekfak'"
    assert last["try"]


def test_debug_shows_the_traceback(place: Place, whence: Call) -> None:
    said = whence(*place.trace, "--method", "ekfak", "--debug")
    assert said.code == 2
    assert "Traceback" in said.err


def test_a_bug_leaves_a_file_and_no_traceback(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("token hf_abcdefghijklmnop slipped in")

    monkeypatch.setattr("whence.api.trace", broken)
    said = whence(*place.trace)
    assert said.code == 1
    assert "Traceback" not in said.err
    assert "a bug in whence: ZeroDivisionError" in said.err
    assert "crash.txt" in said.err
    details = Path("crash.txt").read_text()
    assert "Traceback" in details
    assert "torch" in details
    assert "hf_abcdef" not in details
    assert "hf_abcdef" not in said.err


def test_out_of_memory_is_a_resource_error(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")

    monkeypatch.setattr("whence.api.trace", hungry)
    refused(whence(*place.trace), 5, "out of memory", "--batch-tokens")


def test_another_rank_that_is_gone_is_no_bug(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP's own collectives raise what gloo says; the process that died has told why."""

    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("[/build/gloo/pair.cc:553] Connection closed by peer [10.0.0.1]:80. This is typically ...")

    monkeypatch.setattr("whence.api.trace", lost)
    refused(whence(*place.trace), 75, "another process of this job is gone (Connection closed by peer [10.0.0.1]:80")


def test_an_error_that_another_rank_tells_is_not_told_again(
    place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused_elsewhere(*_: object, **__: object) -> None:
        raise retold("StoreError", "run/ is in use", "", "")

    monkeypatch.setattr("whence.api.trace", refused_elsewhere)
    said = whence(*place.trace)
    assert said.code == 4 and not said.out and "in use" not in said.err


def test_ctrl_c(place: Place, whence: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("whence.api.trace", interrupted)
    assert whence(*place.trace).code == main.INTERRUPTED == 130
    assert not Path("crash.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals(place: Place, number: int, code: int) -> None:
    write_rows(place.data, animal_rows(5_000))
    started = process(*place.trace, "--batch-tokens", "16", "-o", "run")
    assert started.stderr is not None
    for line in started.stderr:
        if line.startswith("questions"):
            break
    time.sleep(0.5)
    started.send_signal(number)
    _, rest = started.communicate(timeout=60)
    assert started.returncode == code, rest
    assert "Traceback" not in rest
    assert not Path("run/run.json").exists()


@pytest.mark.slow
def test_a_reader_that_leaves(place: Place) -> None:
    """``whence methods | head -1`` is no crash."""
    with process("methods") as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.readline()
        started.stdout.close()
        assert "Traceback" not in started.stderr.read()
        assert started.wait(timeout=120) in (0, 1, 141)


def test_nothing_is_written_to_the_home_or_the_folder(place: Place, whence: Call, tmp_path: Path) -> None:
    before = {p.name for p in tmp_path.iterdir()}
    assert whence(*place.trace).code == 0
    assert {p.name for p in tmp_path.iterdir()} == before


def test_error_records_are_json(whence: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = whence("trace", "--nonsense", "--json")
    assert [json.loads(line)["exit_code"] for line in said.out.splitlines()] == [2]
