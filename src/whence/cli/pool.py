"""``whence mixture`` and ``whence bandit``: how much of each source, and a large pool judged from few gradients."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.account import claim, ended
from whence.cli.evaluated import CONFIG, options_of
from whence.cli.flags import pair, spoken
from whence.cli.voice import Voice
from whence.errors import OptionError
from whence.options import describe
from whence.select.amounts import parse_amount, parse_quota
from whence.select.bandit import Pulls
from whence.select.choose import Rule

SOURCES = "Rows by source: books=a.jsonl; named at least twice."
REFERENCE = "Questions that stand for what the model should be good at."
ALONG = "sums (IDEAL: doubling a source), or swaps (one row for another: keeps the size)."
STRENGTH = "The source with the largest effect moves by this share."
AFTER = "Folder of the round before: its weights are taken on (give the model trained on its rows)."
TRAIN = "Train after each round: your command, words with {rows} and {out}, perhaps {seed}, {round}, {model}."
ROUNDS = "Rounds of influence, weights, sample and training."
RUN = "Folder of a finished `whence trace` with all scores; else give model, data and query."


@spoken
def mixture(
    voice: Voice,
    run: Annotated[str | None, typer.Option(help=RUN, show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help=describe("model"), show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help=SOURCES, show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=REFERENCE, show_default=False)] = None,
    strength: Annotated[float, typer.Option(help=STRENGTH)] = 0.15,
    size: Annotated[int | None, typer.Option(help="Rows of the mixture.", show_default=False)] = None,
    after: Annotated[str | None, typer.Option(help=AFTER, show_default=False)] = None,
    train_command: Annotated[str | None, typer.Option(help=TRAIN, show_default=False)] = None,
    rounds: Annotated[int | None, typer.Option(help=ROUNDS, min=1, show_default="2 with --train-command")] = None,
    along: Annotated[str, typer.Option(help=ALONG, hidden=True)] = "sums",
    method: Annotated[str, typer.Option(help=describe("method"), hidden=True)] = "ekfac",
    damping: Annotated[str, typer.Option(help=describe("damping"), hidden=True)] = "relative:0.1",
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of the sample and of sampled labels.")] = 0,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for the mixed rows and report.html.", show_default=False)
    ] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, hidden=True)] = None,
) -> int:
    """How much of each source to train on, by its influence on a reference set.

    whence mixture --model ./model --data books=a.jsonl --data code=b.jsonl --query dev.jsonl -o mix1/

    whence mixture --model ./trained-on-mix1 --data books=a.jsonl --data code=b.jsonl --query dev.jsonl --after mix1/

    One round moves every weight a little. Train on the result and go on from there; --train-command does both.
    """
    if train_command is None and rounds is not None:
        raise OptionError("--rounds without --train-command", wanted="a training between rounds, or one round")
    if train_command is None:
        claim(out)
    weighing = importlib.import_module("whence.weighing")
    how = weighing.Mixing(strength, size, seed, after, along)
    if train_command is not None and (run is not None or out is None):
        got = "--train-command " + ("without -o" if out is None else "and --run")
        raise OptionError(got, wanted="--model, --data, --query, and a folder that keeps every round")
    if run is not None:
        if model or query:
            raise OptionError("--run and --model or --query", wanted="a finished run, or the parts of a new one")
        return ended(voice, weighing.mixture(run, data=list(data) if data else None, how=how), out)
    _check_named(model=model, data=data, query=query)
    columns = dict(pair(text) for text in column or [])
    options = options_of(config, method=method, damping=damping, columns=columns, seed=seed)
    if train_command is not None:
        module = importlib.import_module("whence.rounds")
        many = module.Rounds(out, rounds or 2, train_command, mixing=how)
        found = module.mixture_rounds(model, train=data, query=query, rounds=many, watch=voice, options=options)
        return ended(voice, found, out, then="judge the last model in {out}/ on questions that were not used here")
    found = weighing.mixture_for(model, train=data, query=query, how=how, watch=voice, options=options)
    return ended(voice, found, out, then="train on {out}/mixed.*, then again with --after {out}")


@spoken
def bandit(
    voice: Voice,
    model: Annotated[str, typer.Option(help=describe("model"), show_default=False)],
    data: Annotated[list[str], typer.Option(help=describe("data"), show_default=False)],
    query: Annotated[list[str], typer.Option(help=REFERENCE, show_default=False)],
    keep: Annotated[str, typer.Option(help="Keep this many of the rows: 10% or 500.", show_default=False)],
    budget: Annotated[int, typer.Option(help="Rows judged at most.")] = 1000,
    arms: Annotated[int, typer.Option(help="Clusters.", min=1)] = 64,
    reward: Annotated[str, typer.Option(help="influence, or transport (no gradients).")] = "influence",
    explore: Annotated[float, typer.Option(help="0 = always the best arm so far.", min=0)] = 0.5,
    quota: Annotated[list[str] | None, typer.Option(help="By source, as select.", show_default=False)] = None,
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of clusters and draws.")] = 0,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder for kept and dropped rows.", show_default=False)
    ] = None,
    draw: Annotated[int, typer.Option(help="Rows drawn at a time.", min=1, hidden=True)] = 8,
    fit_rows: Annotated[int, typer.Option(help="Rows of the curvature fit.", min=2, hidden=True)] = 512,
    method: Annotated[str, typer.Option(help=describe("method"), hidden=True)] = "ekfac",
    damping: Annotated[str, typer.Option(help=describe("damping"), hidden=True)] = "relative:0.1",
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, hidden=True)] = None,
) -> int:
    """Choose rows of a large pool from the gradients of a few: clusters are the arms of a bandit.

    whence bandit --model ./model --data pool.jsonl --query dev.jsonl --keep 5% --budget 2000 -o chosen/

    Only drawn rows (and those of the curvature fit) get a backward pass; how many is said.
    """
    claim(out)
    columns = dict(pair(text) for text in column or [])
    options = options_of(config, method=method, damping=damping, columns=columns, seed=seed)
    pulling = importlib.import_module("whence.pulling")
    rule = Rule(keep=parse_amount(keep, name="keep"), quota=parse_quota(quota or ()))
    how = pulling.Arms(rule, Pulls(budget, draw, explore, seed), arms, reward, fit_rows)
    found = pulling.bandit(model, train=data, query=query, arms=how, watch=voice, options=options)
    return ended(voice, found, out, then="train on {out}/kept.*")


def _check_named(**given: object) -> None:
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise OptionError(f"neither --run nor --{missing[0]}", wanted="a finished run, or model, data and query")
