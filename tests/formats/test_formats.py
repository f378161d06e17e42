"""Folders that earlier versions wrote are read; crafted ones are refused; what a dead process left is nobody's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import whence
from folders import animal_rows, tiny_llama, word_tokenizer
from formats.make import QUESTION
from whence.errors import StoreError
from whence.store.index_folder import read_manifest
from whence.store.run import OWNER, claimed, load_scores, seal

KEPT = sorted(p for p in Path(__file__).parent.iterdir() if p.name.startswith("v") and p.is_dir())


@pytest.mark.parametrize("kept", KEPT, ids=lambda p: p.name)
def test_a_kept_run_is_still_read(kept: Path) -> None:
    scores = load_scores(kept / "run")
    assert scores.train_ids == tuple(f"row-{n}" for n in range(12)) and np.isfinite(scores.values).all()
    assert scores.train_rows["row-0"].text == animal_rows()[0]["text"]
    assert scores.proponents(0, 1)[0].score == scores.values.max()


@pytest.mark.parametrize("kept", KEPT, ids=lambda p: p.name)
def test_a_kept_index_still_answers(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept, tmp_path / "kept")
    found = whence.ask(tmp_path / "kept" / "index", QUESTION, model=str(tmp_path / "kept" / "model"))
    truth = load_scores(kept / "run")
    assert found.train_ids == truth.train_ids
    assert np.corrcoef(found.values[0], truth.values[0])[0, 1] > 0.9  # rows in 300 bytes


HOLD = """
import sys
from whence.store.run import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_that_a_dead_process_left_is_nobodys(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {holder.pid}"), claimed(tmp_path / "run"):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
    assert (tmp_path / "run" / OWNER).exists()  # the dead could not clean up
    with claimed(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 10**9}, {"shards": -1}, {"shards": "../x"}, {"rows": 10**12}, {"files": {"../../etc/passwd": {}}},
        {"files": {}}, {"code": {"scheme": "pickle"}}, {"layout": {"x": [10**9, 10**9]}}, {"layout": None},
        {"places": {"x": {"Q": "00000"}}}, {"spec": None}, {"options": {"trust_remote_code": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_sealed_but_hostile_index_is_refused(tmp_path: Path, change: dict) -> None:
    folder, model = tmp_path / "i", (tiny_llama(), word_tokenizer())
    whence.build_index(model, train=animal_rows(), out=folder, compression={"budget": 0.3}, fit_rows="all")
    path = folder / "index.json"
    body = {k: v for k, v in read_manifest(folder).items() if k != "seal"}
    body |= change
    path.write_text(json.dumps({**body, "seal": seal(body)}))
    with pytest.raises(whence.WhenceError):
        whence.ask(folder, QUESTION, model=model)
