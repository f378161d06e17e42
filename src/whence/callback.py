"""``WhenceCallback``: the training that happened, written down while it happens, for the Hugging Face Trainer and TRL.

::

    from whence import WhenceCallback

    trainer = Trainer(..., callbacks=[WhenceCallback()])

It keeps the order of the rows, learning rates, checkpoints, optimiser, seeds, template, mask and lengths in
``whence_training.json`` beside the checkpoints. ``whence trace --model out/checkpoint-500`` finds it there, checks that
the rows are encoded as they were, and knows the true number of rows. Nothing of the training changes: the sampler is
watched, and random states that are touched while looking at rows are put back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback

from whence.recorded import FILE, FORMAT, digest, read_record, template_digest, weights_digest
from whence.store import atomic
from whence.store.provenance import versions

PROBES = 16  # rows whose tokens and labels are kept as digests, spread over all
DROPOUTS = ("dropout", "drop", "pdrop")


class WhenceCallback(TrainerCallback):
    """Writes ``whence_training.json`` into the output folder, whole or not at all, at every save and at the end.

    Args:
        ids: ids of the training rows in the dataset's order, as the file that whence will read has them:
            ``dataset["id"]``. By default that column where the Trainer leaves it (``remove_unused_columns=False``), or
            none: rows are then known by their position.
    """

    def __init__(self, ids: Sequence[str] | None = None) -> None:
        self.ids = None if ids is None else [str(i) for i in ids]
        self._record: dict[str, Any] = {}
        self._watched: _Watched | None = None
        self._at = 0
        self._parts = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the record, or go on with the one of a run that is resumed."""
        loader, model = kwargs.get("train_dataloader"), kwargs.get("model")
        self._watched, why = _watch(loader)
        self._record = _described(args, kwargs, ids=self.ids)
        self._record |= {"order": why, "steps": [] if self._watched else None, "rates": [], "checkpoints": []}
        if isinstance(model, nn.Module):
            self._record["start"] = weights_digest(model)
        self._at, before = 0, int(state.global_step)
        if before:
            self._resume(args, before, loader)
        self._write(args, state, finished=False)

    def _resume(self, args: Any, before: int, loader: Any) -> None:
        """Steps done before are those of the record that lies there."""
        place = Path(args.output_dir) / FILE
        old = read_record(place) if place.is_file() else None
        known = old is not None and old.steps is not None and min(len(old.steps), len(old.rates)) >= before
        if old is not None and known and old.steps is not None:
            self._record |= {"rates": list(old.rates[:before]), "start": old.start}
            self._record["checkpoints"] = [n for n in old.checkpoints if n <= before]
            if self._watched is not None:
                self._record["steps"] = [list(step) for step in old.steps[:before]]
        else:
            self._record |= {"order": f"resumed at step {before} without a record of the steps before", "steps": None}
        each = args.gradient_accumulation_steps
        per_epoch = -(-len(loader) // each) if hasattr(loader, "__len__") else before + 1
        self._at = 0 if args.ignore_data_skip else before % per_epoch * each

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new pass begins at its first batch, unless this is the pass that a resumed run goes on with."""
        if self._watched is not None and self._watched.passes:
            self._at = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The learning rate that the step will use."""
        optimiser = kwargs.get("optimizer")
        rate = float(optimiser.param_groups[0]["lr"]) if optimiser is not None else float("nan")
        self._record["rates"].append(rate)
        self._parts = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more batch of a step that accumulates several."""
        self._parts += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Which rows the step read."""
        count = self._parts + 1
        if self._watched is not None and self._record["steps"] is not None:
            size = args.train_batch_size * args.world_size
            current = self._watched.passes[-1]
            self._record["steps"].append(current[self._at * size : (self._at + count) * size])
        self._at += count

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint: keep what is known up to here."""
        self._record["checkpoints"].append(int(state.global_step))
        self._write(args, state, finished=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The whole record."""
        self._write(args, state, finished=True)
        if self._watched is not None:
            self._watched.release()

    def _write(self, args: Any, state: Any, *, finished: bool) -> None:
        if not state.is_world_process_zero:
            return
        done = {"finished": finished, "done": int(state.global_step), "planned": int(state.max_steps)}
        place = Path(args.output_dir)
        place.mkdir(parents=True, exist_ok=True)
        atomic.write_json(place / FILE, atomic.plain({"format": FORMAT, **self._record, **done}))


class _Watched:
    """The sampler of the training rows, with every index it gives written down, pass by pass."""

    def __init__(self, owner: Any) -> None:
        self.owner, self.inner = owner, owner.sampler
        self.passes: list[list[int]] = []
        owner.sampler = self

    def __iter__(self) -> Iterator[int]:
        current: list[int] = []
        self.passes.append(current)
        for index in self.inner:
            current.append(int(index))
            yield index

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the sampler can do, such as ``set_epoch``."""
        return getattr(self.__dict__["inner"], name)

    def release(self) -> None:
        """Put the sampler back."""
        self.owner.sampler = self.inner


def _watch(loader: Any) -> tuple[_Watched | None, str]:
    """The watched sampler of a data loader, or why there is none."""
    owner = getattr(loader, "batch_sampler", None)
    owner = getattr(owner, "batch_sampler", owner)  # of several processes: the whole stream, of which each takes a part
    if owner is None or not hasattr(owner, "sampler") or not hasattr(owner.sampler, "__len__"):
        return None, "not recorded: the rows come as a stream or from a batch sampler of their own"
    return _Watched(owner), "recorded"


def _described(args: Any, given: Mapping[str, Any], *, ids: Sequence[str] | None) -> dict[str, Any]:
    """Everything that is known at the start."""
    loader, model, optimiser = (given.get(name) for name in ("train_dataloader", "model", "optimizer"))
    tokenizer = given.get("processing_class") or given.get("tokenizer")
    dataset = getattr(loader, "dataset", None)
    named = list(ids) if ids is not None else _ids(dataset)
    return {
        "versions": versions(),
        "rows": {
            "count": len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None,
            "ids": named,
            "packed": bool(getattr(args, "packing", False)),
        },
        "batch": {
            "rows": args.train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "world": args.world_size,
        },
        "epochs": float(args.num_train_epochs),
        "seeds": {"seed": args.seed, "data_seed": args.data_seed, "full_determinism": bool(args.full_determinism)},
        "optimiser": _optimiser(optimiser, model, clip=float(args.max_grad_norm or 0.0)),
        "objective": _objective(args, model),
        "loss": _loss(args),
        "dropout": _dropouts(model),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "as loaded",
        "encoding": _encoding(args, tokenizer),
        "probes": _probes(loader, getattr(tokenizer, "eos_token_id", None)),
    }


def _ids(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "column_names", None)
    return [str(i) for i in dataset["id"]] if names and "id" in names else None


def _optimiser(optimiser: Any, model: Any, *, clip: float) -> dict[str, Any]:
    """Class, settings of the first group, and the parameters that are not decayed."""
    inner = getattr(optimiser, "optimizer", optimiser)
    groups = getattr(inner, "param_groups", [])
    if not groups:
        return {"class": type(inner).__name__, "clip": clip}
    names = {id(p): name for name, p in model.named_parameters()} if isinstance(model, nn.Module) else {}
    first = max(groups, key=lambda g: float(g.get("weight_decay") or 0.0))
    free = [names.get(id(p), "") for g in groups if not g.get("weight_decay") for p in g["params"]]
    plain = ("betas", "eps", "momentum", "weight_decay", "nesterov", "amsgrad")
    rates = {float(g["lr"]) for g in groups}
    return {
        "class": type(inner).__name__,
        **{name: first[name] for name in plain if name in first},
        "undecayed": free if first.get("weight_decay") else [],
        "one_rate": len(rates) == 1,
        "clip": clip,
    }


def _objective(args: Any, model: Any) -> str:
    """What a step's loss is divided by: all its loss tokens, or each batch by its own and the batches evenly."""
    forward = getattr(type(_inside(model)), "forward", None)
    taken = getattr(getattr(forward, "__code__", None), "co_flags", 0) & 0x08  # takes **kwargs: the Trainer's own test
    accepted = getattr(_inside(model), "accepts_loss_kwargs", bool(taken))
    smoothed = float(getattr(args, "label_smoothing_factor", 0.0) or 0.0)
    kind = getattr(args, "loss_type", None)  # of TRL: "nll" is the Trainer's own, all others are losses of their own
    own = kind not in (None, "nll")
    return "other" if smoothed or own else "step_tokens" if accepted else "batch_means"


def _loss(args: Any) -> dict[str, Any]:
    """What TRL's trainers say of their loss."""
    names = ("loss_type", "beta", "label_smoothing")
    found = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    if isinstance(kinds := found.get("loss_type"), (list, tuple)):
        found["loss_type"] = "+".join(map(str, kinds))
    return found if "loss_type" in found else {}


def _inside(model: Any) -> Any:
    """The model that an adapter or a wrapper holds."""
    base = getattr(model, "get_base_model", None)
    model = base() if callable(base) else model
    return getattr(model, "module", model)


def _dropouts(model: Any) -> dict[str, float]:
    """Dropout that is on: rates above 0 by name, from modules and configuration."""
    if not isinstance(model, nn.Module):
        return {}
    found = {type(m).__name__: float(m.p) for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0}
    config = getattr(model, "config", None)
    known = config.to_dict() if config is not None and hasattr(config, "to_dict") else {}
    rates = {k: v for k, v in known.items() if any(word in k for word in DROPOUTS) and isinstance(v, float) and v > 0}
    return {**found, **rates}


def _encoding(args: Any, tokenizer: Any) -> dict[str, Any]:
    longest = getattr(args, "max_length", None) or getattr(args, "max_seq_length", None)
    marks = ("completion_only_loss", "assistant_only_loss")
    return {
        "tokenizer": type(tokenizer).__name__ if tokenizer is not None else "",
        "vocabulary": len(tokenizer) if tokenizer is not None and hasattr(tokenizer, "__len__") else 0,
        "template": template_digest(tokenizer),
        "max_length": int(longest) if isinstance(longest, int) else None,
        **{name: bool(getattr(args, name)) for name in marks if getattr(args, name, None) is not None},
    }


def _probes(loader: Any, eos: int | None) -> list[dict[str, Any]]:
    """Some rows as the model will see them, through the trainer's own collator."""
    dataset, collate = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
    if not callable(collate) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return []
    total = len(dataset)  # type: ignore[arg-type]
    chosen = sorted({n * total // min(PROBES, total) for n in range(min(PROBES, total))}) if total else []
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        return [probe for n in chosen if (probe := _probe(n, collate([dataset[n]]), eos)) is not None]  # type: ignore[index]
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError):
        return []  # a collator that takes no single row: nothing to compare with later
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _probe(number: int, batch: Any, eos: int | None) -> dict[str, Any] | None:
    """One row; of a preference pair (TRL's DPO) the chosen side, and the rejected one as ``second``."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch or np.ndim(batch["input_ids"]) != 2:
        return None
    sides = [_side(batch, n, eos) for n in range(len(batch["input_ids"]))]
    if len(sides) == 2 and "completion_mask" in batch:
        return {"row": number, **sides[0], "second": sides[1]}
    return {"row": number, **sides[0]} if len(sides) == 1 else None


def _side(batch: Mapping[str, Any], number: int, eos: int | None) -> dict[str, Any]:
    """One sequence of a batch: its length, digests of its tokens and labels, and whether it ends as it should."""
    ids = np.asarray(batch["input_ids"])[number]
    there = batch.get("attention_mask")
    mask = np.ones(len(ids), bool) if there is None else np.asarray(there)[number].astype(bool)
    own = ids[mask]
    found: dict[str, Any] = {"length": len(own), "ids": digest(own)}
    if eos is not None and len(own):
        found["eos"] = bool(own[-1] == eos)
    labels = batch.get("labels")
    if labels is None and "completion_mask" in batch:
        labels = np.where(np.asarray(batch["completion_mask"]).astype(bool), np.asarray(batch["input_ids"]), -100)
    if labels is not None and np.shape(labels) == np.shape(batch["input_ids"]):
        trained = np.asarray(labels)[number][mask][1:]  # the first token is never predicted
        found |= {"loss_tokens": int((trained != -100).sum()), "labels": digest(trained)}
    return found
