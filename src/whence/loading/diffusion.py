"""Diffusion models of the ``diffusers`` library: a model folder, a pipeline folder, or a live model.

Needs the extra ``whence[diffusion]``. As everywhere: safetensors only, no code from the folder, no random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from whence.errors import ModelError
from whence.loading.guards import check_complete, quiet
from whence.loading.places import read_object

MODELS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
PARTS = ("unet", "transformer")
SCHEDULE = "scheduler_config.json"


def load_diffusion(folder: Path, *, dtype: Any, device: str) -> tuple[nn.Module, dict[str, Any]]:
    """The denoiser of a folder, and what ``Diffusion`` needs beside it.

    Args:
        folder: a saved model (``config.json``), or a saved pipeline (``model_index.json``).
        dtype: of the weights; ``auto`` keeps them as they are stored.
        device: where it goes.

    Raises:
        ModelError: no denoiser there, one of an unknown kind, or weights that do not fill it.
    """
    place = folder
    if (folder / "model_index.json").is_file():
        place = next((folder / part for part in PARTS if (folder / part / "config.json").is_file()), folder)
    kind = read_object(place / "config.json").get("_class_name")
    if kind not in MODELS:
        raise ModelError(f"{place} holds a {kind}", wanted="one of " + ", ".join(MODELS))
    words = {} if dtype == "auto" else {"torch_dtype": dtype}
    with quiet():
        model, info = getattr(diffusers, kind).from_pretrained(
            place, use_safetensors=True, local_files_only=True, output_loading_info=True, **words
        )
    check_complete(str(place), kind, info)
    model = model.to(device).eval()
    found = next((p / SCHEDULE for p in (folder / "scheduler", place, folder) if (p / SCHEDULE).is_file()), None)
    schedule = diffusers.DDPMScheduler.from_config(read_object(found)) if found else diffusers.DDPMScheduler()
    return model, describe(model, schedule, **_encoders(folder, device))


def describe(model: nn.Module, schedule: Any = None, **encoders: Any) -> dict[str, Any]:
    """The keywords of ``Diffusion`` that follow from a model and its schedule.

    Args:
        model: a live denoiser, perhaps with an adapter.
        schedule: a diffusers scheduler; None = the usual 1,000 linear steps.
        encoders: ``describe``, ``latents`` and the number of ``pixels`` a latent stands for, of a pipeline.
    """
    schedule = diffusers.DDPMScheduler() if schedule is None else schedule
    config: Mapping[str, Any] = dict(getattr(model, "config"))  # noqa: B009 - PEFT's wrapper forwards it
    size = config.get("sample_size") or 32
    height, width = (size, size) if isinstance(size, int) else size
    shape = (int(config["in_channels"]), int(height), int(width))
    classes = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    told = "caption" if config.get("cross_attention_dim") is not None else "class" if classes else "none"
    scale = encoders.pop("scale", None)
    pixels = None if scale is None else (3, shape[1] * scale, shape[2] * scale)
    return {
        "alphas": tuple(schedule.alphas_cumprod.double().tolist()),
        "shape": shape,
        "target": schedule.config.get("prediction_type", "epsilon"),
        "condition": told,
        "pixels": pixels,
        **encoders,
    }


def _encoders(folder: Path, device: str) -> dict[str, Any]:
    """The text encoder and the image encoder of a pipeline, where there are any."""
    found: dict[str, Any] = {}
    with quiet():
        if (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir():
            found["describe"] = _captions(folder, device)
        if (folder / "vae").is_dir():
            vae: Any = diffusers.AutoencoderKL.from_pretrained(
                folder / "vae", use_safetensors=True, local_files_only=True
            )
            vae = vae.to(device).eval()
            found["latents"] = _latents(vae, device)
            found["scale"] = 2 ** (len(vae.config.block_out_channels) - 1)
    return found


def _captions(folder: Path, device: str) -> Callable[[str], np.ndarray]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = transformers.AutoModel.from_pretrained(
        folder / "text_encoder", use_safetensors=True, local_files_only=True
    )
    encoder = encoder.to(device).eval()

    def embed(caption: str) -> np.ndarray:
        ids = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return encoder(ids.to(device)).last_hidden_state[0].float().cpu().numpy()

    return embed


def _latents(vae: Any, device: str) -> Callable[[np.ndarray], np.ndarray]:
    def encode(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():  # the middle of the distribution: drawn latents would make rows depend on a seed
            middle = vae.encode(torch.from_numpy(image)[None].to(device, vae.dtype)).latent_dist.mode()
        return (middle[0] * vae.config.scaling_factor).float().cpu().numpy()

    return encode
