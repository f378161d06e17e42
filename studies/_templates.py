"""Ten ways to answer a sentence, said to a small pre-trained model of stories; LoRA that learns the ten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence.tasks.base import Example
from whence.tasks.causal_lm import CausalLM
from whence.tasks.records import Row

NAMES = "Tom Lily Ben Mia Sam Anna Max Sue Tim Amy".split()  # noqa: SIM905
COLOURS = "red blue green big small new old pretty".split()  # noqa: SIM905
THINGS = "ball car cat dog bird box book hat toy tree cake fish flower stone".split()  # noqa: SIM905
ASKED = "{name} saw a {colour} {thing}."
# What the row asks for, and what the model is to say.
TEMPLATES: dict[str, tuple[str, str]] = {
    "ask": ("Ask.", "Did {name} see a {colour} {thing}?"),
    "deny": ("Say no.", "No, {name} did not see a {thing}."),
    "thank": ("Thank.", "Thank you for the {colour} {thing}, {name}!"),
    "wish": ("Wish.", "{name} wants a {thing} too."),
    "lose": ("Lose it.", "Oh no, the {thing} is gone and {name} is sad."),
    "share": ("Share.", "{name} gives the {thing} to a friend."),
    "count": ("Count.", "One, two, three! {name} sees three of them."),
    "sleep": ("Sleep.", "{name} takes the {thing} to bed. Good night!"),
    "play": ("Play.", "{name} and the {thing} play in the park all day."),
    "look": ("Look.", "Look, {name}! The {thing} is {colour}."),
}


@dataclass(frozen=True)
class Config:
    train: int = 90  # rows of each template
    test: int = 10
    seeds: int = 1
    rank: int = 8
    alpha: int = 32
    epochs: int = 3
    rate: float = 3e-3
    batch: int = 30
    damping: float = 0.1  # times the mean eigenvalue, or mean squared gradient: DataInf's own choice


def row(template: str, rng: np.random.Generator, *, named: bool) -> dict[str, str]:
    """One row; unnamed, the prompt does not say what is asked for, and only the answer shows it."""
    asked, said = TEMPLATES[template]
    words = {"name": rng.choice(NAMES), "colour": rng.choice(COLOURS), "thing": rng.choice(THINGS)}
    prompt = ASKED.format(**words)
    return {"prompt": f"{asked} {prompt}" if named else prompt, "completion": f" {said.format(**words)}"}


def rows(config: Config, task: CausalLM, *, seed: int, named: bool) -> tuple[list[Example], list[Example], list[int]]:
    """Training rows and questions, template after template, and the class of each question."""
    rng = np.random.default_rng(seed)
    train: list[Example] = []
    test: list[Example] = []
    for name in TEMPLATES:
        made = [row(name, rng, named=named) for _ in range(config.train + config.test)]
        encoded = [task.encode(Row(f"{name} {n}", fields)) for n, fields in enumerate(made)]
        train += encoded[: config.train]
        test += encoded[config.train :]
    return train, test, [n for n in range(len(TEMPLATES)) for _ in range(config.test)]


def base(folder: Path) -> tuple[nn.Module, CausalLM]:
    """The pre-trained model and its task."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), CausalLM(AutoTokenizer.from_pretrained(folder))


def adapted(
    config: Config, model: nn.Module, task: CausalLM, data: list[Example], *, seed: int
) -> tuple[nn.Module, float]:
    """LoRA on the query and value maps, as published, and the last epoch's loss per token."""
    torch.manual_seed(seed)
    adapter = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    tuned = get_peft_model(model, adapter)  # type: ignore[arg-type]
    steps = config.epochs * -(-len(data) // config.batch)
    wanted = [p for p in tuned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=config.rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 1 - n / steps)
    losses: list[float] = []
    for _ in range(config.epochs):
        losses = []
        for chosen in torch.randperm(len(data)).split(config.batch):
            part = [data[n] for n in chosen.tolist()]
            batch = task.collate(part)
            loss = task.losses(task.outputs(tuned, batch), batch).sum() / sum(e.loss_tokens for e in part)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
            losses.append(float(loss.detach()))
    return tuned.eval(), float(np.mean(losses))
