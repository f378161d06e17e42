"""``whence trace`` and ``whence check`` for models that are no plain language models, from folders on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import whence as library
from cli.conftest import Said
from folders import SPECIAL, WORDS, animal_rows, model_folder, word_tokenizer, write_rows

Call = Callable[..., Said]
TEXTS = [row["text"] for row in animal_rows()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def adapter(place: Path) -> Path:
    """An adapter on a tiny Llama, as a trainer leaves it."""
    base = model_folder(place / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(place / "tuned")
    return place / "tuned"


def pairs() -> list[dict[str, str]]:
    return [{"prompt": "the cat", "chosen": f" {text}", "rejected": " sat under it"} for text in TEXTS]


def test_preferences_with_an_adapter(place: Path, whence: Call) -> None:
    model, data = adapter(place), write_rows(place / "pairs.jsonl", pairs())
    words = ["--model", model, "--data", data, "--task", "preference:beta=0.5"]
    said = whence("trace", *words, "--prompt", "the cat", "--response", " the dog ran .", "-o", "run")
    assert said.code == 0, said.err
    assert "shape preference" in said.err
    scores = library.load("run")
    assert np.isfinite(scores.values).all() and np.abs(scores.values).max() > 0
    page = Path("run/report.html").read_text()
    assert "sat under it" in page
    asked = whence("trace", *words, "--query", data, "-o", "again")
    assert asked.code == 0, asked.err
    assert whence("check", model, data, "--task", "preference:beta=0.5").code == 0


def test_a_full_model_needs_a_reference(place: Path, whence: Call) -> None:
    model, base = model_folder(place / "tuned", seed=1), model_folder(place / "base")
    data = write_rows(place / "pairs.jsonl", pairs())
    words = ["trace", "--model", model, "--data", data, "--query", data]
    said = whence(*words, "--task", "preference")
    assert said.code != 0 and "reference" in said.err and "Traceback" not in said.err
    said = whence(*words, "--task", f"preference:reference={base},beta=0.3")
    assert said.code == 0, said.err
    said = whence(*words)
    assert said.code != 0 and "--task preference" in said.err
    said = whence(*words, "--task", "preference:gamma=3")
    assert said.code != 0 and "beta (a number, default 0.1)" in said.err


def test_encoder_and_decoder(place: Path, whence: Call) -> None:
    config = T5Config(
        vocab_size=len(WORDS) + len(SPECIAL), d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2,
        decoder_start_token_id=3, pad_token_id=3, eos_token_id=2,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(place / "model")
    word_tokenizer().save_pretrained(place / "model")
    data = write_rows(place / "train.jsonl", [{"input": t, "target": t[:12]} for t in TEXTS])
    said = whence("trace", "--model", "model", "--data", data, "--query", data, "-o", "run")
    assert said.code == 0, said.err
    assert "shape pair" in said.err and "T5ForConditionalGeneration" in said.err
    assert np.isfinite(library.load("run").values).all()
    checked = whence("check", "model", data)
    assert checked.code == 0, checked.out + checked.err


def test_labels_of_words(place: Path, whence: Call) -> None:
    names = {0: "O", 1: "B-PET"}
    config = BertConfig(
        vocab_size=len(WORDS) + len(SPECIAL), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=32, id2label=names, label2id={n: i for i, n in names.items()},
    )  # fmt: skip
    BertForTokenClassification(config).save_pretrained(place / "model")
    word_tokenizer().save_pretrained(place / "model")
    rows: list[dict[str, Any]] = [
        {"tokens": t.split(), "tags": ["B-PET" if w in ("cat", "dog", "bird") else "O" for w in t.split()]}
        for t in TEXTS
    ]
    data = write_rows(place / "train.jsonl", rows)
    said = whence("trace", "--model", "model", "--data", data, "--query", data, "-o", "run")
    assert said.code == 0, said.err
    assert "shape tagged" in said.err
    assert "cat/B-PET" in Path("run/report.html").read_text()
    assert whence("check", "model", data).code == 0
