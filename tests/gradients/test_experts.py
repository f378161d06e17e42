"""Fused mixtures of experts: every expert is a layer whose gradients are those of a loop; no model half unseen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from conftest import VOCAB, examples, llama, mixtral
from whence.check import Checked, autograd
from whence.curvature.base import get_method
from whence.curvature.fit import fit
from whence.errors import LayerError
from whence.gradients.experts import expert_maps, grouped, unfused
from whence.gradients.layers import find_layers
from whence.gradients.products import Products
from whence.gradients.source import LiveGradients
from whence.scores.score import collect
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

EXACT = 1e-12
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


def qwen() -> nn.Module:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, num_experts=6, moe_intermediate_size=10, intermediate_size=10))


def gpt_oss() -> nn.Module:
    """Stored the other way round, with biases and another gate."""
    torch.manual_seed(0)
    kinds = ["full_attention"]
    model = GptOssForCausalLM(GptOssConfig(**SHAPE, num_local_experts=4, intermediate_size=10, layer_types=kinds))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


MODELS = {"mixtral": mixtral, "qwen": qwen, "gpt_oss": gpt_oss}


def opened(name: str, patterns: tuple[str, ...] = (), *, budget: int = 30) -> LiveGradients:
    model = MODELS[name]().double().eval()
    model.set_experts_implementation("eager")
    rows = examples(7)
    plan = plan_batches([e.length for e in rows], token_budget=budget)
    return LiveGradients(model, CausalLM(), rows, plan, find_layers(model, patterns))


def looped(source: LiveGradients, parameter: str) -> torch.Tensor:
    """B x (shape of the parameter): one row at a time through the model's own forward pass."""
    found = []
    weight = source.model.get_parameter(parameter)
    for example in source.examples:
        batch = source.task.collate([example])
        loss = source.task.losses(source.task.outputs(source.model, batch), batch).sum()
        found.append(torch.autograd.grad(loss, weight)[0])
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_a_loop(name: str) -> None:
    source = opened(name)
    assert any(source.plan.lengths[i] != source.plan.lengths[b[0]] for b in source.plan.batches for i in b)  # padding
    grads = collect(source, labels="true").grads
    for part in ("gate_up_proj", "down_proj"):
        place = f"model.layers.0.mlp.experts.{part}"
        truth = looped(source, place)
        bias = looped(source, f"{place}_bias") if name == "gpt_oss" else None
        assert (truth.flatten(2).abs().amax(2) == 0).any(), "every row chose every expert: nothing is tested"
        for expert in range(truth.shape[1]):
            matrix = truth[:, expert].mT if name == "gpt_oss" else truth[:, expert]
            matrix = matrix if bias is None else torch.cat([matrix, bias[:, expert, :, None]], dim=2)
            found = grads[f"{place}.{expert}"].full()
            torch.testing.assert_close(found, matrix, rtol=0, atol=EXACT * float(truth.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_one_by_one_is_the_models_own_forward(name: str) -> None:
    source = opened(name)
    batch = source.task.collate(source.examples[:3])
    truth = source.task.outputs(source.model, batch)
    with unfused(source.model):
        assert any("forward" in vars(module) for module in source.model.modules())
        found = source.task.outputs(source.model, batch)
    assert not any("forward" in vars(module) for module in source.model.modules())
    torch.testing.assert_close(found, truth, rtol=0, atol=EXACT * float(truth.detach().abs().max()))


def test_the_laws_on_the_users_own_model_cover_experts() -> None:
    source = opened("gpt_oss")
    finding = autograd(Checked(source.model, source.task, source.examples[:2], source.layers))
    assert finding.verdict == "held" and finding.value is not None and finding.value < EXACT


def test_covariances_count_the_tokens_of_each_expert() -> None:
    """A of an expert is a mean over *its* tokens; equal to the definition, token by token."""
    source = opened("mixtral", ("*.experts.gate_up_proj.*",))
    factors = fit(source, get_method("kfac")).tensors
    rows: dict[int, list[torch.Tensor]] = {n: [] for n in range(4)}

    def remember(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        for token, chosen in enumerate(args[1]):
            for expert in chosen.tolist():
                rows[expert].append(args[0][token].detach())

    experts = source.model.get_submodule("model.layers.0.mlp.experts")
    handle = experts.register_forward_pre_hook(remember)
    for example in source.examples:
        source.task.outputs(source.model, source.task.collate([example]))
    handle.remove()
    for expert, seen in rows.items():
        a = torch.stack(seen)
        found = factors[f"model.layers.0.mlp.experts.gate_up_proj.{expert}"]["A"]
        torch.testing.assert_close(found, a.T @ a / len(a), rtol=0, atol=EXACT * float(found.abs().max()))


def test_some_experts_alone_and_what_is_left() -> None:
    source = opened("mixtral", ("*.0.mlp.experts.down_proj.1", "*.0.mlp.experts.down_proj.3"))
    weight = source.model.get_parameter("model.layers.0.mlp.experts.down_proj")
    assert len(source.layers) == 2 and source.layers.parameters == weight.numel() // 2
    assert dict(source.layers.uncovered)["model.layers.0.mlp.experts.down_proj"] == weight.numel() // 2
    total = sum(p.numel() for p in source.model.parameters())
    assert source.layers.covered == pytest.approx(weight.numel() / 2 / total)


def test_second_derivatives_of_experts_are_refused() -> None:
    source = opened("mixtral")
    with pytest.raises(LayerError, match="one expert of a fused mixture"):
        Products(source).apply(torch.zeros(1, source.layers.parameters, dtype=torch.float64))


def test_grouping_sorts_routed_rows_by_example() -> None:
    rows, tokens = torch.arange(10.0).view(5, 2), torch.tensor([0, 2, 4, 5, 9])  # three examples of four tokens
    found, count = grouped(rows, tokens, examples=3, length=4, mask=None)
    assert count == 5 and found.shape == (3, 2, 2)
    assert found[0].tolist() == [[0, 1], [2, 3]] and found[2].tolist() == [[8, 9], [0, 0]]
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2:] = False
    found, count = grouped(rows, tokens, examples=3, length=4, mask=mask)
    assert count == 4 and found.shape == (3, 2, 2) and found[0].tolist() == [[0, 1], [0, 0]]


class Unknown(nn.Module):
    """Experts in a form that nobody marked."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Parameter(torch.zeros(8, 40, 40))


def test_a_model_half_unseen_is_refused_unless_asked_for() -> None:
    model = llama()
    model.model.layers[0].mlp.experts = Unknown()  # type: ignore[union-attr]
    assert not expert_maps(model.model.layers[0].mlp.experts)  # type: ignore[arg-type]
    with pytest.raises(LayerError, match=r"only .*% of this LlamaForCausalLM.*experts.down_proj \(12,800\)") as error:
        find_layers(model)
    assert "--layers 'model.layers.*'" in str(error.value)
    assert len(find_layers(model, ("model.layers.*",))) == 14
    with pytest.raises(LayerError, match="only"):
        find_layers(model, ("!*.q_proj",))
