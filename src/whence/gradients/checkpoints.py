"""Checkpoints of a training run, found in a Hugging Face Trainer output folder.

Only names and ``trainer_state.json`` are read here, weights as safetensors by whoever loads the folder.
``training_args.bin``, ``optimizer.pt`` and ``scheduler.pt`` are pickles, which can run code: none is opened here
(``adam`` reads the second, where the user allows it, with torch's restricted unpickler).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence.errors import ModelError, OptionError

TRAINER_STATE = "trainer_state.json"
_FOLDER = re.compile(r"checkpoint-(\d{1,18})")
_MOST_BYTES = 256 << 20  # of a trainer state: a step takes about 150 bytes


@dataclass(frozen=True)
class Checkpoint:
    """One saved state of training.

    Attributes:
        path: its folder.
        step: optimiser steps taken.
        learning_rate: mean over the steps since the checkpoint before, from the trainer's log; None when not known.
    """

    path: Path
    step: int
    learning_rate: float | None


def find_checkpoints(folder: str | Path, *, rates: Mapping[int, float] | None = None) -> list[Checkpoint]:
    """The ``checkpoint-N`` folders of a Trainer's output folder, by step (2 before 10), with their learning rates.

    Args:
        folder: the output folder.
        rates: step -> learning rate where every step is known; None = what the trainer logged.

    Raises:
        ModelError: no such folder, no checkpoints in it, or a trainer state that cannot be read.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise ModelError(f"no folder {folder}", wanted="the output folder of a Hugging Face Trainer")
    steps = {
        int(match[1]): path
        for path in place.iterdir()
        if (match := _FOLDER.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()
    }
    if not steps:
        here = _FOLDER.fullmatch(place.resolve().name)
        raise ModelError(
            f"{folder} holds no checkpoint-N folders",
            wanted="the output folder of a Hugging Face Trainer",
            try_=str(place.parent) if here else "save_strategy and save_total_limit when training",
        )
    rates = rates or _logged_rates([place, *(steps[step] for step in sorted(steps))])
    ordered = sorted(steps)
    before = [0, *ordered[:-1]]
    return [Checkpoint(steps[n], n, mean_rate(rates, b, n)) for b, n in zip(before, ordered, strict=True)]


def given_checkpoints(folders: Sequence[str | Path]) -> list[Checkpoint]:
    """Folders named one by one, in their order: adapters of one base model, say, from several runs or steps.

    The step is that of the folder's name or trainer state, else its place in the list; the learning rate is the mean
    over its own run, where a trainer state tells.

    Raises:
        ModelError: one of them is no folder.
    """
    found = []
    for number, folder in enumerate(folders, start=1):
        place = Path(folder).expanduser()
        if not place.is_dir():
            raise ModelError(f"no folder {folder}", wanted="folders of models or adapters, separated by commas")
        state = _read(place / TRAINER_STATE) if (place / TRAINER_STATE).is_file() else {}
        named, step = _FOLDER.fullmatch(place.name), state.get("global_step")
        step = int(named[1]) if named else step if isinstance(step, int) and step > 0 else number
        found.append(Checkpoint(place, step, mean_rate(logged_rates(state), 0, step)))
    return found


def _logged_rates(folders: Sequence[Path]) -> dict[int, float]:
    """Step -> learning rate from every trainer state there is; each holds the history up to its own step."""
    rates: dict[int, float] = {}
    for folder in folders:
        state = folder / TRAINER_STATE
        if state.is_file():
            rates.update(logged_rates(_read(state)))
    return rates


def logged_rates(state: Mapping[str, Any]) -> dict[int, float]:
    """Step -> learning rate from a ``trainer_state.json``; entries that are no numbers are passed over."""
    history = state.get("log_history")
    found: dict[int, float] = {}
    for entry in history if isinstance(history, list) else ():
        step, rate = (entry.get("step"), entry.get("learning_rate")) if isinstance(entry, dict) else (None, None)
        if isinstance(step, int) and isinstance(rate, (int, float)) and math.isfinite(rate) and rate >= 0:
            found[step] = float(rate)
    return found


def mean_rate(rates: Mapping[int, float], start: int, stop: int) -> float | None:
    """Mean learning rate of steps start + 1 to stop; a logged rate stands for the steps since the entry before it.

    The mean, because the rate *at* the last checkpoint of most schedules is 0, and that checkpoint has learnt as well.
    """
    if not rates:
        return None
    knots = sorted(rates)
    if stop <= start:
        return rates[knots[0]]
    total, at = 0.0, start
    for knot in knots:
        if at < knot:
            until = min(knot, stop)
            total += rates[knot] * (until - at)
            at = until
        if at == stop:
            break
    return (total + rates[knots[-1]] * (stop - at)) / (stop - start)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size} bytes", wanted=f"at most {_MOST_BYTES}")
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}", wanted="a JSON object, as the Trainer writes it") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is not a JSON object", wanted="a JSON object, as the Trainer writes it")
    return found


def tracin_weights(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Learning rates η_c, one per checkpoint: the weights of TracInCP (Pruthi et al. 2020, section 3.3).

    Raises:
        OptionError: a checkpoint without a known learning rate, or only zeros.
    """
    rates = [c.learning_rate for c in checkpoints]
    unknown = [c.path.name for c in checkpoints if c.learning_rate is None]
    if unknown:
        raise OptionError(
            f"{', '.join(unknown[:3])}: no learning rate in {TRAINER_STATE}",
            wanted="a log of learning rates (logging_steps when training)",
            try_="a mean over checkpoints: any method but identity",
        )
    known = [rate for rate in rates if rate is not None]
    if not any(known):
        raise OptionError("all learning rates are 0", wanted="at least one checkpoint that was still learning")
    return known


def mean_weights(checkpoints: Sequence[Checkpoint]) -> list[float]:
    """Equal weights: the mean over checkpoints."""
    return [1 / len(checkpoints)] * len(checkpoints)
