"""``whence clean``: which labels to look at first, why, and what they should perhaps be."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.account import claim, ended
from whence.cli.evaluated import CONFIG, options_of
from whence.cli.flags import pair, spoken
from whence.cli.voice import Voice
from whence.options import describe
from whence.select.amounts import parse_amount

MODEL = "A sequence classifier trained on these rows. Default: small ones over word counts, trained now by fold."
VALIDATION = "Rows whose labels are right: harm to them counts too."
INSPECT = "How many suspicious rows to write out with their reasons: 5% or 200."
OUT = "Folder for suspicious.jsonl, kept, dropped and relabelled rows, and report.html."


@spoken
def clean(
    voice: Voice,
    data: Annotated[list[str], typer.Option(help="Rows with text and label.", show_default=False)],
    model: Annotated[str | None, typer.Option(help=MODEL, show_default=False)] = None,
    validation: Annotated[list[str] | None, typer.Option(help=VALIDATION, show_default=False)] = None,
    inspect: Annotated[str, typer.Option(help=INSPECT)] = "5%",
    supports: Annotated[int, typer.Option(help="Rows shown for and against each.", min=0)] = 3,
    folds: Annotated[int, typer.Option(help="Folds of the built-in classifier.", min=2)] = 5,
    method: Annotated[str, typer.Option(help=describe("method"))] = "ekfac",
    damping: Annotated[str, typer.Option(help=describe("damping"))] = "relative:0.1",
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of folds, sampled labels and training.")] = 0,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), hidden=True)] = None,
    max_length: Annotated[int | None, typer.Option(help=describe("max_length"), hidden=True)] = None,
    max_bad_rows: Annotated[float | None, typer.Option(help=describe("max_bad_rows"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, hidden=True)] = None,
) -> int:
    """Suspicious labels, worst first, with the rows that speak for and against each.

    whence clean --data reviews.jsonl --inspect 5% -o cleaned/

    whence clean --model ./classifier --data train.jsonl --validation checked.jsonl

    Nothing is changed: the folder gets the rows without the suspects, and the rows with the suggested labels.
    """
    claim(out)
    options = options_of(
        config, layers=tuple(layers or ()), columns=dict(pair(text) for text in column or []), max_length=max_length,
        max_bad_rows=max_bad_rows, device=device, seed=seed,
    )  # fmt: skip
    amount = parse_amount(inspect, name="inspect")
    cleaning = importlib.import_module("whence.cleaning")
    judging = importlib.import_module("whence.judging")
    bag = importlib.import_module("whence.evaluate.bag").BagSettings(epochs=4, seed=seed)
    how = cleaning.Cleaning(amount, folds, supports, judging.Terms(method, damping, seed), bag)
    found = cleaning.clean(model, data=data, validation=validation, how=how, options=options, watch=voice)
    return ended(voice, found, out, then="train on {out}/kept.*, or on {out}/relabelled.*")
