"""Rounds of mixture and training, end to end: a function or a command trains, a stopped run goes on where it was."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import whence
from folders import animal_rows, model_folder, write_rows
from whence.errors import DataError, OptionError, StoreError
from whence.rounds import Rounds, mixture_rounds
from whence.weighing import Mixing, mixture_for

MIXING = Mixing(strength=0.5)
# a training in one file: the model named first is put into the folder named third, and the call is written down there
SCRIPT = """
import json, shutil, sys
base, rows, out, seed = sys.argv[1:5]
if "{fail}" in rows: sys.exit("no GPU left")
shutil.copytree(base, out, dirs_exist_ok=True)
open(out + "/called.json", "w").write(json.dumps([rows, seed, len(open(rows).readlines())]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("rounds")
    model_folder(place / "model")
    rows = animal_rows(18)
    write_rows(place / "cats.jsonl", rows[::3])
    write_rows(place / "others.jsonl", [row for n, row in enumerate(rows) if n % 3])
    write_rows(place / "dev.jsonl", [{"prompt": "the cat sat on", "completion": " the mat ."}])
    (place / "train.py").write_text(SCRIPT)
    return place


def given(world: Path) -> dict[str, Any]:
    return {
        "train": {"cats": str(world / "cats.jsonl"), "others": str(world / "others.jsonl")},
        "query": str(world / "dev.jsonl"),
    }


class Trains:
    """The same training as a function; counts its calls."""

    def __init__(self, base: Path, *, stop_at: int = 99, live: bool = False) -> None:
        self.base, self.stop_at, self.live = base, stop_at, live
        self.called: list[tuple[str, int]] = []

    def __call__(self, rows: Path, out: Path, seed: int) -> Any:
        if len(self.called) + 1 >= self.stop_at:
            (out / "half.bin").write_bytes(b"half")
            raise RuntimeError("the machine went away")
        self.called.append((rows.as_posix(), seed))
        model, tokenizer = AutoModelForCausalLM.from_pretrained(self.base), AutoTokenizer.from_pretrained(self.base)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for line in rows.read_text().splitlines():
            ids = torch.tensor([tokenizer(json.loads(line)["text"])["input_ids"]])
            optimiser.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
        if self.live:
            return model, tokenizer
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return None


@torch.no_grad()
def reference_loss(model: Any, world: Path) -> float:
    """The loss of the one question, written out."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    row = json.loads((world / "dev.jsonl").read_text())
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = torch.tensor([prompt + tokenizer(row["completion"])["input_ids"]])
    logits = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    own = torch.arange(len(prompt) - 1, len(ids[0]) - 1)
    return float(-logits[own, ids[0, own + 1]].sum())


@pytest.fixture(scope="module")
def done(world):
    train = Trains(world / "model")
    rounds = Rounds(world / "mix", count=2, function=train, mixing=MIXING)
    return train, mixture_rounds(str(world / "model"), **given(world), rounds=rounds)


def test_each_round_is_a_mixture_at_the_model_of_the_round_before(world, done, tmp_path):
    train, found = done
    one = mixture_for(str(world / "model"), **given(world), how=MIXING)
    assert found.rounds[0].weights == pytest.approx(dict(one.weights), rel=1e-6)
    one.write(tmp_path / "one")
    two = mixture_for(
        str(world / "mix" / "model-1"), **given(world), how=Mixing(strength=0.5, seed=1, after=tmp_path / "one")
    )
    assert found.rounds[1].weights == pytest.approx(dict(two.weights), rel=1e-6)
    assert found.rounds[1].before == pytest.approx(found.rounds[0].weights)
    assert found.rounds[1].weights != pytest.approx(found.rounds[0].weights, rel=1e-2)
    assert found.rounds[1].rows == {
        "cats": int(two.counts[:6].sum()), "others": int(two.counts[6:].sum())
    }  # fmt: skip
    mixed = (world / "mix" / "round-2" / "mixed.jsonl").as_posix()
    assert train.called == [(mixed.replace("round-2", "round-1"), 0), (mixed, 1)]


def test_reference_losses_are_those_of_the_models(world, done):
    _, found = done
    assert found.loss == pytest.approx(reference_loss(world / "model", world), rel=1e-4)
    for number, one in enumerate(found.rounds, start=1):
        assert one.loss == pytest.approx(reference_loss(world / "mix" / f"model-{number}", world), rel=1e-4)
    assert found.account.tables[1].rows[0] == pytest.approx([found.loss, *(one.loss for one in found.rounds)])
    page = (world / "mix" / "report.html").read_text()
    assert "Weights by round" in page and "Judge the last model on others" in page
    assert json.loads((world / "mix" / "weights.json").read_text())["weights"] == found.weights
    assert found.model == str(world / "mix" / "model-2")


def test_a_stopped_run_goes_on_where_it_was(world, done, tmp_path):
    _, whole = done
    base, out = str(world / "model"), tmp_path / "mix"
    with pytest.raises(RuntimeError, match="went away"):
        stopped = Trains(world / "model", stop_at=2)
        mixture_rounds(base, **given(world), rounds=Rounds(out, function=stopped, mixing=MIXING))
    weights = (out / "round-2" / "weights.json").stat().st_mtime_ns
    again = Trains(world / "model")
    found = mixture_rounds(base, **given(world), rounds=Rounds(out, function=again, mixing=MIXING))
    assert len(again.called) == 1 and found.model == str(out / "model-2-try2")
    assert (out / "model-2" / "half.bin").is_file()  # nobody's files are removed
    assert (out / "round-2" / "weights.json").stat().st_mtime_ns == weights
    assert found.rounds == whole.rounds
    more = Trains(world / "model")
    longer = mixture_rounds(base, **given(world), rounds=Rounds(out, count=3, function=more, mixing=MIXING))
    assert len(more.called) == 1 and longer.rounds[:2] == whole.rounds and len(longer.rounds) == 3


def test_other_rounds_in_the_folder_are_refused(world, done):
    rounds = Rounds(world / "mix", function=Trains(world / "model"), mixing=Mixing(strength=0.1))
    with pytest.raises(StoreError, match=r"holds other rounds .*0\.1"):
        mixture_rounds(str(world / "model"), **given(world), rounds=rounds)
    rows = {**given(world), "query": [{"prompt": "the dog", "completion": " ran"}]}
    with pytest.raises(StoreError, match=r"holds other rounds \(questions"):
        rounds = Rounds(world / "mix", function=Trains(world / "model"), mixing=MIXING)
        mixture_rounds(str(world / "model"), **rows, rounds=rounds)


def test_models_in_memory_do_as_well(world, done, tmp_path):
    _, whole = done
    train = Trains(world / "model", live=True)
    rounds = Rounds(tmp_path / "mix", function=train, mixing=MIXING)
    found = mixture_rounds(str(world / "model"), **given(world), rounds=rounds)
    for one, other in zip(found.rounds, whole.rounds, strict=True):
        assert one.weights == pytest.approx(dict(other.weights), rel=1e-5) and one.loss == pytest.approx(other.loss)
    mixture_rounds(str(world / "model"), **given(world), rounds=rounds)
    assert len(train.called) == 4  # there is nothing on disk to go on from


def command(world: Path, script: Path) -> str:
    return f"{sys.executable} {script} {world / 'model'} {{rows}} {{out}} {{seed}}"


def test_a_command_trains(world, done, tmp_path):
    _, whole = done
    rounds = Rounds(tmp_path / "mix", count=1, command=command(world, world / "train.py"), mixing=MIXING)
    found = mixture_rounds(str(world / "model"), **given(world), rounds=rounds)
    assert found.rounds[0].weights == whole.rounds[0].weights
    assert found.rounds[0].loss == pytest.approx(found.loss)  # this training copies the model
    rows = tmp_path / "mix" / "round-1" / "mixed.jsonl"
    called = json.loads((tmp_path / "mix" / "model-1" / "called.json").read_text())
    assert called == [str(rows), "0", sum(found.rounds[0].rows.values())]


def test_sources_of_several_forms_are_given_to_the_training_as_json_lines(world, tmp_path):
    (tmp_path / "table.csv").write_text("text\nthe cat ran\nthe dog sat\n")
    train = {"cats": str(world / "cats.jsonl"), "table": str(tmp_path / "table.csv")}
    seen: list[list[str]] = []

    def keep(rows: Path, out: Path, seed: int) -> None:
        seen.append([json.loads(line)["text"] for line in rows.read_text().splitlines()])
        shutil.copytree(world / "model", out, dirs_exist_ok=True)

    found = mixture_rounds(
        str(world / "model"), train=train, query=given(world)["query"], rounds=Rounds(tmp_path / "m", 1, function=keep)
    )
    assert len(seen[0]) == sum(found.rounds[0].rows.values())
    assert {"the cat ran", "the dog sat"} & set(seen[0])


def test_trainings_that_fail_are_told(world, tmp_path):
    (tmp_path / "fails.py").write_text(SCRIPT.replace("{fail}", "mixed"))
    base = str(world / "model")
    with pytest.raises(OptionError, match="ended with code 1: no GPU left"):
        mixture_rounds(
            base, **given(world), rounds=Rounds(tmp_path / "a", command=command(world, tmp_path / "fails.py"))
        )  # fmt: skip
    with pytest.raises(DataError, match=r"left no model in .*model-1 \(nothing at all\)"):
        mixture_rounds(base, **given(world), rounds=Rounds(tmp_path / "b", function=lambda rows, out, seed: None))
    with pytest.raises(OptionError, match=r"no \{out\}"):
        Rounds(tmp_path / "c", command="train {rows}")
    with pytest.raises(OptionError, match="rounds without training"):
        Rounds(tmp_path / "c")
    with pytest.raises(OptionError, match="0 rounds"):
        Rounds(tmp_path / "c", 0, "train {rows} {out}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="did not make"):
        mixture_rounds(base, **given(world), rounds=Rounds(tmp_path / "mine", function=lambda *_: None))


def test_a_recorded_training_on_mixed_rows_is_no_obstacle(world, tmp_path):
    """A record beside the model is of the mixed rows; the next round asks about the rows of the pool."""
    record = {
        "format": "whence training record 1", "rows": {"count": 18, "ids": None}, "steps": [[0]], "rates": [0.1],
        "probes": [{"row": 0, "length": 1, "ids": "0" * 32}], "done": 1, "finished": True,
    }  # fmt: skip

    def train(rows: Path, out: Path, seed: int) -> None:
        shutil.copytree(world / "model", out, dirs_exist_ok=True)
        (out / "whence_training.json").write_text(json.dumps(record))

    found = mixture_rounds(str(world / "model"), **given(world), rounds=Rounds(tmp_path / "m", function=train))
    assert len(found.rounds) == 2
    with pytest.raises(DataError, match="not encoded as in the recorded"):
        whence.attribute(str(tmp_path / "m" / "model-1"), **given(world), tokens=0)
    assert np.isfinite(found.rounds[1].loss)
