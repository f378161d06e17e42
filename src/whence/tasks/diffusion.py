"""Noise prediction of diffusion models (Ho et al. 2020): which images made the model draw like this?

Each image is looked at under K times of the noise schedule, one from each K-th of it, with one noise each, all drawn
from a generator that belongs to the row's id: neither order nor batching can change them. The K noisy copies stand side
by side on the model's batch axis, *views* of one example.

The loss is the mean over the K of ½‖target - prediction‖², summed over pixels: the negative log-likelihood, up to a
constant, of a normal distribution around the prediction. As that mean it is one of variance K, and that is what drawn
targets have, so that the Fisher matrix is the Gauss-Newton matrix of this very loss. A trainer's loss is the mean over
pixels without the half: ours is C·H·W / 2 of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from whence.errors import TaskError
from whence.tasks.base import Batch, Example, RowProblem, Setup
from whence.tasks.classes import class_of
from whence.tasks.images import caption_of, read_image
from whence.tasks.records import Row
from whence.tasks.sampling import row_generator
from whence.tasks.shapes import check_fields

Target = Literal["epsilon", "v_prediction", "sample"]
SPEED = 16  # pixels that cost about as much as a token: what batches are counted in


@dataclass(frozen=True)
class Diffusion:
    """Half the squared error of the predicted noise, summed over pixels and averaged over times, in nats.

    Attributes:
        alphas: the schedule, T cumulative products of 1 - beta.
        shape: C, H, W of what the model takes (of latents when there are any).
        target: what the model predicts.
        times: K, how many times of the schedule each image is looked at; more of them, less noise in the scores.
        seed: of times and noises, together with the row's id.
        condition: what the model is told: nothing, the image's class, or its caption.
        names: label -> class number; empty: labels are numbers.
        describe: caption -> S x D embedding.
        pixels: C, H, W of the images before ``latents``; None = ``shape``.
        latents: pixels -> latents (the encoder of a latent diffusion model).
    """

    alphas: Sequence[float]
    shape: tuple[int, int, int]
    target: Target = "epsilon"
    times: int = 8
    seed: int = 0
    condition: Literal["none", "class", "caption"] = "none"
    names: Mapping[str, int] = field(default_factory=dict)
    describe: Callable[[str], np.ndarray] | None = None
    pixels: tuple[int, int, int] | None = None
    latents: Callable[[np.ndarray], np.ndarray] | None = None
    name: str = "diffusion"

    @classmethod
    def of(cls, setup: Setup, /, *, times: int = 8, seed: int = 0) -> Diffusion:
        """The task for a model that was loaded with its schedule.

        Raises:
            TaskError: the model came without a noise schedule.
        """
        if "alphas" not in setup.extra:
            raise TaskError(
                f"{type(setup.model).__name__} came without a noise schedule",
                wanted="a diffusers model, or a pair (model, scheduler)",
                try_="whence.attribute((unet, DDPMScheduler()), ...)",
            )
        return cls(times=times, seed=seed, **setup.extra)

    def encode(self, row: Row) -> Example:
        """Read one image and what goes with it.

        Raises:
            RowProblem: no readable image, or no class or caption where the model needs one.
            TaskError: the model reads captions and nothing turns them into embeddings.
        """
        if problem := check_fields(row.fields, "image"):
            raise RowProblem(*problem)
        image, resized = read_image(row.fields["image"], self.pixels or self.shape)
        if self.latents is not None:
            image = self.latents(image)
        cost = self.times * max(1, self.shape[1] * self.shape[2] // SPEED)
        notes = ("resized",) if resized else ()
        return Example(row.id, {"image": image, **self._told(row)}, np.zeros(0), cost, cost, 0, notes)

    def _told(self, row: Row) -> dict[str, np.ndarray]:
        if self.condition == "class":
            if row.fields.get("label") is None:
                raise RowProblem("missing_label", "the model is told the class of an image, and the row has no label")
            label = row.fields["label"]
            known = self.names or ({str(label): int(label)} if str(label).isdecimal() else {})
            return {"class_labels": np.asarray(class_of(label, known))}
        if self.condition == "caption":
            given = row.fields.get("embedding")
            if given is not None:
                return {"encoder_hidden_states": np.asarray(given, dtype=np.float32)}
            if self.describe is None:
                raise TaskError(
                    "the model reads captions, and there is no text encoder",
                    wanted="the folder of a whole pipeline, rows with an embedding, or Diffusion(describe=...)",
                )
            return {"encoder_hidden_states": self.describe(caption_of(row.fields))}
        return {}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """B·K noisy copies with their times, the K of one image side by side; labels are the B x K targets."""
        drawn = [self._drawn(example) for example in examples]
        steps = torch.from_numpy(np.concatenate([times for times, _, _ in drawn]))
        noisy, targets = (torch.from_numpy(np.stack([each[n] for each in drawn])) for n in (1, 2))
        inputs = {"sample": noisy.flatten(0, 1), "timestep": steps}
        for name in ("class_labels", "encoder_hidden_states"):
            if name in examples[0].inputs:
                told = torch.from_numpy(np.stack([e.inputs[name] for e in examples]))
                inputs[name] = told.repeat_interleave(self.times, 0)
        return Batch(tuple(e.id for e in examples), inputs, targets, None, False, views=self.times)

    def _drawn(self, example: Example) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K times, K noisy images and K targets of one row."""
        # A generator of its own: drawn labels use (seed, id), and may not be the noise that the model has to find.
        generator = row_generator(self.seed, f"noise\x00{example.id}")
        steps = np.floor((np.arange(self.times) + generator.random(self.times)) * len(self.alphas) / self.times)
        times = np.minimum(steps, len(self.alphas) - 1).astype(np.int64)
        clean = example.inputs["image"].astype(np.float64)
        noise = generator.standard_normal((self.times, *clean.shape))
        alpha = np.asarray(self.alphas, dtype=np.float64)[times][:, None, None, None]
        noisy = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise
        targets = {
            "epsilon": noise,
            "v_prediction": np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * clean,
            "sample": np.broadcast_to(clean, noise.shape),
        }
        return times, noisy, np.ascontiguousarray(targets[self.target])

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """B x K x C x H x W predictions, computed in the model's own precision."""
        weight = next(model.parameters())
        noisy = batch.inputs["sample"].to(weight.dtype)
        told = {n: v for n, v in batch.inputs.items() if n in ("class_labels", "encoder_hidden_states")}
        told = {n: v.to(weight.dtype) if v.is_floating_point() else v for n, v in told.items()}
        result = model(noisy, timestep=batch.inputs["timestep"], **told)
        predicted = result if isinstance(result, Tensor) else getattr(result, "sample", result)
        if not isinstance(predicted, Tensor) or predicted.shape[1] < noisy.shape[1]:
            raise TaskError(f"{type(model).__name__} predicts no image", wanted="a UNet or a diffusion transformer")
        # Models that also predict a variance give twice as many channels; the first half is the prediction.
        return predicted[:, : noisy.shape[1]].unflatten(0, (len(batch), self.times))

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B losses: ½‖target - prediction‖² summed over pixels, the mean over the K times."""
        predicted = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        error = (batch.labels.to(predicted.dtype) - predicted).square().flatten(2).sum(2)
        return 0.5 * error.mean(1)

    def measurements(self, outputs: Tensor, batch: Batch) -> Tensor:
        """B numbers to explain, lower is better: the loss."""
        return self.losses(outputs, batch)

    def sample(self, outputs: Tensor, batch: Batch, seed: int) -> Batch:
        """Targets drawn from a normal of variance K around the predictions, seeded by (seed, row id)."""
        predicted = outputs.detach().double()
        noise = np.stack([row_generator(seed, i).standard_normal(tuple(predicted.shape[1:])) for i in batch.ids])
        return batch.with_labels(predicted + self.times**0.5 * torch.from_numpy(noise).to(predicted.device))

    def fingerprint(self) -> dict[str, Any]:
        """What must match for two runs to price the same loss."""
        schedule = np.asarray(self.alphas, dtype="<f8").tobytes()
        return {
            "task": self.name,
            "shape": "x".join(map(str, self.shape)),
            "target": self.target,
            "times": self.times,
            "seed": self.seed,
            "condition": self.condition,
            "latents": "yes" if self.latents is not None else "no",
            "schedule": hashlib.sha256(schedule).hexdigest()[:16],
            "names": dict(self.names),
        }


TASK = Diffusion
