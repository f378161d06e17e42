"""FSDP2: two processes with the model in pieces give what one process gives, through Python and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import whence
from folders import animal_rows, model_folder, write_rows
from loading.two_ranks import MODELS, numbers
from whence.errors import OptionError

TOLERANCE = 1e-6  # float32 sums in another order
ASKED = [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran on ."}]


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """The folder in which two processes have left their numbers."""
    place = tmp_path_factory.mktemp("ranks")
    model_folder(place / "model")
    write_rows(place / "rows.jsonl", animal_rows())
    write_rows(place / "ask.jsonl", ASKED)
    script = Path(__file__).with_name("two_ranks.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(script), str(place)], env=environment, cwd=place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-5000:]
    (place / "stdout.txt").write_text(done.stdout)
    return place


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the truth; NaN must be where NaN is."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(truth))
    return float(np.linalg.norm(np.nan_to_num(found - truth)) / np.linalg.norm(np.nan_to_num(truth)))


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_equal_one_process(left: Path, name: str) -> None:
    whole = numbers(name, None)
    for rank in (0, 1):
        found = load_file(left / f"{name}.{rank}.safetensors")
        assert set(found) == set(whole)
        for key, truth in whole.items():
            assert distance(found[key].numpy(), truth.numpy()) <= TOLERANCE, f"{key} of rank {rank}"


def test_all_ranks_hold_the_same_bytes(left: Path) -> None:
    for name in MODELS:
        assert (left / f"{name}.0.safetensors").read_bytes() == (left / f"{name}.1.safetensors").read_bytes()


def test_the_command_line_answers_once(left: Path) -> None:
    options = {"batch_tokens": 32, "fit_rows": "all", "self_influence": True}
    truth = whence.attribute(left / "model", train=left / "rows.jsonl", query=left / "ask.jsonl", **options)
    found = whence.load(left / "run")
    assert distance(found.values, truth.values) <= TOLERANCE
    assert found.self_influence is not None and truth.self_influence is not None
    assert distance(found.self_influence, truth.self_influence) <= TOLERANCE
    assert found.train_ids == truth.train_ids and found.lexical is not None
    assert (left / "stdout.txt").read_text().count("How far to trust it") == 1


def test_one_process_alone_is_told_to_use_a_launcher(left: Path) -> None:
    with pytest.raises(OptionError, match="no launcher"):
        whence.attribute(left / "model", train=left / "rows.jsonl", query=left / "ask.jsonl", fsdp=True)
