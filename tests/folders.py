"""Model folders and row files on disk, as a user has them: a tiny Llama with a word tokenizer, rows about animals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

WORDS = tuple(
    "the a cat dog bird sat ran flew on under over mat log tree and then slept happily . who where did it go ?".split()  # noqa: SIM905 - as prose
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Whitespace words, a fixed vocabulary, no start token."""
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    unk, bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=32
    )


def tiny_llama(*, seed: int = 0, classes: int = 0) -> Any:
    """One block, eight wide."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS) + len(SPECIAL),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.3,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        **(
            {"num_labels": classes, "id2label": {0: "calm", 1: "lively"}, "label2id": {"calm": 0, "lively": 1}}
            if classes
            else {}
        ),
    )
    return (LlamaForSequenceClassification(config) if classes else LlamaForCausalLM(config)).float()


def model_folder(place: Path, *, seed: int = 0, classes: int = 0) -> Path:
    """A complete model folder."""
    tiny_llama(seed=seed, classes=classes).save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


def edit_weights(folder: Path, **changes: Any) -> None:
    """Change single tensors of a saved model: name (dots as __) -> function of the tensor, or None to drop it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del tensors[key]
        else:
            tensors[key] = change(tensors[key])
    save_file(tensors, path, metadata={"format": "pt"})


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """A .jsonl file; a string is written as it is (a bad line)."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def animal_rows(count: int = 12) -> list[dict[str, str]]:
    """Short sentences of different lengths."""
    animals, verbs, places = ("cat", "dog", "bird"), ("sat", "ran", "flew"), ("mat", "log", "tree")
    rows = []
    for n in range(count):
        text = f"the {animals[n % 3]} {verbs[n // 3 % 3]} on the {places[n // 2 % 3]}"
        rows.append({"text": text + (" and then slept happily ." if n % 2 else " .")})
    return rows
