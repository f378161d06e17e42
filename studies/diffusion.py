"""A small diffusion model: are images of the same class put first? DataInf and EK-FAC on LoRA against dot products.

    python studies/diffusion.py --data DATA        # DATA/fashionmnist; without it, generated shapes alone

A UNet made from a config is trained on images of other classes, then by LoRA on five classes. For further images of the
five, the AUC of the signed scores separates images of the question's own class from the others. The model is told no
class: only the noise it has to find in an image connects it to others.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import _page
import _retrieval
import _shapes
import numpy as np
import torch
from _shapes import Config, Pictures
from PIL import Image

from whence.evaluate.statistics import mean_interval
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches

PIXELS = "pixels"
NAMES = {**_retrieval.NAMES, PIXELS: "nearest pixels (control)"}
SETTINGS = {"shapes": "Generated shapes", "clothes": "FashionMNIST"}
WAYS = (_retrieval.DATAINF, _retrieval.EKFAC, _retrieval.DOT)
SHOWN, AT_ONCE = 5, 10


def measure(config: Config, pictures: Pictures, seed: int) -> dict[str, Any]:
    """Contender -> AUC and recall of every question; errors of the training; a sheet of the strongest rows."""
    model, _ = _shapes.unet(config)
    before = _shapes.fitted(config, model, pictures.before, epochs=config.pretraining_epochs, seed=seed)
    model, error = _shapes.adapted(config, model, pictures.train, seed=seed)
    task, train = _shapes.encoded(config, pictures.train, "row")
    test = _shapes.encoded(config, pictures.test, "question")[1]
    layers = find_layers(model)

    def source(part: list[Example]) -> LiveGradients:
        plan = plan_batches([e.length for e in part], token_budget=AT_ONCE * part[0].length)
        return LiveGradients(model, task, part, plan, layers)

    rows, asked = source(train), source(test)
    scores = _retrieval.contenders(rows, asked, config.damping)
    flat = [np.stack(images).reshape(len(images), -1).astype(float) for images in (pictures.test, pictures.train)]
    scores[PIXELS] = -np.linalg.norm(flat[0][:, None] - flat[1][None], axis=2)
    judged = _retrieval.judge(scores, pictures.test_classes, pictures.train_classes)
    errors = {"before": before, "error": error, "parameters": layers.parameters}
    return {**judged, **errors, "shown": strongest(pictures, scores)}


def strongest(pictures: Pictures, scores: dict[str, np.ndarray]) -> Image.Image:
    """A line per class: its first question, then the strongest rows of every way in ``WAYS``, best first."""
    lines = []
    for n in range(len(pictures.names)):
        q = pictures.test_classes.index(n)
        groups = [[pictures.test[q]]]
        groups += [[pictures.train[i] for i in np.argsort(-scores[way][q], kind="stable")[:SHOWN]] for way in WAYS]
        lines.append(np.hstack([np.pad(np.hstack(group), ((1, 1), (1, 5)), constant_values=255) for group in groups]))
    sheet = Image.fromarray(np.vstack(lines))
    return sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST)


def verdict(found: list[dict[str, Any]]) -> str:
    """Who is above the dot product."""
    dot = float(_retrieval.pooled(found, _retrieval.DOT, "auc").mean())
    said = []
    for name in (_retrieval.DATAINF, _retrieval.EKFAC):
        value = float(_retrieval.pooled(found, name, "auc").mean())
        said.append(f"{NAMES[name]} above the gradient dot product: {'**met**' if value > dot else '**missed**'}")
    return "; ".join(said) + "."


def words(config: Config, result: dict[str, list[dict[str, Any]]]) -> str:
    """The page."""
    parts, ways = [], ", by ".join(NAMES[way] for way in WAYS)
    for setting, title in SETTINGS.items():
        if found := result.get(setting):
            first, last = (np.mean([f[name] for f in found]) for name in ("before", "error"))
            errors = f"{first:.3f} on the other classes (pre-training), {last:.3f} on these (LoRA)"
            table = f"{_retrieval.table(found, NAMES)}\n\n{verdict(found)}"
            parts.append(
                f"## {title}\n\nMean squared error of the noise at the end of training: {errors}.\n\n{table}\n\n"
                f"A question of each class, then its {SHOWN} strongest rows by {ways}:\n\n"
                f"![questions and their strongest rows](diffusion_{setting}.png)\n"
            )
    first = next(found[0] for found in result.values() if found)
    count = max(len(found) for found in result.values())
    return f"""# Images behind a diffusion model

A UNet of width {config.width} made from a config learns {config.size} x {config.size} grey images of other classes
({config.before} of them), then, by LoRA of rank {config.rank} on its convolutions and attention
({first["parameters"]:,} numbers), five classes of {config.train} images each; {count} seed{"s" * (count != 1)}.
Questions are {config.test} further images of each class. Every image is looked at under {config.times} times of the
schedule. The model is told no class. AUC and recall as in [class retrieval](class_retrieval.md).

{chr(10).join(parts)}
"""


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record, which holds no images."""
    settings = [s for s in SETTINGS if result.get(s)]
    lines = []
    for name, title in NAMES.items():
        found = [mean_interval(_retrieval.pooled(result[s], name, "auc")) for s in settings]
        lines.append(
            _page.Line(title, range(len(found)), [f.mean for f in found], [(f.high - f.low) / 2 for f in found])
        )
    axes = _page.Axes("", "AUC of images of the same class", dict(enumerate(SETTINGS[s] for s in settings)))
    plain = {s: [{k: v for k, v in seed.items() if k != "shown"} for seed in found] for s, found in result.items()}
    record = {**plain, "about": about}
    for setting in settings:
        folder.mkdir(parents=True, exist_ok=True)
        result[setting][0]["shown"].save(folder / f"diffusion_{setting}.png", optimize=True)
    _page.write(folder, "diffusion", text=words(config, result), lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], seeds=Config.seeds)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    config = replace(Config(), seeds=given.seeds)
    folder = given.data / "fashionmnist"
    started, result = time.perf_counter(), {setting: [] for setting in SETTINGS}
    for seed in range(config.seeds):
        for setting in SETTINGS:
            if setting == "clothes" and not folder.is_dir():
                continue
            made = _shapes.shapes(config, seed) if setting == "shapes" else _shapes.clothes(config, seed, folder)
            result[setting].append(measure(config, made, seed))
            print(setting, verdict(result[setting]), flush=True)
            about = _page.circumstances(replace(config, seeds=seed + 1), time.perf_counter() - started)
            page(config, result, about, given.docs)


if __name__ == "__main__":
    main()
