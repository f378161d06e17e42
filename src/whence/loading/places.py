"""Where a model is: which strings are folders, which are hub ids, and which device it goes to."""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from whence.errors import ModelError, OptionError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
HOST = "host"  # not a device of torch: in main memory for now, on its way to somewhere else
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"


def is_adapter(folder: Path) -> bool:
    """Does this folder hold a PEFT adapter?

    Raises:
        ModelError: adapter weights without the config that says what they are.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    if any((folder / name).is_file() for name in (ADAPTER_WEIGHTS, ADAPTER_PICKLE)):
        raise ModelError(
            f"{folder} holds adapter weights but no {ADAPTER_CONFIG}",
            wanted="an adapter folder as peft saves it",
            try_="model.save_pretrained(folder) on the PEFT model",
        )
    return False


def is_diffusion(folder: Path) -> bool:
    """Does this folder hold a diffusers model or pipeline?"""
    if (folder / "model_index.json").is_file():
        return True
    config = folder / "config.json"
    return config.is_file() and "_class_name" in read_object(config)


def resolve(spec: str) -> tuple[str, str]:
    """(local folder or hub id, revision). A path that does not exist is never taken for a hub id.

    Raises:
        ModelError: no such folder, a file instead of a folder, or neither a path nor a hub id.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return str(path), ""
    if path.exists():
        raise ModelError(f"{spec} is a file", wanted="the folder that holds config.json and model.safetensors")
    name, _, revision = spec.partition("@")
    if _looks_local(spec) or not _HUB_ID.fullmatch(name):
        beside = sorted(p.name for p in path.parent.iterdir() if p.is_dir()) if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=3, cutoff=0.5)
        raise ModelError(
            f"no model folder {spec}",
            wanted="an existing folder, or a hub id such as org/name or org/name@revision",
            try_=f"did you mean {' or '.join(near)}?" if near else "check the path",
        )
    return name, revision


def _looks_local(spec: str) -> bool:
    """Written like a path, or below a folder that exists here."""
    if spec.startswith((".", "/", "~")) or spec.endswith("/") or "\\" in spec or spec.count("/") > 1:
        return True
    return "/" in spec and Path(spec).parent.is_dir()


def check_reachable(name: str) -> None:
    """Say at once that the hub is out of reach; its client would try for half a minute.

    Raises:
        ModelError: not in the cache, and the hub's host has no address here (and no proxy that could know it).
    """
    known = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if isinstance(known, str) or os.environ.get("HF_HUB_OFFLINE") or urllib.request.getproxies():
        return
    host = urllib.parse.urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ModelError(
            f"{name} is neither a folder here nor in the cache, and {host} cannot be reached",
            wanted="an existing folder, or a hub id while there is a network",
            try_="check the path; in a folder above, write ./name",
        ) from error


def pick_device(device: str) -> str:
    """The device to use.

    Raises:
        OptionError: a device torch does not know or this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise OptionError(f"device {device!r}", wanted="cpu, cuda, cuda:1 or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {device!r}, but there is no CUDA device here", wanted="a device of this machine")
    return device


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model.

    Raises:
        ModelError: unreadable, or not an object.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {error}", wanted="a JSON object") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object", wanted="a JSON object")
    return found
