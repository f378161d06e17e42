"""``whence evaluate tailpatch``: does one training step on the rows put first make the answer likelier?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from whence.cli.evaluated import (
    CONFIG,
    CONTENDERS,
    DEMO,
    OUT,
    answer,
    check_out,
    contender_names,
    options_of,
    subject_given,
)
from whence.cli.flags import spoken
from whence.cli.voice import Voice
from whence.options import describe


@spoken
def tailpatch(
    voice: Voice,
    model: Annotated[str | None, typer.Option(help=describe("model"), show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help=describe("data"), show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)] = None,
    contenders: Annotated[str | None, typer.Option(help=CONTENDERS, show_default=False)] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of the step; best the last one of training.")] = 1e-4,
    optimiser: Annotated[str, typer.Option(help="adamw (fresh state) or sgd.", hidden=True)] = "adamw",
    k: Annotated[int, typer.Option("-k", "--rows", help="Rows per question and contender.")] = 10,
    damping: Annotated[str | None, typer.Option(help=describe("damping"), show_default=False)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help=describe("seed"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=describe("dtype"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    demo: Annotated[Path, typer.Option(help=DEMO)] = Path(".demo"),
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
) -> int:
    """One optimiser step on each of the rows put first, and what it does to the answer; random rows beside them.

    whence evaluate tailpatch --out evaluation/

    whence evaluate tailpatch --model ./model --data train.jsonl --query questions.jsonl --rate 1e-5

    Every step starts from the same weights and is undone. With --out, the same command goes on where it stopped.
    """
    check_out(out)
    options = options_of(config, damping=damping, layers=tuple(layers or ()), seed=seed, dtype=dtype, device=device)
    evaluating = importlib.import_module("whence.evaluating")
    terms = evaluating.Terms(contender_names(contenders), options, out)
    settings = evaluating.StepSettings(optimiser, rate, k)
    if subject_given(model=model, data=data, query=query):
        found = evaluating.tailpatch(model, train=data, query=query, terms=terms, settings=settings, watch=voice)
    else:
        evidence = importlib.import_module("whence.demo.evidence")
        found = evidence.almanac_tailpatch(demo, terms=terms, settings=settings, watch=voice)
    return answer(voice, found, out)
