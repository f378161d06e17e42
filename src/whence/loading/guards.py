"""What must hold before a model is used: safe files, complete weights, finite numbers, and errors in plain words."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn

from whence.errors import ModelError, WhenceError
from whence.loading.places import read_object

Weights = Literal["safetensors", "pickle"]


def check_weight_files(folder: Path, weights: Weights) -> None:
    """Weights must be there in a form that cannot execute.

    Raises:
        ModelError: none, pickles only, or a shard that the index names and the folder lacks.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted({n for n in read_object(index).get("weight_map", {}).values() if not (folder / n).is_file()})
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing[:3])}", wanted="every shard named in the index")
    elif not (folder / "model.safetensors").is_file() and weights == "safetensors":
        bins = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
        raise ModelError(
            f"{folder} has no model.safetensors" + (f" (it has {bins[0]}, a pickle)" if bins else ""),
            wanted="weights as safetensors",
            try_="model.save_pretrained(folder)" + (", or --allow-pickle-weights if you trust it" if bins else ""),
        )


def check_complete(place: str, kind: str, info: Mapping[str, Any]) -> None:
    """Every weight of the model came from the checkpoint.

    Raises:
        ModelError: names the tensors that would have been random.
    """
    missing, odd = sorted(info["missing_keys"]), sorted(str(k) for k in info.get("mismatched_keys", ()))
    if missing or odd:
        names = [*missing, *odd]
        raise ModelError(
            f"{place} does not hold {len(names)} of the weights of a {kind}: {', '.join(names[:3])}",
            wanted="a complete checkpoint: these would have been random numbers",
            try_="the folder of the full model, or an adapter folder with its adapter_config.json",
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Every floating tensor of the model holds finite numbers.

    Raises:
        ModelError: names the first tensor that does not, and how many of its values.
    """
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name}: tensor {key} holds {bad} values that are NaN or infinite (of {tensor.numel()})",
                wanted="finite weights",
                try_="another checkpoint: training diverged, or the file is damaged",
            )


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Loader failures as one sentence; the cause stays attached for --debug."""
    try:
        yield
    except WhenceError:
        raise
    except Exception as error:  # config, weights, tokenizer and hub code raise two dozen types between them
        if type(error).__name__ == "UnpicklingError":
            raise ModelError(
                f"{place} holds a pickle with more in it than tensors",
                wanted="weights; anything else in a pickle is code that would run",
                try_="safetensors from whoever made it",
            ) from error
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        local = Path(place).is_dir()
        remote = "trust_remote_code" in str(error)
        if remote:
            advice = "--trust-remote-code, if you have read that code and trust it"
        elif local:
            advice = "whether the folder is complete and meant for this kind of task"
        else:
            advice = "the spelling, the network, and access (HF_TOKEN) if it is gated; or a local folder"
        raise ModelError(
            f"cannot load {place}: {said}",
            wanted="a readable model folder" if local else "a local folder, or a hub id that can be reached",
            try_=advice,
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers talks through its logger and bars; what matters of it is said in our words."""
    logger = logging.getLogger("transformers")
    level = logger.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
