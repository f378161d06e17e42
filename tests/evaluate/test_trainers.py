"""Models trained many at once are the models trained one by one; the order of reading is what it says."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from conftest import VOCAB, examples, gpt2, llama
from whence.errors import ModelError, OptionError
from whence.evaluate.stacked import stack
from whence.evaluate.trainers import BatchedTrainer, FunctionTrainer, Recipe, from_checkpoint, reading_order
from whence.tasks.base import Example
from whence.tasks.causal_lm import CausalLM
from whence.tasks.regression import Regression

ROWS, QUERIES = examples(14), [replace(e, id=f"q-{e.id}") for e in examples(5, seed=1)]


def halves(count: int, rows: int = len(ROWS)) -> np.ndarray:
    kept = np.zeros((count, rows), dtype=bool)
    for m in range(count):
        kept[m, np.random.default_rng(m).permutation(rows)[: rows // 2]] = True
    return kept


def written_out(model: nn.Module, recipe: Recipe, kept: np.ndarray, seed: int) -> list[float]:
    """The twin: one model, torch's own optimiser, the objective in a line."""
    model, task = deepcopy(model).eval(), CausalLM(None)
    kinds = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    more = {"momentum": recipe.momentum} if recipe.optimiser == "sgd" else {"betas": recipe.betas}
    optimiser = kinds[recipe.optimiser](model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, **more)  # type: ignore[arg-type]
    steps = recipe.steps or int(np.ceil(recipe.epochs * kept.sum() / recipe.batch))
    order: list[int] = []
    for epoch in range(1000):
        order += [n for n in np.random.default_rng([seed, 0, epoch]).permutation(len(kept)).tolist() if kept[n]]
    for step in range(steps):
        some = [ROWS[n] for n in order[step * recipe.batch : (step + 1) * recipe.batch]]
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * (1 - step / steps if recipe.schedule == "linear" else 1.0)
        total = sum(task.losses(task.outputs(model, b), b).sum() for b in [task.collate([e]) for e in some])
        loss = total / (sum(e.loss_tokens for e in some) if recipe.objective == "token" else len(some))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
    with torch.no_grad():
        return [float(task.losses(task.outputs(model, b), b)) for b in [task.collate([q]) for q in QUERIES]]


RECIPES = {
    "adamw": Recipe(rate=3e-3, epochs=2, batch=4, weight_decay=0.1),
    "sgd": Recipe("sgd", rate=1e-3, schedule="constant", epochs=2, batch=3, objective="row", momentum=0.9),
    "clipped": Recipe("sgd", rate=1e-2, schedule="constant", steps=5, batch=3, clip=0.5),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(tied=True, bias=True)], ids=["llama", "gpt2", "tied"])
def test_many_at_once_are_one_by_one(make, recipe: Recipe) -> None:
    base, kept, seeds = make(), halves(3), [0, 1, 0]
    trainer = BatchedTrainer(from_checkpoint(base), CausalLM(None), ROWS, QUERIES, recipe, at_once=3)
    before = [p.clone() for p in base.parameters()]
    assert trainer.stacks
    together = trainer.losses(kept, seeds)
    np.testing.assert_allclose(together, replace(trainer, at_once=1).losses(kept, seeds), rtol=1e-6)
    twin = [written_out(base, recipe, k, s) for k, s in zip(kept, seeds, strict=True)]
    np.testing.assert_allclose(together, twin, rtol=1e-6)
    assert abs(together[0] - together[2]).max() > 1e-4  # other rows, other model
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))


def test_members_of_any_sizes_from_scratch() -> None:
    """Models initialised by their seed; sizes that cannot share a stack; the models themselves."""
    kept = halves(4)
    kept[1, :] = True
    trainer = BatchedTrainer(lambda seed: llama(seed=seed), CausalLM(None), ROWS, QUERIES, RECIPES["adamw"], at_once=4)
    found = trainer.losses(kept, [0, 1, 2, 0])
    for k, seed in enumerate([0, 1, 2, 0]):
        np.testing.assert_allclose(found[k], written_out(llama(seed=seed), RECIPES["adamw"], kept[k], seed), rtol=1e-6)
    task, models = CausalLM(None), trainer.models(kept, [0, 1, 2, 0])
    with torch.no_grad():
        for k, model in enumerate(models):
            batch = task.collate(QUERIES)
            np.testing.assert_allclose(task.losses(task.outputs(model, batch), batch), found[k], rtol=1e-6)


