"""``whence select``: keep or drop training rows by their influence on a question set."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from whence.cli.account import claim, ended
from whence.cli.evaluated import CONFIG, options_of
from whence.cli.flags import pair, spoken
from whence.cli.voice import Voice
from whence.errors import OptionError
from whence.options import describe
from whence.select.amounts import parse_amount, parse_quota
from whence.select.choose import Rule
from whence.select.values import check_balance

RUN = "Folder of a finished `whence trace` with all scores kept; else give model, data and query."
KEEP = "Keep this many of the most helpful rows: 10% or 500."
DROP = "Leave out this many of the least helpful rows: 1% or 50."
BALANCE = "Several questions to one value: mean; max over sub-tasks (LESS); standard; bids (the least served first)."
QUOTA = "By source: even, proportional, or books=30% (at most; may be repeated)."
DIVERSE = "At most this many of a group of near-duplicates (0 = no limit)."
NORMALISE = "relative divides by how loud a row is anyway (RelatIF)."
LESS = "Output folder of a Hugging Face Trainer: LESS features over its checkpoints, with Adam's own state."
LESS_SIZE = "Project LESS features to this many numbers each way, per layer; default: compared in full."
_THEN = "train on {out}/kept.*"
OUT = "Folder for kept and dropped rows (byte for byte), scores.jsonl and report.html."


@spoken
def select(
    voice: Voice,
    run: Annotated[str | None, typer.Option(help=RUN, show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help=describe("model"), show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help=describe("data"), show_default=False)] = None,
    query: Annotated[
        list[str] | None, typer.Option(help="Questions; each file is a sub-task.", show_default=False)
    ] = None,
    keep: Annotated[str | None, typer.Option(help=KEEP, show_default=False)] = None,
    drop: Annotated[str | None, typer.Option(help=DROP, show_default=False)] = None,
    balance: Annotated[str, typer.Option(help=BALANCE)] = "mean",
    quota: Annotated[list[str] | None, typer.Option(help=QUOTA, show_default=False)] = None,
    diverse: Annotated[int, typer.Option(help=DIVERSE, min=0)] = 0,
    normalise: Annotated[str | None, typer.Option(help=NORMALISE, show_default=False)] = None,
    less: Annotated[str | None, typer.Option(help=LESS, show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
    less_size: Annotated[int | None, typer.Option(help=LESS_SIZE, min=1, show_default=False, hidden=True)] = None,
    seed: Annotated[int | None, typer.Option(help=describe("seed"), show_default=False, hidden=True)] = None,
    unscored: Annotated[str, typer.Option(help="Rows without a score: auto, keep or drop.", hidden=True)] = "auto",
    method: Annotated[str | None, typer.Option(help=describe("method"), hidden=True)] = None,
    damping: Annotated[str | None, typer.Option(help=describe("damping"), hidden=True)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), hidden=True)] = None,
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), hidden=True)] = None,
    allow_pickle_weights: Annotated[
        bool, typer.Option(help="Read optimizer.pt (restricted unpickler).", hidden=True)
    ] = False,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, hidden=True)] = None,
) -> int:
    """Which rows to train on for these questions, or to leave out.

    whence select --run run/ --keep 10% -o chosen/

    whence select --model ./model --data pool.jsonl --query dev.jsonl --keep 5%

    Kept and dropped rows stay in the order of the input and byte for byte what they were.
    """
    rule = Rule(
        keep=None if keep is None else parse_amount(keep, name="keep"),
        drop=None if drop is None else parse_amount(drop, name="drop"),
        balance=check_balance(balance),
        quota=parse_quota(quota or ()),
        diverse=diverse,
        unscored=_unscored(unscored),
    )
    _check_given(run, model, data, query, less)
    if less_size is not None and less is None:
        raise OptionError("--less-size without --less", wanted="a Trainer's output folder", try_="--less out/")
    claim(out)
    selecting = importlib.import_module("whence.selecting")
    if run is not None:
        found = selecting.select(run, rule=rule, data=list(data) if data else None, normalise=normalise or "none")
        return ended(voice, found, out, then=_THEN)
    options = options_of(
        config, method=method, damping=damping, layers=tuple(layers or ()), normalise=normalise, seed=seed,
        columns=dict(pair(text) for text in column or []), allow_pickle_weights=allow_pickle_weights or None,
    )  # fmt: skip
    terms: dict[str, Any] = {"rule": rule, "watch": voice, "options": options}
    if less is not None:
        module = importlib.import_module("whence.less")
        found = module.select_less(model, module.Features(less, less_size), train=data, query=query, **terms)
    else:
        found = selecting.select_for(model, train=data, query=query, **terms)
    return ended(voice, found, out, then=_THEN)


def _unscored(text: str) -> Any:
    if text not in ("auto", "keep", "drop"):
        raise OptionError(f"unscored {text!r}", wanted="auto, keep or drop")
    return text


def _check_given(
    run: str | None, model: str | None, data: Iterable[str] | None, query: Iterable[str] | None, less: str | None
) -> None:
    """A run, or what a run is made of."""
    if run is not None and (model or query or less):
        raise OptionError("--run and --model, --query or --less", wanted="a finished run, or the parts of a new one")
    missing = [name for name, given in (("model", model), ("data", data), ("query", query)) if not given]
    if run is None and missing:
        raise OptionError(
            f"neither --run nor --{missing[0]}",
            wanted="a finished run, or --model, --data and --query",
            try_="--run run/",
        )
