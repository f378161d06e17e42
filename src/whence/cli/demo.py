"""``whence demo``: the embedded example. The demonstration itself lives in ``whence.demo``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from whence.cli.flags import spoken
from whence.cli.voice import Voice


@spoken
def demo(
    voice: Voice,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the trained model, the run and the report.")
    ] = Path(".demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again even if a trained model is there.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the corpus and of the training.")] = 0,
) -> int:
    """Train a small model on a made-up encyclopedia and trace its answers to the documents that taught them.

    whence demo

    The first run takes about three minutes on two cores, the second reuses the trained model.
    """
    run = importlib.import_module("whence.demo.run")
    return int(run.demo(out=out, fresh=fresh, seed=seed, voice=voice) or 0)
