"""``whence evaluate retrieval``: are the rows found that are known to have taught the answer?"""

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
def retrieval(
    voice: Voice,
    model: Annotated[str | None, typer.Option(help=describe("model"), show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help=describe("data"), show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)] = None,
    relevant: Annotated[
        str | None,
        typer.Option(help='JSONL: {"id": question, "relevant": [row ids]}; ignored, kind.', show_default=False),
    ] = None,
    contenders: Annotated[str | None, typer.Option(help=CONTENDERS, show_default=False)] = None,
    damping: Annotated[str | None, typer.Option(help=describe("damping"), show_default=False)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    fit_rows: Annotated[str | None, typer.Option(help=describe("fit_rows"), show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help=describe("seed"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=describe("dtype"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    demo: Annotated[Path, typer.Option(help=DEMO)] = Path(".demo"),
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
) -> int:
    """Are the rows found that are known to have taught the answer? MRR, recall and precision, with baselines.

    whence evaluate retrieval --out evaluation/

    whence evaluate retrieval --model ./model --data train.jsonl --query questions.jsonl --relevant relevant.jsonl

    Without --model: the Almanac, whose documents' provenance is known, and the model of `whence demo`.
    """
    check_out(out)
    options = options_of(
        config, damping=damping, layers=tuple(layers or ()), fit_rows=fit_rows, seed=seed, dtype=dtype, device=device
    )
    evaluating = importlib.import_module("whence.evaluating")
    terms = evaluating.Terms(contender_names(contenders), options)
    if subject_given(model=model, data=data, query=query, relevant=relevant):
        found = evaluating.retrieval(model, train=data, query=query, known=relevant, terms=terms, watch=voice)
    else:
        found = importlib.import_module("whence.demo.evidence").almanac_retrieval(demo, terms=terms, watch=voice)
    return answer(voice, found, out)
