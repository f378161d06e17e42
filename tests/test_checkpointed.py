"""Scores over checkpoints: TracInCP by hand, means of any method, and nothing that could execute is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whence
from folders import animal_rows, edit_weights, model_folder, write_rows
from whence.cli.main import run as cli
from whence.errors import ModelError, OptionError

QUESTION = {"prompt": "the cat sat on", "completion": " the mat ."}
STEPS = {10: 0.2, 2: 0.5}  # in string order, 10 comes first


class _Trap:
    """Unpickling this writes a file: proof that somebody did."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An output folder as the Trainer leaves it, with pickles in every checkpoint that must not be opened."""
    folder = model_folder(tmp_path / "out")
    for step in STEPS:
        place = folder / f"checkpoint-{step}"
        place.mkdir()
        for name in ("config.json", "model.safetensors"):  # no tokenizer: the Trainer often saves none
            shutil.copy(folder / name, place / name)
        edit_weights(place, model__layers__0__mlp__down_proj__weight=lambda t, s=step: t * (1 + 1 / s))
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save(_Trap(tmp_path / "opened"), place / name)
    history = [{"step": step, "learning_rate": rate} for step, rate in STEPS.items()]
    (folder / "checkpoint-10" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return folder


def alone(run: Path, step: int, **options: Any) -> np.ndarray:
    """The scores of one checkpoint by itself, with the tokenizer it lacks."""
    place = run.parent / f"alone-{step}"
    shutil.copytree(run, place, ignore=shutil.ignore_patterns("checkpoint-*"), dirs_exist_ok=True)
    shutil.copy(run / f"checkpoint-{step}" / "model.safetensors", place / "model.safetensors")
    return whence.attribute(place, train=animal_rows(), query=QUESTION, **options).values


def over(run: Path, **options: Any) -> whence.Scores:
    return whence.attribute(run, train=animal_rows(), query=QUESTION, checkpoints=str(run), **options)


def test_tracin_is_learning_rates_times_gradient_dot_products(run: Path) -> None:
    found = over(run, method="identity")
    wanted = sum(rate * alone(run, step, method="identity") for step, rate in STEPS.items())
    np.testing.assert_allclose(found.values, wanted, rtol=1e-9)
    listed = [(c["step"], c["learning_rate"], c["weight"]) for c in found.about["checkpoints"]]
    assert listed == [(2, 0.5, 0.5), (10, 0.2, 0.2)]
    assert any("not removal effects" in warning for warning in found.about["warnings"])
    assert not (run.parent / "opened").exists()


@pytest.mark.parametrize("options", [{"method": "ekfac"}, {"method": "identity", "normalise": "cosine"}])
def test_other_methods_are_averaged(run: Path, options: dict[str, str]) -> None:
    found = over(run, checkpoint_weights="mean", **options)
    wanted = np.mean([alone(run, step, **options) for step in STEPS], axis=0)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-9)
    assert [c["weight"] for c in found.about["checkpoints"]] == [0.5, 0.5]


def test_the_mean_is_what_other_methods_get_unasked(run: Path) -> None:
    np.testing.assert_array_equal(over(run).values, over(run, checkpoint_weights="mean").values)
    weighted = over(run, checkpoint_weights="learning_rate")
    assert [c["weight"] for c in weighted.about["checkpoints"]] == [0.5, 0.2]


def test_parts_and_ranking_are_of_the_sum(run: Path, tmp_path: Path) -> None:
    whole = over(run, per_layer=True, self_influence=True)
    np.testing.assert_allclose(whole.per_layer.sum(-1), whole.values, rtol=1e-4, atol=1e-7)
    assert (whole.self_influence > 0).all()
    few = over(run, top_k=3, out=tmp_path / "answer")
    assert [r.train_id for r in few.proponents(0, 3)] == [r.train_id for r in whole.proponents(0, 3)]
    loaded = whence.load(tmp_path / "answer")
    np.testing.assert_array_equal(loaded.values, few.values)
    record = json.loads((tmp_path / "answer" / "run.json").read_text())
    assert [c["folder"] for c in record["checkpoints"]] == ["checkpoint-2", "checkpoint-10"]


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "train.jsonl", animal_rows())
    words = f"trace --model {run} --data {data} --checkpoints {run} --method identity --json".split()
    assert cli([*words, "--prompt", "the cat sat on", "--response", " the mat ."]) == 0
    said = capsys.readouterr()
    best = next(record for record in map(json.loads, said.out.splitlines()) if record.get("rank") == 1)
    assert best["score"] == pytest.approx(over(run, method="identity").proponents(0, 1)[0].score)
    assert "2 from step 2 to 10, learning rates" in said.err


def test_what_does_not_fit_is_explained(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint-N"):
        whence.attribute(run, train=animal_rows(), query=QUESTION, checkpoints=str(run / "checkpoint-2"))
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    with pytest.raises(OptionError, match="no learning rate"):
        over(run, method="identity")
    (run / "checkpoint-2" / "model.safetensors").unlink()
    (run / "checkpoint-2" / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(ModelError, match="pickle"):
        over(run)
    assert not (tmp_path / "opened").exists()
