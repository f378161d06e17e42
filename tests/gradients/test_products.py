"""Hessian and Gauss-Newton products against the dense twins, through Llama, GPT-2 (Conv1D, bias) and an MLP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference import models, twins
from whence.errors import CurvatureError, LayerError
from whence.gradients.attention import attention_note, twice_differentiable
from whence.gradients.products import Products

TIGHT = 1e-10
ATTENTION = ("*.self_attn.q_proj", "*.self_attn.v_proj")


def cases():
    return {
        "llama": (models.tiny_llama(), models.token_rows(5), ("*.k_proj", "*.o_proj"), twins.language_hessian),
        "gpt2": (models.tiny_gpt2(), models.token_rows(4), ("*.attn.c_proj", "*.mlp.c_fc"), twins.language_hessian),
        "mlp": (models.mlp(), models.number_rows(5), (), twins.square_hessian),
    }


def setup(name):
    model, rows, patterns, output_hessian = cases()[name]
    source = models.source(model, rows, patterns)
    return source, twins.modules_of(model, source.layers.names), output_hessian


def block(size: int, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mlp"])
def test_hessian_products_are_the_dense_hessian(name):
    source, modules, _ = setup(name)
    products = Products(source, "hessian")
    x = block(products.layout.size)
    got = products.apply(x)
    dense = twins.dense_hessian(source.model, source.task, source.examples, modules)
    torch.testing.assert_close(got, x @ dense, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mlp"])
def test_gauss_newton_products_are_the_dense_matrix(name):
    source, modules, output_hessian = setup(name)
    products = Products(source)
    x = block(products.layout.size)
    got = products.apply(x)
    dense = twins.dense_gauss_newton(source.model, source.task, source.examples, modules, output_hessian)
    torch.testing.assert_close(got, x @ dense, rtol=0, atol=TIGHT)
    assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-12


def test_sampled_fisher_in_expectation_is_the_gauss_newton():
    model = models.tiny_llama()
    rows = models.token_rows(2, longest=4)
    source = models.source(model, rows, ("*.o_proj",))
    modules = twins.modules_of(model, source.layers.names)
    fisher = twins.enumerated_fisher(model, source.task, rows, modules, models.VOCABULARY)
    dense = twins.dense_gauss_newton(model, source.task, rows, modules, twins.language_hessian)
    torch.testing.assert_close(fisher, dense, rtol=0, atol=TIGHT)
    x = block(len(fisher))
    torch.testing.assert_close(Products(source).apply(x), x @ fisher, rtol=0, atol=TIGHT)


def test_batching_and_blocking_change_nothing(monkeypatch):
    source, _, _ = setup("llama")
    x = block(Products(source).layout.size, rows=4)
    for kind in ("gauss_newton", "hessian"):
        together = Products(source, kind).apply(x)
        apart = torch.cat([Products(source, kind).apply(row[None]) for row in x])
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)
        alone = models.source(source.model, list(source.examples), ("*.k_proj", "*.o_proj"), budget=1)
        torch.testing.assert_close(Products(alone, kind).apply(x), together, rtol=0, atol=1e-12)
    monkeypatch.setattr("whence.gradients.products.BLOCK_ELEMENTS", 1)
    torch.testing.assert_close(Products(source, "hessian").apply(x), together, rtol=0, atol=1e-12)


def test_a_subset_of_batches_is_its_own_mean():
    source, _, _ = setup("mlp")
    products = Products(source)
    parts = [products.on([n]) for n in products.numbers]
    assert sum(p.rows for p in parts) == products.rows == 5
    x = block(products.layout.size)
    total = sum(p.apply(x) * p.rows for p in parts) / products.rows
    torch.testing.assert_close(total, products.apply(x), rtol=0, atol=1e-12)


def test_adapter_products_are_the_dense_matrix():
    from peft import LoraConfig, get_peft_model

    model = models.tiny_llama()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)
    adapted = get_peft_model(model, config).double()
    source = models.source(adapted, models.token_rows(3))
    assert len(source.layers) == 4
    modules = twins.modules_of(adapted, source.layers.names)
    x = block(Products(source).layout.size)
    got = Products(source).apply(x)
    adapted.eval()
    dense = twins.dense_gauss_newton(adapted, source.task, source.examples, modules, twins.language_hessian)
    torch.testing.assert_close(got, x @ dense, rtol=0, atol=TIGHT)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_every_attention_gives_the_same_products_and_is_restored(attention):
    reference = models.source(models.tiny_llama(attention="eager"), models.token_rows(4), ATTENTION)
    source = models.source(models.tiny_llama(attention=attention), models.token_rows(4), ATTENTION)
    x = block(Products(source).layout.size)
    # the model's own eager attention rounds its softmax to float32
    torch.testing.assert_close(Products(source).apply(x), Products(reference).apply(x), rtol=0, atol=1e-5)
    assert source.model.config._attn_implementation == attention
    assert Products(source).note == attention_note(source.model)
    assert ("math kernel" in Products(source).note) == (attention == "sdpa")


def test_fused_attention_is_replaced_for_the_products_only():
    model = models.tiny_llama()
    model.config._attn_implementation = "flex_attention"
    with twice_differentiable(model) as note:
        assert model.config._attn_implementation == "sdpa"
        assert "flex_attention has none" in note
    assert model.config._attn_implementation == "flex_attention"


def test_the_model_is_left_as_it_was():
    model = models.tiny_llama()
    model.train()
    model.activation_checkpointing_enable()
    model.lm_head.weight.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    source = models.source(model, models.token_rows(3), ATTENTION)
    Products(source).apply(block(Products(source).layout.size))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert model.training and all(p.grad is None for p in model.parameters())


class Cliff(nn.Module):
    """One step forward, and none twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x):
        return Once.apply(self.linear(x))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g


def test_no_second_derivative_is_explained():
    source = models.source(Cliff(), models.number_rows(3), ("linear",))
    with pytest.raises(LayerError, match="second derivative"):
        Products(source).apply(block(10))


def test_non_finite_products_are_named():
    source, _, _ = setup("mlp")
    with torch.no_grad():
        source.model[0].weight.fill_(float("nan"))
    with pytest.raises(CurvatureError, match="not finite"):
        Products(source).apply(block(Products(source).layout.size))


def test_an_empty_block_costs_nothing():
    source, _, _ = setup("mlp")
    assert Products(source).apply(block(Products(source).layout.size)[:0]).shape == (0, Products(source).layout.size)
