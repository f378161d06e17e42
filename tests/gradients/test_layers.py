"""Which layers are chosen, what is said about the rest, and clear errors."""

from __future__ import annotations

import pytest
from torch import nn

from conftest import gpt2, llama
from whence.errors import LayerError
from whence.gradients.layers import find_layers


def test_default_is_every_linear_map_in_the_blocks_and_never_the_head():
    layers = find_layers(llama())
    assert len(layers) == 2 * 7 and not any("lm_head" in n or "embed" in n for n in layers.names)
    total = sum(p.numel() for p in llama().parameters())
    assert layers.covered == pytest.approx(layers.parameters / total)
    assert {name for name, _ in layers.uncovered} >= {"model.embed_tokens.weight", "lm_head.weight"}


def test_gpt2_conv1d_is_oriented_by_class():
    layers = find_layers(gpt2())
    square = layers.layers["transformer.h.0.attn.c_proj"]
    assert (square.outputs, square.inputs) == (12, 13) and square.bias
    fused = layers.layers["transformer.h.0.attn.c_attn"]
    assert (fused.outputs, fused.inputs) == (36, 13)


def test_patterns_include_and_exclude():
    names = find_layers(llama(), ("*.mlp.*", "!*.down_proj")).names
    assert len(names) == 4 and all("mlp" in n and "down" not in n for n in names)


def test_a_pattern_that_matches_nothing_lists_near_matches():
    with pytest.raises(LayerError, match=r"mlp\.up_proj"):
        find_layers(llama(), ("model.layers.0.mlp.up_prj",))


def test_excluding_everything_is_an_error():
    with pytest.raises(LayerError, match="no layers are left"):
        find_layers(llama(), ("!*",))


def test_plain_modules_and_modules_without_linear_maps():
    assert find_layers(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).names == ("0", "2")
    with pytest.raises(LayerError, match="no linear maps"):
        find_layers(nn.Sequential(nn.Embedding(3, 4)))


def test_subclasses_of_linear_are_followed():
    """kronfluence looks modules up by exact type and fails on quantised subclasses."""

    class Quantised(nn.Linear):
        pass

    assert find_layers(nn.Sequential(Quantised(3, 4), nn.Tanh(), Quantised(4, 2))).names == ("0", "2")


def test_bias_is_gated_on_each_module():
    """Qwen has biases on q, k and v but not on the output projection; a global flag is wrong for one of them."""
    model = nn.Sequential(nn.Linear(3, 4, bias=True), nn.Linear(4, 2, bias=False))
    layers = find_layers(model, ("*",))
    assert [layer.bias for layer in layers] == [True, False]
    assert [layer.inputs for layer in layers] == [4, 4]


def test_grouped_convolutions_are_not_silently_wrong():
    assert find_layers(nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1))).names == ("1",)
