"""LESS against a loop over rows with autograd, on checkpoints as the Trainer leaves them; pickles are not trusted."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Trainer

from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence.errors import ModelError, OptionError
from whence.gradients.adam import moments_of
from whence.gradients.layers import find_layers
from whence.less import Features, less_scores, select_less
from whence.linalg.projection import random_projection
from whence.select.amounts import Amount
from whence.select.choose import Rule

RATES = {2: 3e-3, 4: 1e-3}


def trained(model: torch.nn.Module, steps: int) -> torch.optim.AdamW:
    """AdamW in the Trainer's two groups, after a few steps on made-up gradients."""
    decays = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    named = list(model.named_parameters())
    groups = [[p for n, p in named if (n in decays) is side] for side in (True, False)]
    optimiser = torch.optim.AdamW([{"params": g} for g in groups], lr=1e-3, betas=(0.9, 0.95), eps=1e-6)
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * 0.02
        optimiser.step()
    return optimiser


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("less")
    history = [{"step": step, "learning_rate": rate} for step, rate in RATES.items()]
    for step in RATES:
        model, folder = tiny_llama(seed=0), place / "out" / f"checkpoint-{step}"
        optimiser = trained(model, step)
        model.save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
        torch.save(optimiser.state_dict(), folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    model_folder(place / "model")
    write_rows(place / "train.jsonl", animal_rows(7))
    write_rows(
        place / "dev.jsonl",
        [{"prompt": "the cat sat on", "completion": " the mat ."}, {"prompt": "the dog", "completion": " ran"}],
    )
    return place


def gradients(model: torch.nn.Module, ids: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
    """Summed loss of the tokens from ``start`` on, by autograd."""
    logits = model(input_ids=ids[None]).logits[0, :-1]
    labels = ids[1:].clone()
    labels[: start - 1] = -100
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    grads = torch.autograd.grad(loss, [p for _, p in model.named_parameters()])
    return dict(zip((n for n, _ in model.named_parameters()), grads, strict=True))


def slow_scores(world: Path, size: int | None = None) -> np.ndarray:
    """The formula, row by row, over the followed layers; with a size, both sides are multiplied by thin matrices."""
    total, rates = np.zeros((2, 7)), np.array([RATES[2], RATES[4]])
    for weight, step in zip(rates / rates.sum(), RATES, strict=True):
        model = tiny_llama(seed=0)
        optimiser = trained(model, step)
        model = model.double().eval()
        followed = [f"{name}.weight" for name in find_layers(model).names]
        sides = {} if size is None else random_projection(find_layers(model).sizes, size=size, small="keep").sides

        def short(name: str, x: torch.Tensor, sides=sides) -> torch.Tensor:
            found = sides.get(name.removesuffix(".weight"))
            left, right = (found.left_PO, found.right_RI) if found else (None, None)
            x = x.double() if left is None else left.double() @ x.double()
            return (x if right is None else x @ right.double().T).flatten()

        state = {n: optimiser.state[p] for n, p in model.named_parameters() if n in followed}
        tokenizer = word_tokenizer()

        def encode(text: str, tokenizer=tokenizer) -> torch.Tensor:
            return torch.tensor(tokenizer(text)["input_ids"])

        asked = [("the cat sat on", " the mat ."), ("the dog", " ran")]
        questions = [gradients(model, torch.cat([encode(p), encode(c)]), len(encode(p))) for p, c in asked]
        for n, row in enumerate(animal_rows(7)):
            g = gradients(model, encode(row["text"]), 1)
            gamma = {
                k: (0.9 * s["exp_avg"] + 0.1 * g[k]) / ((0.95 * s["exp_avg_sq"] + 0.05 * g[k] ** 2).sqrt() + 1e-6)
                for k, s in state.items()
            }
            flat = torch.cat([short(k, gamma[k]) for k in followed])
            for q, question in enumerate(questions):
                other = torch.cat([short(k, question[k]) for k in followed])
                total[q, n] += weight * float(flat @ other / flat.norm() / other.norm())
    return total


def test_scores_are_the_formula(world):
    found = less_scores(
        str(world / "model"), world / "out", train=str(world / "train.jsonl"), query=str(world / "dev.jsonl"),
        options={"allow_pickle_weights": True, "dtype": "float64"},
    )  # fmt: skip
    # moments are stored in float32 (1e-7); roots of small second moments lose some of it
    np.testing.assert_allclose(found.values, slow_scores(world), atol=2e-6)
    assert found.about["checkpoints"][0]["weight"] == pytest.approx(0.75)
    chosen = select_less(
        str(world / "model"), world / "out", train=str(world / "train.jsonl"), query=str(world / "dev.jsonl"),
        rule=Rule(keep=Amount(count=2), balance="max"), options={"allow_pickle_weights": True},
    )  # fmt: skip
    best = set(np.argsort(-found.values.max(0))[:2].tolist())
    assert {int(id_.rpartition(":")[2]) - 1 for id_ in chosen.kept_ids} == best


def test_projected_features_are_the_formula_too(world):
    given = {"train": str(world / "train.jsonl"), "query": str(world / "dev.jsonl")}
    options = {"allow_pickle_weights": True, "dtype": "float64"}
    found = less_scores(str(world / "model"), Features(world / "out", size=4), **given, options=options)
    np.testing.assert_allclose(found.values, slow_scores(world, size=4), atol=2e-6)  # as above
    full = less_scores(str(world / "model"), world / "out", **given, options=options)
    assert np.abs(found.values - full.values).max() > 1e-3
    assert found.about["projection"] == {"size": 4, "seed": 0} and full.about["projection"] is None
    other = less_scores(str(world / "model"), Features(world / "out", 4), **given, options={**options, "seed": 1})
    assert np.abs(found.values - other.values).max() > 1e-3
    with pytest.raises(OptionError, match="projection size 0"):
        Features(world / "out", size=0)


def test_parameters_are_told_by_their_order_and_shape():
    model = tiny_llama(seed=1)
    plain = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    plain.step()
    found = moments_of(plain.state_dict(), model)
    assert set(found.first) == {n for n, _ in model.named_parameters()}
    assert all(found.first[n].shape == p.shape for n, p in model.named_parameters())
    state = trained(model, 1).state_dict()
    state["param_groups"][0]["params"].pop()
    with pytest.raises(ModelError, match="fit no order"):
        moments_of(state, model)
    with pytest.raises(ModelError, match="no state of Adam"):
        moments_of(torch.optim.SGD(model.parameters(), lr=1).state_dict(), model)


class Hostile:
    def __reduce__(self):
        return (print, ("pwned",))


def test_the_pickle_is_opened_only_if_allowed_and_only_safely(world, tmp_path, capsys):
    given = {"train": str(world / "train.jsonl"), "query": str(world / "dev.jsonl")}
    with pytest.raises(ModelError, match="is a pickle"):
        less_scores(str(world / "model"), world / "out", **given)
    folder = model_folder(tmp_path / "out" / "checkpoint-1")
    with pytest.raises(ModelError, match=r"no optimizer\.pt"):
        less_scores(str(world / "model"), tmp_path / "out", **given, options={"allow_pickle_weights": True})
    (folder / "optimizer.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ModelError, match="cannot be read safely"):
        less_scores(str(world / "model"), tmp_path / "out", **given, options={"allow_pickle_weights": True})
    assert "pwned" not in capsys.readouterr().out
