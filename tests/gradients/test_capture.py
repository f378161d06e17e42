"""Captured gradients against the for-loop twin: one example alone, one autograd call, plain parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from conftest import VOCAB, examples, gpt2, llama
from whence.errors import LayerError
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.matrix_batch import MatrixBatch
from whence.tasks.base import Batch, Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

EXACT = {"rtol": 1e-9, "atol": 1e-11}
TASK = CausalLM()


class Keep:
    """A visitor that forms and keeps everything, by row id."""

    def __init__(self):
        self.rows, self.parts, self.losses, self.finite = {}, {}, {}, {}

    def see(self, layer: str, grads: MatrixBatch) -> None:
        assert layer not in self.parts, "a layer is seen once per batch"
        self.parts[layer] = grads.full().clone()

    def close(self, closed) -> None:
        for b, id_ in enumerate(closed.ids):
            self.rows[id_] = {layer: part[b] for layer, part in self.parts.items()}
            self.losses[id_] = float(closed.losses[b])
            self.finite[id_] = bool(closed.finite[b])
        self.parts = {}


def captured(model, rows, patterns=(), budget=40, task=TASK):
    layers = find_layers(model, patterns)
    plan = plan_batches([e.length for e in rows], token_budget=budget)
    visitor = Keep()
    LiveGradients(model, task, rows, plan, layers).visit(visitor)
    return layers, visitor


def twin(model, row, layers, task=TASK):
    """The slow truth: the example alone in its batch, autograd on the parameters themselves."""
    model.eval()
    for p in model.parameters():
        p.requires_grad_(True)
    batch = task.collate([row])
    loss = task.losses(task.outputs(model, batch), batch).sum()
    result = {}
    for layer in layers:
        module = layer.modules[0]
        wanted = [module.weight, *([module.bias] if layer.bias else [])]
        grads = torch.autograd.grad(loss, wanted, retain_graph=True)
        weight = grads[0].T if type(module).__name__ == "Conv1D" else grads[0].flatten(1)
        result[layer.name] = torch.cat([weight, grads[1][:, None]], 1) if layer.bias else weight
    return result, float(loss.detach())


MODELS = {
    "llama": lambda: (llama(), ()),
    "llama-bias": lambda: (llama(bias=True), ()),
    "llama-tied-head": lambda: (llama(tied=True), ("*",)),
    "llama-head": lambda: (llama(), ("*",)),
    "gpt2-conv1d-bias": lambda: (gpt2(), ()),
    "gpt2-tied-head": lambda: (gpt2(), ("*",)),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_for_loop(name):
    model, patterns = MODELS[name]()
    rows = examples(7)
    layers, visitor = captured(model, rows, patterns)
    assert set(visitor.rows) == {e.id for e in rows}
    for row in rows:
        wanted, loss = twin(model, row, layers)
        assert visitor.losses[row.id] == pytest.approx(loss, rel=1e-12)
        for layer in layers:
            torch.testing.assert_close(visitor.rows[row.id][layer.name], wanted[layer.name], **EXACT)


def test_lora_matrices_equal_the_for_loop():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        llama(), LoraConfig(r=2, lora_alpha=8, lora_dropout=0.3, target_modules=["q_proj", "down_proj"])
    ).double()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)  # at initialisation B = 0 and the gradient of A would be 0
    rows = examples(5)
    layers, visitor = captured(model, rows)
    assert all("lora_" in name for name in layers.names) and len(layers) == 2 * 2 * 2
    assert layers.covered == 1.0
    for row in rows:
        wanted, _ = twin(model, row, layers)
        for layer in layers:
            torch.testing.assert_close(visitor.rows[row.id][layer.name], wanted[layer.name], **EXACT)


class Stack(nn.Module):
    """A language-model-shaped module with a block used twice and modules that share a weight."""

    def __init__(self, mode: str | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.mode = mode
        self.embed = nn.Embedding(VOCAB, 8)
        self.once = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(8, VOCAB)

    def body(self, x):
        x = x + torch.tanh(self.twice(x))
        x = x + torch.tanh(self.left(x)) * torch.sigmoid(self.right(x))
        return x + torch.tanh(self.twice(x))

    def forward(self, input_ids, attention_mask=None, **_):
        x = self.embed(input_ids)
        x = torch.relu_(self.once(x))  # in-place on a captured output
        if self.mode is None:
            x = self.body(x)
        else:
            x = checkpoint(self.body, x, use_reentrant=self.mode == "reentrant")
        x = x.cumsum(1) / 4  # a causal mixture of positions
        return type("Output", (), {"logits": self.head(x)})()


@pytest.mark.parametrize("mode", [None, "reentrant", "non-reentrant"])
def test_reused_tied_and_checkpointed_modules(mode):
    model, rows = Stack(mode).double(), examples(6)
    layers, visitor = captured(model, rows, ("*",))
    assert "right" not in layers.names, "a tied weight is one layer"
    plain = Stack(None).double()
    plain_layers = find_layers(plain, ("*",))
    for row in rows:
        wanted, _ = twin(plain, row, plain_layers)
        for layer in layers:
            torch.testing.assert_close(visitor.rows[row.id][layer.name], wanted[layer.name], **EXACT)


def test_hugging_face_gradient_checkpointing_is_right():
    rows = examples(5)
    _, plain = captured(llama(), rows)
    model = llama()
    model.activation_checkpointing_enable()
    model.train()
    _, other = captured(model, rows)
    assert model.training, "the model comes back as it was"
    for id_, grads in plain.rows.items():
        for layer, grad in grads.items():
            torch.testing.assert_close(other.rows[id_][layer], grad, **EXACT)


@pytest.mark.parametrize("budget", [11, 25, 1000])
def test_batch_composition_and_padding_change_nothing(budget):
    rows = examples(9)
    _, alone = captured(llama(bias=True), rows, budget=1)
    _, together = captured(llama(bias=True), list(reversed(rows)), budget=budget)
    for id_, grads in alone.rows.items():
        for layer, grad in grads.items():
            torch.testing.assert_close(together.rows[id_][layer], grad, **EXACT)


def test_model_comes_back_as_it_was():
    model = gpt2()
    model.train()
    frozen = next(model.parameters()).requires_grad_(False)
    captured(model, examples(3))
    assert model.training and not frozen.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_a_poisoned_row_is_dropped_and_the_others_are_bitwise_the_same():
    model, rows = llama(), examples(4, prompts=False)
    used = {int(i) for e in rows[:3] for i in e.inputs["input_ids"]}
    bad_token = next(t for t in range(VOCAB) if t not in used)
    ids = rows[3].inputs["input_ids"].copy()
    ids[:] = bad_token
    rows[3] = Example("bad", {"input_ids": ids}, ids.copy(), rows[3].length, rows[3].loss_tokens)
    _, clean = captured(model, rows, budget=1000)
    with torch.no_grad():
        model.get_input_embeddings().weight[bad_token] = float("nan")
    _, poisoned = captured(model, rows, budget=1000)
    assert not poisoned.finite["bad"] and all(v for k, v in poisoned.finite.items() if k != "bad")
    for id_ in (e.id for e in rows[:3]):
        for layer, grad in clean.rows[id_].items():
            assert torch.equal(poisoned.rows[id_][layer], grad)
    assert all(grad.abs().sum() == 0 for grad in poisoned.rows["bad"].values()), "nothing of it reaches a sum"


class Images:
    """A minimal task on image tensors, to follow convolutions."""

    name = "images"

    def collate(self, rows):
        x = torch.stack([torch.as_tensor(e.inputs["x"]) for e in rows])
        return Batch(tuple(e.id for e in rows), {"x": x}, torch.tensor([int(e.labels) for e in rows]), None, False)

    def outputs(self, model, batch):
        return model(batch.inputs["x"])

    def losses(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch.labels, reduction="none")


@pytest.mark.parametrize("padding", [1, "same", (0, 2)])
def test_convolutions_equal_the_for_loop(padding):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), padding=padding, dilation=(1, 2)),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).double()
    rng = torch.Generator().manual_seed(1)
    rows = [
        Example(
            str(n),
            {"x": torch.randn(2, 7, 6, generator=rng, dtype=torch.float64).numpy()},
            torch.tensor(n % 4).numpy(),
            1,
            1,
        )
        for n in range(5)
    ]
    layers, visitor = captured(model, rows, task=Images(), budget=3)
    for row in rows:
        wanted, _ = twin(model, row, layers, task=Images())
        for layer in layers:
            torch.testing.assert_close(visitor.rows[row.id][layer.name], wanted[layer.name], **EXACT)


def test_rows_that_cannot_be_told_apart_are_refused():
    class Mixed(Stack):
        def forward(self, input_ids, attention_mask=None, **_):
            x = self.embed(input_ids)
            x = self.once(x.flatten(0, 1)[1:]).mean(0) + x  # examples mixed: no row belongs to one example
            return type("Output", (), {"logits": self.head(x)})()

    with pytest.raises(LayerError, match="cannot be told apart"):
        captured(Mixed().double(), examples(3), ("once",))


def test_flattened_tokens_are_unflattened():
    class Flat(Stack):
        def forward(self, input_ids, attention_mask=None, **_):
            x = self.embed(input_ids)
            x = torch.tanh(self.once(x.flatten(0, 1))).view_as(x)
            return type("Output", (), {"logits": self.head(x.cumsum(1))})()

    model, rows = Flat().double(), examples(4)
    layers, visitor = captured(model, rows, ("once",))
    for row in rows:
        wanted, _ = twin(model, row, layers)
        torch.testing.assert_close(visitor.rows[row.id]["once"], wanted["once"], **EXACT)


def test_unused_layer_is_zero_and_all_unused_is_an_error():
    class Detour(Stack):
        def forward(self, input_ids, attention_mask=None, **_):
            x = self.embed(input_ids)
            self.twice(x)  # called, but off the path to the loss; `left` is never called at all
            return type("Output", (), {"logits": self.head(torch.tanh(self.once(x)).cumsum(1))})()

    model = Detour().double()
    _, visitor = captured(model, examples(3), ("once", "twice", "left"))
    for grads in visitor.rows.values():
        assert grads["once"].abs().sum() > 0 and grads["twice"].abs().sum() == 0 and grads["left"].abs().sum() == 0
    with pytest.raises(LayerError, match="does not depend"):
        captured(model, examples(3), ("twice",))
