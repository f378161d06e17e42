"""Small grey images: generated shapes or FashionMNIST; a small diffusion model made from a config; LoRA on it."""

from __future__ import annotations

import copy
import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from peft import LoraConfig, get_peft_model
from torch import nn

from whence.loading.diffusion import describe
from whence.tasks.base import Example
from whence.tasks.diffusion import Diffusion
from whence.tasks.records import Row

SHAPES = ("disc", "ring", "square", "frame", "cross")
CLOTHES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
WORN = ("trouser", "pullover", "sandal", "bag", "boot")


@dataclass(frozen=True)
class Config:
    size: int = 16
    before: int = 400  # images of the pre-training
    train: int = 30  # images of each class for LoRA
    test: int = 5
    steps: int = 100  # of the noise schedule
    times: int = 6  # looked at per image
    width: int = 16
    pretraining_epochs: int = 5
    epochs: int = 10
    rate: float = 2e-3
    batch: int = 20
    rank: int = 4
    seeds: int = 1
    damping: float = 0.1


@dataclass(frozen=True)
class Pictures:
    """Images 0 to 255 with their classes: of the pre-training (other classes, where there are any), LoRA, questions."""

    before: list[np.ndarray]
    train: list[np.ndarray]
    test: list[np.ndarray]
    train_classes: list[int]
    test_classes: list[int]
    names: tuple[str, ...]


def drawn(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One shape of random place, size and brightness."""
    y, x = np.mgrid[:size, :size].astype(float)
    radius = rng.uniform(0.2, 0.34) * size
    y, x = (axis - rng.uniform(radius, size - 1 - radius) for axis in (y, x))
    far, wide = np.hypot(x, y), np.maximum(abs(x), abs(y))
    inside = {
        "disc": far <= radius,
        "ring": abs(far - 0.8 * radius) <= 0.25 * radius,
        "square": wide <= 0.85 * radius,
        "frame": abs(wide - 0.75 * radius) <= 0.25 * radius,
        "cross": (np.minimum(abs(x), abs(y)) <= 0.25 * radius) & (wide <= radius),
        "bars": (wide <= radius) & (np.floor(x) % 3 == 0),
        "wedge": (y >= x) & (wide <= radius),
        "dots": (wide <= radius) & (np.floor(x) % 3 == 0) & (np.floor(y) % 3 == 0),
    }[kind]
    bright = rng.uniform(0.7, 1.0)
    return np.clip(255 * (inside * bright + rng.normal(0, 0.02, inside.shape)), 0, 255).astype(np.uint8)


def shapes(config: Config, seed: int) -> Pictures:
    """Five shapes; the pre-training is on three others."""
    rng = np.random.default_rng(seed)
    others = [drawn(("bars", "wedge", "dots")[n % 3], rng, config.size) for n in range(config.before)]
    parts = [
        [(drawn(kind, rng, config.size), n) for n, kind in enumerate(SHAPES) for _ in range(count)]
        for count in (config.train, config.test)
    ]
    return _pictures(others, parts, SHAPES)


def clothes(config: Config, seed: int, folder: Path) -> Pictures:
    """Five classes of FashionMNIST, made smaller; the pre-training is on the five others."""
    images, labels = _idx(folder / "train-images-idx3-ubyte.gz", 16), _idx(folder / "train-labels-idx1-ubyte.gz", 8)
    images = images.reshape(-1, 28, 28)
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = [CLOTHES.index(name) for name in WORN]
    by_class = {c: order[labels[order] == c] for c in chosen}
    others = [_smaller(images[i], config.size) for i in order[~np.isin(labels[order], chosen)][: config.before]]
    ranges = slice(0, config.train), slice(config.train, config.train + config.test)
    parts = [
        [(_smaller(images[i], config.size), n) for n, c in enumerate(chosen) for i in by_class[c][part]]
        for part in ranges
    ]
    return _pictures(others, parts, WORN)


def _pictures(before: list[np.ndarray], parts: list[list[tuple[np.ndarray, int]]], names: tuple[str, ...]) -> Pictures:
    (train, test) = ([image for image, _ in part] for part in parts)
    return Pictures(before, train, test, *([n for _, n in part] for part in parts), names)


def _idx(path: Path, header: int) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def _smaller(image: np.ndarray, size: int) -> np.ndarray:
    """28 x 28 -> 32 x 32 by margins -> size x size by means."""
    framed = np.pad(image.astype(float), 2)
    step = 32 // size
    return framed.reshape(size, step, size, step).mean((1, 3)).astype(np.uint8)


def unet(config: Config) -> tuple[nn.Module, Any]:
    """A UNet from a config, and its noise schedule."""
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=config.size, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(config.width, 2 * config.width), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, DDPMScheduler(num_train_timesteps=config.steps, beta_schedule="squaredcos_cap_v2")


def encoded(config: Config, images: list[np.ndarray], what: str) -> tuple[Diffusion, list[Example]]:
    """The task and the images as its examples."""
    task = Diffusion(times=config.times, **describe(*unet(config)))
    return task, [task.encode(Row(f"{what} {n}", {"image": image.tolist()})) for n, image in enumerate(images)]


def fitted(config: Config, model: nn.Module, images: list[np.ndarray], *, epochs: int, seed: int) -> float:
    """AdamW on the mean squared error of the noise, new times and noises every time; the last epoch's error."""
    schedule = unet(config)[1]
    data = torch.from_numpy(np.stack(images))[:, None].float() / 127.5 - 1
    wanted = [p for p in model.parameters() if p.requires_grad]
    steps = epochs * -(-len(data) // config.batch)
    optimiser = torch.optim.AdamW(wanted, lr=config.rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 1 - n / steps)
    torch.manual_seed(seed)
    model.train()
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for chosen in torch.randperm(len(data)).split(config.batch):
            clean = data[chosen]
            noise, times = torch.randn_like(clean), torch.randint(config.steps, (len(clean),))
            found = model(schedule.add_noise(clean, noise, times), timestep=times).sample
            loss = (found - noise).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
            losses.append(float(loss.detach()))
    model.eval()
    return float(np.mean(losses))


def adapted(config: Config, base: nn.Module, images: list[np.ndarray], *, seed: int) -> tuple[nn.Module, float]:
    """LoRA on convolutions and attention, and its training error."""
    torch.manual_seed(seed)
    maps = ["conv1", "conv2", "to_q", "to_k", "to_v", "time_emb_proj"]
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=maps))  # type: ignore[arg-type]
    return model, fitted(config, model, images, epochs=config.epochs, seed=seed)
