"""An index built and asked by two ranks of one model in pieces: the files of one process, whatever dies on the way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import whence
from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from indexing_ranks import main
from whence import faults
from whence.cli.main import run
from whence.errors import OptionError, StoreError, WhenceError, retold
from whence.gradients.ranks import Ranks
from whence.linalg.threads import threads
from whence.store.index_folder import HISTORY, IndexFolder
from whence.store.index_journal import Journal
from whence.store.run import LOCK
from whence.store.shared_folder import SharedFolder

ASKED = [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran on ."}]
SECONDS = 60  # within which a job that lost a rank must be over
TOLERANCE = 1e-6  # float32 sums in another order


QUESTIONS = {
    "plain": [], "mixed": ["--combine", "contrast", "--normalise", "cosine"], "few": ["--top-k", "3", "--span", "1:4"]
}  # fmt: skip


def build(out: str, *more: str) -> list[str]:
    """A command that makes several shards of several batches, its fit judged on the way; one row is bad."""
    said = ["index", "--model", "model", "--data", "rows.jsonl", "-o", out, "--device", "cpu", "--batch-tokens", "32"]
    return [*said, "--max-bad-rows", "1", "--budget", "0.3", "--shard-mb", "0.002", *more]


def ask(index: str, out: str, *more: str) -> list[str]:
    return ["ask", "--index", index, "--query", "ask.jsonl", "--device", "cpu", "-o", out, *more]


def launch(place: Path, commands: list[list[str]], *, fault: str = "") -> subprocess.CompletedProcess[str]:
    """These commands in two ranks."""
    (place / "commands.json").write_text(json.dumps(commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = [main.__code__.co_filename, str(place), "commands.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", faults.VARIABLE: fault, "PYTHONWARNINGS": "ignore"}
    return subprocess.run([*launcher, *script], env=environment, cwd=place, capture_output=True, text=True, timeout=200)


def first_shard(command: list[str]) -> int:
    """Run it here; how many disk points it had passed when its first shard was entered: as many as with ranks."""
    passed: dict[str, int] = {}
    enter = IndexFolder.enter

    def told(self: IndexFolder, name: str, **facts: Any) -> None:
        enter(self, name, **facts)
        passed[name] = faults.ARMED.reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IndexFolder, "enter", told)
        assert run_with("count@1", command) == 0
    return passed["shard-00000.safetensors"]


def run_with(fault: str, command: list[str]) -> int:
    faults.arm(fault)
    try:
        return run([*command, "--quiet"])
    finally:
        faults.arm("")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process, two that were stopped, and two have left what they made."""
    place = tmp_path_factory.mktemp("ranks")
    model_folder(place / "model")
    write_rows(place / "rows.jsonl", [*animal_rows(40), {"text": "."}])
    write_rows(place / "ask.jsonl", ASKED)
    with contextlib.chdir(place), threads(1):
        points = first_shard(build("one"))
        for name, more in QUESTIONS.items():
            assert run([*ask("one", f"one-{name}", *more), "--quiet"]) == 0
    shutil.copytree(place / "one", place / "begun")  # by one process, and never finished
    for name in ("index.json", "shard-00001.safetensors", "rows.parquet"):
        (place / "begun" / name).unlink()
    started = time.monotonic()
    done = launch(place, [build("two", "--fsdp")], fault=f"kill@{points + 1}:rank=0")
    said = {"seconds": time.monotonic() - started, "killed": done.stderr}
    said["journal"] = (place / "two" / "journal.jsonl").read_text()
    commands = [
        build("two", "--fsdp"), build("two", "--fsdp"),
        build("begun", "--fsdp"), *(ask("two", f"two-{name}", *more, "--fsdp") for name, more in QUESTIONS.items()),
        build("two", "--fsdp", "--seed", "3"), ask("nowhere", "x", "--fsdp"), build("y", "--fsdp", "--shard", "0/2"),
        ask("two", "x", "--fsdp", "--tuned", "model", "--tuned-data", "rows.jsonl"), ["python"],
    ]  # fmt: skip
    done = launch(place, commands)
    assert done.returncode == 0, done.stderr[-5000:]
    (place / "said.json").write_text(json.dumps({**said, "out": done.stdout, "err": done.stderr}))
    return place


def said(left: Path) -> dict[str, Any]:
    return json.loads((left / "said.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that say who worked, and when."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (HISTORY, LOCK)}


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]


def test_every_command_ends_alike_in_both_ranks(left: Path) -> None:
    codes = [json.loads((left / f"codes.{rank}.json").read_text()) for rank in (0, 1)]
    assert codes[0] == codes[1] == [0, 0, 0, 0, 0, 0, 4, 4, 2, 2]
    assert not (left / "x").exists() and not (left / "y").exists() and not (left / "crash.txt").exists()


