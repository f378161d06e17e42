"""What numbers are of, one plain field each: equal fields mean equal numbers, and a field that differs can be named."""

from __future__ import annotations

from typing import Any

import torch

from whence.pipeline import Material, Subject
from whence.store.provenance import versions


def model_identity(subject: Subject) -> dict[str, Any]:
    """The model, its tokenizer and the task: what a question must have in common with the index."""
    about = subject.loaded.about
    found: dict[str, Any] = {"layers": {name: list(size) for name, size in subject.layers.sizes.items()}}
    for part in ("model", "adapter"):
        record = about.get(part) or {}
        files = {name: entry["checksum"] for name, entry in (record.get("files") or {}).items()}
        found |= {f"{part}.{name}": checksum for name, checksum in files.items() if not name.startswith("tokenizer")}
    model = about["model"]
    found |= {f"model.{name}": model.get(name) for name in ("class", "parameters", "dtype", "attention", "digest")}
    if not model.get("files"):
        found |= {"model.commit": model.get("commit"), "model.id": model.get("id")}
    tokenizer = about.get("tokenizer") or {}
    found |= {f"tokenizer.{name}": tokenizer.get(name) for name in ("class", "checksum", "template_checksum")}
    return found | {f"task.{name}": value for name, value in subject.task.fingerprint().items()}


def rows_identity(rows: Material, name: str = "data") -> dict[str, Any]:
    """The rows, those of them that are used, and which go together in a batch."""
    return {
        name: rows.rows.fingerprint,
        f"{name}.used": len(rows.examples),
        f"{name}.batch_plan": rows.source.plan.digest,
    }


def machine_identity(subject: Subject) -> dict[str, Any]:
    """What else the last bits of a number depend on."""
    return {
        "machine.device": str(subject.loaded.about["model"]["device"]),
        "machine.threads": torch.get_num_threads(),
        **{f"machine.{name}": said for name, said in versions().items()},
    }
