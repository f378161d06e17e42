"""Tiny seeded models and rows for the reference suites, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

VOCABULARY = 5


def tiny_llama(*, attention: str = "sdpa", hidden: int = 8) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, attn_implementation=attention, initializer_range=0.4,
    )  # fmt: skip
    return in_double(LlamaForCausalLM(config))


def in_double(model: Any) -> Any:
    """Float64 all the way: Llama's and T5's own norms pass through float32 whatever the model's precision."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
            exact = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, exact)
    return model.double().eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_inner=8, n_positions=16, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


def mlp(*, inputs: int = 4, hidden: int = 5, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()


def token_rows(count: int, *, seed: int = 0, longest: int = 6) -> list[Example]:
    """Rows of mixed lengths; every other one has a masked prompt."""
    rng, rows = np.random.default_rng(seed), []
    for n in range(count):
        length = int(rng.integers(3, longest + 1))
        ids = rng.integers(0, VOCABULARY, length)
        labels = ids.copy()
        if n % 2:
            labels[: length // 2] = -100
        rows.append(Example(f"r{n}", {"input_ids": ids}, labels, length, int((labels[1:] != -100).sum())))
    return rows


def number_rows(count: int, *, inputs: int = 4, outputs: int = 2, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [
        Example(f"r{n}", {"features": rng.standard_normal(inputs)}, rng.standard_normal(outputs), 1, 1)
        for n in range(count)
    ]


def source(model: nn.Module, rows: list[Example], patterns=(), *, budget: int = 12) -> LiveGradients:
    """The rows on the model, in several batches of mixed lengths."""
    task = CausalLM() if "input_ids" in rows[0].inputs else Regression()
    plan = plan_batches([row.length for row in rows], token_budget=budget, max_rows=3)
    return LiveGradients(model, task, rows, plan, find_layers(model, patterns))
