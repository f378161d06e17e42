"""The model and data of the LoRA study: a tiny sentence classifier, and adapters fine-tuned on partly wrong labels."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from whence.tasks.base import Example
from whence.tasks.classification import SequenceClassification
from whence.tasks.records import Row


@dataclass(frozen=True)
class Config:
    rows: int = 1000
    validation: int = 300
    questions: int = 24
    flipped: float = 0.2
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    seeds: int = 3
    dampings: tuple[float, ...] = (0.1, 0.01)  # the first is DataInf's own
    width: int = 64
    words: int = 4000
    tokens: int = 32
    pretraining_epochs: int = 2
    pretraining_rate: float = 2e-3
    epochs: int = 5
    rate: float = 5e-3
    batch: int = 48
    lissa_depth: int = 500


Pairs = list[tuple[str, int]]


@dataclass(frozen=True)
class Corpus:
    """Sentences and labels (all right), encoded: of the pre-training, the fine-tuning and the validation."""

    task: SequenceClassification
    before: list[Example]
    rows: list[Example]
    asked: list[Example]


def word_tokenizer(texts: Iterable[str], words: int) -> PreTrainedTokenizerFast:
    """The most frequent whole words."""
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special = ["<pad>", "<unk>"]
    inner.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=words, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>")


def corpus(config: Config, folder: Path) -> Corpus:
    """The first rows of the training file are fine-tuned on, all others pre-trained on."""

    def pairs(lines: Iterable[str]) -> Pairs:
        return [(row["sentence"], row["label"]) for row in map(json.loads, lines)]

    with gzip.open(folder / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        known = pairs(file)
    asked = pairs((folder / "test.jsonl").read_text(encoding="utf-8").splitlines())[: config.validation]
    rows, before = known[: config.rows], known[config.rows :]
    task = SequenceClassification(word_tokenizer([s for s, _ in before], config.words), {"0": 0, "1": 1}, config.tokens)

    def encoded(part: Pairs, name: str) -> list[Example]:
        return [task.encode(Row(f"{name}{n}", {"text": s, "label": y}, name)) for n, (s, y) in enumerate(part)]

    return Corpus(task, encoded(before, "p"), encoded(rows, "r"), encoded(asked, "q"))


def wrong_labels(config: Config, rows: list[Example], seed: int) -> tuple[list[Example], np.ndarray]:
    """The rows with a share of the labels flipped, and N booleans: which."""
    wrong = np.zeros(len(rows), bool)
    wrong[np.random.default_rng(seed).permutation(len(rows))[: round(config.flipped * len(rows))]] = True
    given = [
        Example(e.id, e.inputs, 1 - e.labels if bad else e.labels, e.length, e.loss_tokens)
        for e, bad in zip(rows, wrong.tolist(), strict=True)
    ]
    return given, wrong


def train(
    model: nn.Module, task: SequenceClassification, rows: list[Example], *, epochs: int, rate: float, batch: int
) -> None:
    """AdamW on the mean loss, its rate falling to 0; the order is torch's seed."""
    count, total = 0, epochs * -(-len(rows) // batch)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(batch):
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - count / total)
            part = task.collate([rows[n] for n in chosen.tolist()])
            optimiser.zero_grad()
            task.losses(task.outputs(model, part), part).mean().backward()
            optimiser.step()
            count += 1
    model.eval()


def pretrained(config: Config, data: Corpus) -> BertForSequenceClassification:
    """A two-block encoder trained on the sentences that are not fine-tuned on."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(data.task.tokenizer),
            hidden_size=config.width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * config.width,
            max_position_embeddings=config.tokens,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        )
    )
    epochs, rate = config.pretraining_epochs, config.pretraining_rate
    train(model, data.task, data.before, epochs=epochs, rate=rate, batch=config.batch)
    return model


def adapted(config: Config, base: nn.Module, data: Corpus, rows: list[Example], *, rank: int, seed: int) -> nn.Module:
    """LoRA matrices on the value maps (alpha = rank, as published), fine-tuned; the head stays the pre-trained one."""
    torch.manual_seed(seed)
    adapter = LoraConfig(r=rank, lora_alpha=rank, target_modules=["value"], lora_dropout=0.0)
    model = get_peft_model(copy.deepcopy(base), adapter)  # type: ignore[arg-type]
    train(model, data.task, rows, epochs=config.epochs, rate=config.rate, batch=config.batch)
    return model


def accuracy(model: nn.Module, task: SequenceClassification, rows: list[Example]) -> float:
    """Share of rows whose label is the likelier one."""
    part = task.collate(rows)
    with torch.no_grad():
        return float((task.outputs(model, part).argmax(1) == part.labels).float().mean())
