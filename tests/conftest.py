"""Tiny seeded models and rows in float64, shared by the laws."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests that fork need it

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from reference.models import in_double
from whence.tasks.base import Example

torch.set_num_threads(1)

VOCAB = 23


def llama(*, seed: int = 0, layers: int = 2, tied: bool = False, bias: bool = False) -> LlamaForCausalLM:
    """A Llama shape with grouped-query attention, random weights, float64 all the way."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        initializer_range=0.3,
    )
    model = in_double(LlamaForCausalLM(config))
    if bias:  # biases start at 0; a bug in their gradients should not hide there
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def gpt2(*, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 shape: Conv1D with fused qkv and square projections, biases, tied head, dropout on (must be off)."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCAB, n_embd=12, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    return GPT2LMHeadModel(config).double()


def mixtral(*, seed: int = 0) -> MixtralForCausalLM:
    """A mixture of four experts, two for each token, their weights in 3-D parameters."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("eager")  # the grouped product has no float64
    return model.double()


def examples(count: int, *, seed: int = 0, prompts: bool = True, shortest: int = 3, longest: int = 11) -> list[Example]:
    """Pre-tokenised rows of mixed lengths; every other row has a masked prompt."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        length = int(rng.integers(shortest, longest + 1))
        ids = rng.integers(0, VOCAB, length).astype(np.int64)
        labels = ids.copy()
        if prompts and n % 2:
            labels[: length // 2] = -100
        loss_tokens = int((labels[1:] != -100).sum())
        rows.append(Example(f"row-{n}", {"input_ids": ids}, labels, length, loss_tokens))
    return rows


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