def test_adapters_alone_move() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    base = get_peft_model(llama(), config).double()  # type: ignore[arg-type]
    trainer = BatchedTrainer(from_checkpoint(base), CausalLM(None), ROWS, QUERIES, RECIPES["adamw"], at_once=3)
    assert trainer.stacks
    together = trainer.losses(halves(3), [0, 1, 0])
    np.testing.assert_allclose(together, replace(trainer, at_once=1).losses(halves(3), [0, 1, 0]), rtol=1e-6)
    moved = trainer.models(halves(1), [0])[0]
    for (name, before), after in zip(base.named_parameters(), moved.parameters(), strict=True):
        assert torch.equal(before, after) != ("lora" in name), name


class Odd(nn.Module):
    """Weights of its own and modules inside: cannot be stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.inner = nn.Parameter(torch.zeros(1).double()), nn.Linear(3, 1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.shift


def test_what_cannot_be_stacked_is_trained_one_by_one() -> None:
    torch.manual_seed(0)
    base, rng = Odd(), np.random.default_rng(0)
    with pytest.raises(ModelError, match="weights of its own"):
        stack([base, base])
    rows = [Example(f"r{n}", {"features": rng.standard_normal(3)}, rng.standard_normal(1), 1, 1) for n in range(6)]
    trainer = BatchedTrainer(from_checkpoint(base), Regression(), rows, rows[:2], Recipe("sgd", rate=0.1, batch=2))
    assert not trainer.stacks
    assert np.isfinite(trainer.losses(halves(2, 6), [0, 0])).all()


def test_a_model_that_mixes_its_rows_is_not_stacked() -> None:
    """A batch mean would leak from copy to copy; the trial of two copies notices."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x - x.mean(0)) + self.inner(x).mean()

    torch.manual_seed(0)
    rows = [Example(f"r{n}", {"features": np.arange(3.0) * n}, np.ones(1), 1, 1) for n in range(6)]
    trainer = BatchedTrainer(from_checkpoint(Mixing()), Regression(), rows, rows[:2], Recipe(batch=2))
    assert not trainer.stacks


def test_reading_order() -> None:
    kept = halves(1)[0]
    order = reading_order(kept, 3, 18)
    assert len(order) == 18 and kept[order].all()
    assert sorted(order[:7]) == sorted(order[7:14]) == np.flatnonzero(kept).tolist()
    assert order[:7].tolist() != order[7:14].tolist()
    np.testing.assert_array_equal(order[:5], reading_order(kept, 3, 5))
    assert reading_order(kept, 4, 18).tolist() != order.tolist()
    # rows that two members share are read in the same order by both
    other = halves(2)[1]
    mine, theirs = ([n for n in reading_order(k, 3, 7).tolist() if kept[n] and other[n]] for k in (kept, other))
    assert mine == theirs


def test_fingerprints_tell_contents_and_recipes_apart() -> None:
    trainer = BatchedTrainer(from_checkpoint(llama()), CausalLM(None), ROWS, QUERIES, Recipe())
    same = BatchedTrainer(from_checkpoint(llama()), CausalLM(None), ROWS, QUERIES, Recipe(), at_once=2)
    assert trainer.fingerprint() == same.fingerprint()
    labels = ROWS[3].labels.copy()
    labels[-1] = (labels[-1] + 1) % VOCAB
    changed = [*ROWS[:3], replace(ROWS[3], labels=labels), *ROWS[4:]]
    for other in (
        replace(trainer, rows=changed),
        replace(trainer, queries=QUERIES[:4]),
        replace(trainer, recipe=Recipe(rate=2e-3)),
        replace(trainer, start=from_checkpoint(llama(seed=1))),
    ):
        assert other.fingerprint() != trainer.fingerprint()


def test_recipes_that_cannot_be() -> None:
    for wrong in ({"optimiser": "lion"}, {"schedule": "step"}, {"rate": 0.0}, {"epochs": 0.0}, {"batch": 0}):
        with pytest.raises(OptionError):
            Recipe(**wrong)  # type: ignore[arg-type]
    trainer = BatchedTrainer(from_checkpoint(llama()), CausalLM(None), ROWS, QUERIES, Recipe())
    with pytest.raises(OptionError, match="without any row"):
        trainer.losses(np.zeros((1, len(ROWS)), dtype=bool), [0])


def test_any_function() -> None:
    trainer = FunctionTrainer(lambda kept, seed: np.array([kept.sum(), seed]), {"what": "counts"})
    np.testing.assert_array_equal(trainer.losses(halves(2), [5, 6]), [[7, 5], [7, 6]])
