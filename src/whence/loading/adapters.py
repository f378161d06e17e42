"""PEFT adapter folders: attaching one to its base, completely or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import peft
import torch
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from whence.errors import ModelError
from whence.loading.places import ADAPTER_PICKLE as PICKLE
from whence.loading.places import ADAPTER_WEIGHTS as SAFE


def attach_adapter(base: nn.Module, folder: Path, weights: Literal["safetensors", "pickle"]) -> nn.Module:
    """The base with the adapter on it; only the adapter's weights count as trained.

    Raises:
        ModelError: unsafe or missing weights, or weights that do not fill the adapter.
    """
    safe = (folder / SAFE).is_file()
    if not safe and weights != "pickle":
        found = f" (it has {PICKLE}, a pickle)" if (folder / PICKLE).is_file() else ""
        raise ModelError(
            f"{folder} has no {SAFE}{found}",
            wanted="adapter weights as safetensors",
            try_="save it again with a current peft" + (", or --allow-pickle-weights if you trust it" if found else ""),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # missing and surplus keys are only warned about; below they are an error
        model = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=True)  # type: ignore[arg-type]
        for config in model.peft_config.values():  # where the base really is; peft looks there, or else on the hub
            config.base_model_name_or_path = _place_of(base)
        wanted = set(get_peft_model_state_dict(model))
    stored = _names(folder)
    lacking = sorted(wanted - stored)
    foreign = sorted(stored - wanted)
    if lacking or foreign:
        raise ModelError(
            f"{folder} does not fit {type(base).__name__}: {len(lacking)} adapter tensors are missing, "
            f"{len(foreign)} have no place ({', '.join([*lacking, *foreign][:2])})",
            wanted="an adapter trained on exactly this base model",
            try_="base_model_name_or_path in its adapter_config.json",
        )
    return model


def _place_of(base: nn.Module) -> str:
    """The folder or hub id that a model was loaded from, "" when it does not know."""
    config = getattr(base, "config", None)
    return str(getattr(base, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")


def _names(folder: Path) -> set[str]:
    if (folder / SAFE).is_file():
        with safe_open(folder / SAFE, framework="pt") as file:
            return set(file.keys())
    return set(torch.load(folder / PICKLE, map_location="cpu", weights_only=True))
