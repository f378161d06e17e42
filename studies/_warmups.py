"""LESS as its users run it: the Hugging Face Trainer on some of a pool's rows, and scores from its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _pools
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

from whence.less import Features, less_scores
from whence.tasks.base import Example


class _Rows(torch.utils.data.Dataset):
    """Rows as the task encodes them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, n: int) -> Example:
        return self.examples[n]


def warmed(pool: _pools.Pool, rows: Sequence[int], folder: Path, *, seed: int, rate: float, epochs: int = 4) -> Path:
    """Train the base on these rows, a checkpoint with Adam's state after every pass (LESS: four passes).

    Returns:
        The Trainer's output folder; the base itself lies beside it as ``base``.
    """
    pool.base.save_pretrained(folder / "base")
    pool.task.tokenizer.save_pretrained(folder / "base")
    out = folder / "out"
    settings = TrainingArguments(
        output_dir=str(out), num_train_epochs=epochs, per_device_train_batch_size=4, learning_rate=rate,
        lr_scheduler_type="linear", save_strategy="epoch", logging_steps=1, seed=seed, use_cpu=True, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False,
    )  # fmt: skip

    def collate(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        batch = pool.task.collate(examples)
        return {**batch.inputs, "labels": batch.labels}

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    trainer = Trainer(
        model, settings, train_dataset=_Rows([pool.rows[n] for n in rows]), data_collator=collate,
        processing_class=pool.task.tokenizer,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return out


def less_of(pool: _pools.Pool, out: Path, *, size: int | None = None) -> np.ndarray:
    """Q x N scores of LESS from a Trainer's checkpoints, as ``whence select --less`` computes them."""
    options: dict[str, Any] = {"allow_pickle_weights": True, "max_length": pool.task.max_length}
    scores = less_scores(
        str(out.parent / "base"), Features(out, size), train=[dict(row) for row in pool.fields],
        query=[dict(row) for row in pool.dev_fields], options=options,
    )  # fmt: skip
    assert scores.train_ids == tuple(e.id for e in pool.rows) and len(scores.query_ids) == len(pool.dev)
    return scores.values