def test_after_a_kill_the_files_are_those_of_one_process(left: Path) -> None:
    told = said(left)
    assert told["seconds"] < SECONDS
    assert '"name":"shard-00000.safetensors"' in told["journal"]
    assert '"name":"shard-00001.safetensors"' not in told["journal"]
    assert "a bug in whence" not in told["killed"]
    assert contents(left / "two") == contents(left / "one")
    made = [told["shards_made"] for told in history(left / "two")]
    shards = len(list((left / "one").glob("shard-*.safetensors")))
    assert shards >= 4 and made == [shards - 1, 0]  # the second of these runs found everything done
    assert {told["who"] for told in history(left / "two")} == {"2 ranks of one model"}


def test_ranks_finish_what_one_process_began(left: Path) -> None:
    assert contents(left / "begun") == contents(left / "one")
    assert [told["shards_made"] for told in history(left / "begun")][-1] == 1


@pytest.mark.parametrize("name", list(QUESTIONS))
def test_an_answer_is_that_of_one_process(left: Path, name: str) -> None:
    truth, found = whence.load(left / f"one-{name}"), whence.load(left / f"two-{name}")
    assert found.query_ids == truth.query_ids and found.train_ids == truth.train_ids
    assert np.isnan(found.values).sum() == np.isnan(truth.values).sum() < truth.values.size
    scale = np.nanmax(np.abs(truth.values))
    np.testing.assert_allclose(found.values, truth.values, rtol=0, atol=TOLERANCE * scale)
    if truth.columns is not None:
        np.testing.assert_array_equal(found.columns, truth.columns)
    assert (left / f"two-{name}" / "report.html").stat().st_size > 10_000


def test_only_the_first_rank_speaks(left: Path) -> None:
    told = said(left)
    assert told["out"].count("How far to trust it") == len(QUESTIONS)
    for words in ("an index of something else (options.seed", "nowhere is not an index"):
        assert told["err"].count(words) == 1
    assert told["err"].count("rows      40 of 41") == 4  # three builds, and one that was refused afterwards
    assert "shard with fsdp" in told["err"] and "tuned with fsdp" in told["err"]


def test_python_in_both_ranks(left: Path) -> None:
    """A live model; the index has it all, the first rank the scores, the other the same manifest and no scores."""
    first, other = (json.loads((left / f"python.{rank}.json").read_text()) for rank in (0, 1))
    assert first["body"] == other["body"] == json.loads(json.dumps(first["body"]))
    assert first["shape"] == [2, 41] and other["shape"] == [2, 0] and first["queries"] == other["queries"]
    assert "fit" in first["told"] and first["told"].count("index 40/40") >= 1 and other["told"] == []
    rows = [json.loads(line) for line in (left / "rows.jsonl").read_text().splitlines()]
    with threads(1):
        whence.build_index(
            (tiny_llama(), word_tokenizer()), train=rows, out=left / "alone", device="cpu", batch_tokens=32,
            max_bad_rows=1, compression={"budget": 100},
        )  # fmt: skip
    assert contents(left / "live") == contents(left / "alone")
    found = whence.ask(left / "live", ASKED, model=(tiny_llama(), word_tokenizer()))
    assert np.isfinite(found.values[:, :-1]).all() and found.train_ids == tuple(f"train:{n}" for n in range(1, 42))


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one rank, in this process."""
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield
    dist.destroy_process_group()


def test_a_batch_that_does_not_fit_is_halved_by_the_next_run(
    left: Path, alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks cannot start a batch again: they end. What one learned is in the folder, if it is on the same disk."""
    monkeypatch.chdir(left)
    with threads(1):
        assert run_with("oom@batch=3", build("whole", "--fit-rows", "all")) == 0
        split = build("split", "--fit-rows", "all", "--fsdp")
        assert run_with("oom@batch=3", split) == 5
        assert "that batch in halves" in capsys.readouterr().err
        assert run_with("", split) == 0
    assert contents(left / "split") == contents(left / "whole")
    assert b'"split 3"' in contents(left / "split")["index.json"]
    other = SharedFolder(Ranks(1, 2, torch.device("cpu")), None, left / "split", {})
    other.remember("split 4", {"batch": 4, "parts": [1, 1]})
    SharedFolder(other.ranks, None, left / "elsewhere", {}).remember("split 4", {"batch": 4, "parts": [1, 1]})
    assert not (left / "elsewhere").exists()
    journal = Journal(left / "split")
    journal.refresh()
    assert journal.entries["split 4"]["parts"] == [1, 1] and (left / "split" / "journal-rank-1.jsonl").exists()


def test_an_error_of_the_first_rank_is_raised_by_all() -> None:
    error = retold("StoreError", "a", "b", "c")
    assert isinstance(error, StoreError) and error.told and str(error) == "a\n  wanted: b\n  try:    c"
    assert type(retold("Nobody", "a", "", "")) is WhenceError and not StoreError("a").told


def test_one_process_alone_is_told_to_use_a_launcher(left: Path) -> None:
    with pytest.raises(OptionError, match="no launcher"):
        whence.build_index(left / "model", train=left / "rows.jsonl", out=left / "never", fsdp=True)
    with pytest.raises(OptionError, match="no launcher"):
        whence.ask(left / "one", ASKED, fsdp=True)
    assert not (left / "never").exists()
