"""One small model in float64 with a few rows for every task, for the laws that all tasks keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import examples, llama
from reference.models import in_double, mlp, number_rows
from tasks.conftest import byte_level
from whence.tasks.base import Example, Task
from whence.tasks.causal_lm import CausalLM
from whence.tasks.classification import SequenceClassification
from whence.tasks.preference import Preference
from whence.tasks.records import Row
from whence.tasks.regression import Regression
from whence.tasks.seq2seq import Seq2Seq
from whence.tasks.token_classification import TokenClassification

Case = tuple[nn.Module, Task, list[Example], tuple[str, ...]]
TAGS = {"O": 0, "B-PET": 1, "I-PET": 2}
PAIRS = [
    ("the cat sat", "le chat"),
    ("hello", "hello back to the user"),
    ("and the dog sat on the log", "two"),
    ("one and one", "is it two and the mat and the log"),
]


def encoded(task: Task, rows: Sequence[dict[str, Any]]) -> list[Example]:
    return [task.encode(Row(str(fields.get("id", f"r{n}")), fields)) for n, fields in enumerate(rows)]


def words_of_bert(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=400, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3, initializer_range=0.3, **more,
    )  # fmt: skip


def causal() -> Case:
    return llama(), CausalLM(), examples(5), ()


def classifier() -> Case:
    torch.manual_seed(0)
    task = SequenceClassification(byte_level(), {"bad": 0, "good": 1, "odd": 2})
    rows = [{"text": a, "label": n % 3} for n, (a, _) in enumerate(PAIRS)]
    return BertForSequenceClassification(words_of_bert()).double(), task, encoded(task, rows), ()


def regression() -> Case:
    return mlp(), Regression(), number_rows(5), ()


def tagger() -> Case:
    torch.manual_seed(0)
    task = TokenClassification(byte_level(), TAGS)
    rows: list[dict[str, Any]] = [
        {"tokens": ["the", "cat", "sat"], "tags": ["O", "B-PET", "O"]},
        {"tokens": ["dog"], "tags": [1]},
        {"text": "hello the cat and the dog", "entities": [{"start": 6, "end": 13, "label": "PET"}]},
    ]
    model = BertForTokenClassification(words_of_bert(id2label={i: n for n, i in TAGS.items()}, label2id=TAGS))
    return model.double(), task, encoded(task, rows), ("*",)


def t5() -> Case:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=400, d_model=12, d_kv=6, d_ff=16, num_layers=2, num_heads=2, initializer_factor=2.0,
        decoder_start_token_id=2, pad_token_id=2, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return in_double(T5ForConditionalGeneration(config)), *pairs(2), ("*",)


def bart() -> Case:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=400, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.3,
        decoder_start_token_id=2, pad_token_id=2, bos_token_id=0, eos_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    # the head is tied to an embedding that gives padding no gradient, and the decoder begins with padding
    return BartForConditionalGeneration(config).double(), *pairs(2), ("*",)


def preference() -> Case:
    """LoRA on a Llama: the reference is the adapter switched off."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    adapter = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(in_double(LlamaForCausalLM(config)), adapter).double().eval()  # type: ignore[arg-type]
    task = Preference(byte_level(), beta=0.7)
    rows = [{"prompt": a, "chosen": f" {b}", "rejected": " the log sat"} for a, b in PAIRS]
    return model, task, task.prepare(model, encoded(task, rows)), ()


def pairs(start: int) -> tuple[Task, list[Example]]:
    task = Seq2Seq(byte_level(), start=start)
    rows = [{"input": a, "target": b} for a, b in PAIRS[:3]]
    rows += [{"input": "the cat", "target": "the cat"}, {"input": PAIRS[0][0], "target": PAIRS[0][0]}]
    return task, encoded(task, rows)


CASES: dict[str, Callable[[], Case]] = {
    "causal_lm": causal,
    "classification": classifier,
    "regression": regression,
    "token_classification": tagger,
    "preference": preference,
    "seq2seq-t5": t5,
    "seq2seq-bart": bart,
}
