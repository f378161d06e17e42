"""``whence check`` holds on honest models of every kind, and notices each law being broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from conftest import examples, gpt2, llama
from whence.check import Checked, Finding, examine
from whence.gradients.layers import find_layers
from whence.linalg.matrix_batch import Outer
from whence.tasks.base import Batch
from whence.tasks.causal_lm import CausalLM


def checked(model: nn.Module, patterns: Sequence[str] = (), **extra: Any) -> Checked:
    return Checked(model.eval(), CausalLM(), examples(9), find_layers(model, patterns), **extra)


def verdicts(findings: Sequence[Finding]) -> dict[str, str]:
    return {finding.law: finding.verdict for finding in findings}


def broken(findings: Sequence[Finding]) -> set[str]:
    return {finding.law for finding in findings if finding.verdict == "broken"}


def tied() -> tuple[nn.Module, Sequence[str]]:
    return llama(tied=True), ("*.mlp.*", "lm_head")


@pytest.mark.parametrize(
    "make",
    [
        lambda: (llama(), ()),
        lambda: (llama(bias=True), ()),
        lambda: (gpt2(), ()),
        lambda: (llama(), ("lm_head",)),
        tied,
    ],
    ids=["llama", "bias", "conv1d", "head", "tied head"],
)
def test_laws_hold(make: Callable[[], tuple[nn.Module, Sequence[str]]]) -> None:
    model, patterns = make()
    findings = examine(checked(model, patterns))
    assert not broken(findings), findings
    assert {law for law, verdict in verdicts(findings).items() if verdict == "held"} >= {
        "gradients", "tokens", "batch", "padding", "repeat", "labels", "dropout", "start token",
    }  # fmt: skip
    for finding in findings:
        if finding.law in ("gradients", "tokens", "batch", "padding"):
            assert finding.value is not None
            assert finding.value <= 1e-9


def test_lora_layers() -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config).double()
    findings = examine(checked(model))
    assert not broken(findings), findings


def test_what_the_user_set_is_left_alone() -> None:
    model = llama()
    for n, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(bool(n % 2))
    before = [p.requires_grad for p in model.parameters()]
    examine(checked(model))
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_a_wrong_capture_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Outer.full
    monkeypatch.setattr(Outer, "full", lambda self: honest(self) * (1 + 1e-6))
    assert broken(examine(checked(llama()))) >= {"gradients", "tokens"}


def test_the_tolerance_follows_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of 1e-6 is rounding in float32."""
    honest = Outer.full
    monkeypatch.setattr(Outer, "full", lambda self: honest(self) * (1 + 1e-6))
    assert not broken(examine(checked(llama().float())))


class _MeanLoss(CausalLM):
    """The commonest mistake: an average over the batch, which makes a row's gradient depend on its neighbours."""

    def losses(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        return super().losses(outputs, batch) / len(batch)


def test_a_mean_over_the_batch_is_noticed() -> None:
    model = llama().eval()
    findings = examine(Checked(model, _MeanLoss(), examples(9), find_layers(model)))
    assert broken(findings) >= {"batch", "padding"}


class _SeesPadding(CausalLM):
    """A task that forgets the attention mask and pads on the left."""

    def collate(self, examples: Sequence[Any]) -> Batch:
        batch = super().collate(examples)
        ids, labels = batch.inputs["input_ids"], batch.labels
        lengths = torch.tensor([e.length for e in examples])
        for b, length in enumerate(lengths.tolist()):
            shift = ids.shape[1] - length
            ids[b], labels[b] = ids[b].roll(shift), labels[b].roll(shift)
        return replace(batch, inputs={"input_ids": ids}, padded=False, mask=torch.ones_like(ids, dtype=torch.bool))


def test_seen_padding_is_noticed() -> None:
    model = llama().eval()
    findings = examine(Checked(model, _SeesPadding(), examples(9), find_layers(model)))
    assert "padding" in broken(findings)


class _DrawsEverywhere(CausalLM):
    """Labels drawn at prompt positions too (TRAPS 1)."""

    def sample(self, outputs: torch.Tensor, batch: Batch, seed: int) -> Batch:
        return batch.with_labels(torch.zeros_like(batch.labels))


def test_labels_where_none_belong_are_noticed() -> None:
    model = llama().eval()
    findings = examine(Checked(model, _DrawsEverywhere(), examples(9), find_layers(model)))
    assert "labels" in broken(findings)


def test_dropout_is_noticed() -> None:
    one = checked(gpt2())
    one.model.train()
    findings = {finding.law: finding for finding in examine(one)}
    assert findings["dropout"].verdict == "broken"
    assert "training mode" in findings["dropout"].sentence


def test_coverage_and_loss_mask_are_told() -> None:
    findings = {finding.law: finding for finding in examine(checked(llama(), ["*.q_proj"]))}
    assert "Most of the model is out of sight" in findings["coverage"].sentence
    assert 0 < (findings["coverage"].value or 0) < 0.5
    assert 0 < (findings["loss mask"].value or 0) < 1


def test_double_start_tokens_are_told() -> None:
    rows = [replace(e, notes=("double_bos",)) if n < 2 else e for n, e in enumerate(examples(9))]
    finding = next(f for f in examine(replace(checked(llama()), examples=rows)) if f.law == "start token")
    assert finding.verdict == "noted"
    assert "2 of 9 rows" in finding.sentence


def test_one_row_is_enough() -> None:
    one = replace(checked(llama()), examples=examples(1))
    found = verdicts(examine(one))
    assert "broken" not in found.values()
    assert found["padding"] == "noted"
