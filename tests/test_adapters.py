"""Adapters: several folders as checkpoints, a Trainer's folder of adapters, several adapters on one live model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import whence
from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence.cli.main import run as cli
from whence.errors import ModelError, OptionError
from whence.gradients.checkpoints import given_checkpoints
from whence.gradients.layers import find_layers

QUESTION = {"prompt": "the cat sat on", "completion": " the mat ."}
RATES = {"a": 0.5, "b": 0.25}


def adapter(base: Path, place: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = tiny_llama()
    model.name_or_path = str(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(place)
    config_file = place / "adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "base_model_name_or_path": str(base)}))
    return place


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Two adapters of one base, each with the state of its trainer."""
    base = model_folder(tmp_path / "base")
    found = {name: adapter(base, tmp_path / name, seed) for seed, name in enumerate(RATES)}
    for name, rate in RATES.items():
        state = {"global_step": 10, "log_history": [{"step": 10, "learning_rate": rate}]}
        (found[name] / "trainer_state.json").write_text(json.dumps(state))
    return found


def alone(place: Path, **options: Any) -> np.ndarray:
    return whence.attribute(place, train=animal_rows(), query=QUESTION, **options).values


def test_adapters_are_averaged(places: dict[str, Path]) -> None:
    several = whence.attribute(places["b"], train=animal_rows(), query=QUESTION, checkpoints=list(places.values()))
    np.testing.assert_allclose(several.values, np.mean([alone(p) for p in places.values()], axis=0), rtol=1e-9)
    assert all("lora_" in name for name in several.about["layers"])
    assert [c["folder"] for c in several.about["checkpoints"]] == ["a", "b"]


def test_tracin_over_adapters(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "train.jsonl", animal_rows())
    folders = ",".join(str(p) for p in places.values())
    words = f"trace --model {places['b']} --data {data} --checkpoints {folders} --method identity".split()
    assert cli([*words, "-o", str(tmp_path / "run"), "--prompt", "the cat sat on", "--response", " the mat ."]) == 0
    assert "2 from step 10 to 10, learning rates" in capsys.readouterr().err
    wanted = sum(rate * alone(places[name], method="identity") for name, rate in RATES.items())
    np.testing.assert_allclose(whence.load(tmp_path / "run").values, wanted, rtol=1e-9)


def test_a_trainers_folder_of_adapters(places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for step, place in zip((2, 10), places.values(), strict=True):
        place.rename(out / f"checkpoint-{step}")
    model = out / "checkpoint-10"
    found = whence.attribute(model, train=animal_rows(), query=QUESTION, checkpoints=str(out))
    wanted = np.mean([alone(out / f"checkpoint-{step}") for step in (2, 10)], axis=0)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-9)
    assert [c["step"] for c in found.about["checkpoints"]] == [2, 10]


def test_steps_and_rates_of_named_folders(tmp_path: Path, places: dict[str, Path]) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "plain").mkdir()
    found = given_checkpoints([tmp_path / "plain", tmp_path / "checkpoint-7", places["a"]])
    assert [(c.step, c.learning_rate) for c in found] == [(1, None), (7, None), (10, 0.5)]
    with pytest.raises(ModelError, match="nowhere"):
        given_checkpoints([tmp_path / "plain", tmp_path / "nowhere"])
    with pytest.raises(OptionError, match="plain: no learning rate"):
        options: dict[str, Any] = {"checkpoints": [tmp_path / "plain", places["a"]], "method": "identity"}
        whence.attribute(places["a"], train=animal_rows(), query=QUESTION, **options)


def test_only_the_adapter_that_is_switched_on(places: dict[str, Path]) -> None:
    """Both on one live model: the scores are those of the one in use."""
    model = PeftModel.from_pretrained(tiny_llama(), str(places["a"]), adapter_name="a", is_trainable=True)
    model.load_adapter(str(places["b"]), adapter_name="b", is_trainable=True)
    for name, place in places.items():
        model.set_adapter(name)
        assert {n.rpartition(".")[2] for n in find_layers(model).names} == {name}
        found = whence.attribute((model, word_tokenizer()), train=animal_rows(), query=QUESTION).values
        np.testing.assert_allclose(found, alone(place), rtol=1e-5, atol=1e-9)
