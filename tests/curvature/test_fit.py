"""What a fit says of the rows it had."""

from __future__ import annotations

import pytest
import torch

import whence
from conftest import examples, llama
from folders import animal_rows, tiny_llama, word_tokenizer
from whence.curvature.base import get_method
from whence.curvature.fit import POSITIONS_PER_WIDTH, fit
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM


@pytest.mark.parametrize("method", ["kfac", "ekfac", "shampoo", "diagonal"])
def test_few_positions_for_the_width_are_a_caution(method: str) -> None:
    model, rows = llama(), examples(60)
    layers = find_layers(model)
    width = max(max(size) for size in layers.sizes.values())
    said = {}
    for count in range(1, 61):
        part = rows[:count]
        plan = plan_batches([e.length for e in part], token_budget=64)
        factors = fit(LiveGradients(model, CausalLM(), part, plan, layers), get_method(method))
        seen = factors.about["stages"][0]["positions"]
        assert seen == sum(e.length for e in part)
        said[seen >= POSITIONS_PER_WIDTH * width] = [n for n in factors.about["notes"] if f"{seen} tokens" in n]
        if seen >= POSITIONS_PER_WIDTH * width:
            break
    assert bool(said[False]) == (method != "diagonal") and not said[True]


def test_the_caution_reaches_the_result() -> None:
    torch.manual_seed(0)
    live = tiny_llama(), word_tokenizer()
    few = whence.attribute(live, train=animal_rows()[:3], query=animal_rows()[:1], method="ekfac", tokens=0)
    assert any("with so few, damping and the draw of labels" in text for text in few.about["warnings"])
