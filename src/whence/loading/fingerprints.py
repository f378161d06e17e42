"""Who a model is: names, numbers and hashes that must agree before two results may be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import nn

from whence.gradients.layers import numbers_in
from whence.store import atomic

WEIGHTS = ("*.safetensors", "*.bin")
OTHERS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def file_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and checksum of the files that make the model."""
    paths = [p for pattern in WEIGHTS for p in folder.glob(pattern)] + [folder / name for name in OTHERS]
    return {
        path.name: {"bytes": path.stat().st_size, "checksum": atomic.checksum(path)}
        for path in sorted(set(paths))
        if path.is_file()
    }


def describe_model(model: nn.Module, *, digest: bool = False) -> dict[str, Any]:
    """Class, size, number type, place and attention of a model; with ``digest`` a hash of all its tensors."""
    config = getattr(model, "config", None)
    first = next(model.parameters(), None)
    record = {
        "class": type(model).__name__,
        "parameters": sum(numbers_in(p) for p in model.parameters()),
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "device": "cpu" if first is None else str(first.device),
        "attention": getattr(config, "_attn_implementation", None),
        "commit": getattr(config, "_commit_hash", None),
        "max_positions": getattr(config, "max_position_embeddings", None),
    }
    return record | ({"digest": tensor_digest(model)} if digest else {})


def tensor_digest(model: nn.Module) -> str:
    """Hash over names, shapes and bytes of all tensors: the identity of a model that did not come from files."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # spread over ranks
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"xxh3:{digest.hexdigest()}"


def describe_tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    """Class, vocabulary hash, special tokens, chat template and its hash."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = getattr(tokenizer, "chat_template", None)
    template = template if template is None or isinstance(template, str) else json.dumps(template, sort_keys=True)
    return {
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "checksum": atomic.text_checksum(content),
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        "template": template,
        "template_checksum": None if template is None else atomic.text_checksum(template),
    }
