"""``whence evaluate pbrf``: does the solver predict a short proximal retraining, row by row?"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.evaluated import CONFIG, CONTENDERS, OUT, answer, check_out, contender_names, options_of, subject_given
from whence.cli.flags import spoken
from whence.cli.voice import Voice
from whence.options import describe


@spoken
def pbrf(
    voice: Voice,
    model: Annotated[str | None, typer.Option(help=describe("model"), show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help=describe("data"), show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)] = None,
    contenders: Annotated[str | None, typer.Option(help=CONTENDERS, show_default=False)] = None,
    rows: Annotated[int, typer.Option(help="Training rows that get a response, at random.")] = 20,
    direction: Annotated[str, typer.Option(help="remove, add, or both (their mean: even effects cancel).")] = "remove",
    share: Annotated[float, typer.Option(help="How much of the row's weight; 1 = the whole row.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Gauss-Newton steps at most.", hidden=True)] = 8,
    tolerance: Annotated[float, typer.Option(help="Gradient of a solved response, of its start.", hidden=True)] = 1e-4,
    damping: Annotated[str | None, typer.Option(help=describe("damping"), show_default=False)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help=describe("seed"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=describe("dtype"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
) -> int:
    """Scores against proximal Bregman responses; the exact damped Gauss-Newton score beside every solver, as ceiling.

    whence evaluate pbrf --out evaluation/

    whence evaluate pbrf --model ./model --data train.jsonl --query questions.jsonl --layers "*down_proj" --rows 50

    For small models or few layers: every row is read hundreds of times per response. With --out, the same command goes
    on where it stopped. Without --model: a small classifier of the Almanac's documents.
    """
    check_out(out)
    evaluating = importlib.import_module("whence.evaluating")
    sample = evaluating.Sample(rows, evaluating.PbrfSettings(direction, share, steps, tolerance))
    given = subject_given(model=model, data=data, query=query)
    options = options_of(config, damping=damping, layers=tuple(layers or ()), seed=seed, dtype=dtype, device=device)
    terms = evaluating.Terms(contender_names(contenders), options, out)
    if given:
        found = evaluating.pbrf(model, train=data, query=query, terms=terms, sample=sample, watch=voice)
    else:
        evidence = importlib.import_module("whence.demo.evidence")
        found = evidence.almanac_pbrf(terms=terms, sample=sample, watch=voice)
    return answer(voice, found, out)
