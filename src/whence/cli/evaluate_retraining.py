"""``whence evaluate lds | loo | removal``: the evaluations that retrain."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from whence.cli.evaluated import CONTENDERS, DEMO, OUT, answer, check_out, contender_names
from whence.cli.flags import spoken
from whence.cli.voice import Voice
from whence.errors import OptionError
from whence.options import describe, trace_options

MODEL = "The trained model that is scored. Default: the base, trained now on all rows."
BASE = "The checkpoint that every training starts from."
COMMAND = "Your training command instead: words with {rows} or {ids}, {seed}, {out}."
RECIPE = "YAML of the built-in training: optimiser, rate, epochs, batch, schedule ..."
BANK = "Folder that keeps the retrained models' losses: resumed, used again for other methods [default: OUT/bank]."
SEEDS = "Trainings of every set of rows."

Model = Annotated[str | None, typer.Option(help=MODEL, show_default=False)]
Base = Annotated[str | None, typer.Option(help=BASE, show_default=False)]
Command = Annotated[str | None, typer.Option(help=COMMAND, show_default=False)]
RecipeFile = Annotated[str | None, typer.Option("--recipe", help=RECIPE, show_default=False)]
BankFolder = Annotated[str | None, typer.Option("--bank", help=BANK, show_default=False)]
Data = Annotated[list[str] | None, typer.Option(help=describe("data"), show_default=False)]
Query = Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)]
Contenders = Annotated[str | None, typer.Option(help=CONTENDERS, show_default=False)]
Seeds = Annotated[int, typer.Option(help=SEEDS, min=1)]
Out = Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)]
Demo = Annotated[Path, typer.Option(help=DEMO, hidden=True)]
Damping = Annotated[str, typer.Option(help=describe("damping"), hidden=True)]
Layers = Annotated[list[str] | None, typer.Option(help=describe("layers"), hidden=True)]
Seed = Annotated[int, typer.Option(help="Of the subsets, the fits and the random control.", hidden=True)]
Dtype = Annotated[str, typer.Option(help=describe("dtype"), hidden=True)]
Device = Annotated[str, typer.Option(help=describe("device"), hidden=True)]


@spoken
def lds(
    voice: Voice,
    model: Model = None,
    base: Base = None,
    data: Data = None,
    query: Query = None,
    contenders: Contenders = None,
    subsets: Annotated[str, typer.Option(help="How many halves of the rows; 64xdrop:10 for others.")] = "64",
    seeds: Seeds = 2,
    recipe: RecipeFile = None,
    command: Command = None,
    bank: BankFolder = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small example from nothing, in minutes.")] = False,
    out: Out = None,
    demo: Demo = Path(".demo"),
    damping: Damping = "relative:0.1",
    layers: Layers = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> int:
    """Do summed scores predict the losses of models retrained on subsets of the rows?

    whence evaluate lds --quick

    whence evaluate lds --base ./base --data train.jsonl --query questions.jsonl --bank bank/ --out evaluation/

    The linear datamodelling score of every contender, with paired intervals and the noise ceiling. Without rows of
    your own: the quick example.
    """
    how = _how(
        base, contenders, bank=bank, out=out, recipe=recipe, command=command, seeds=seeds,
        options={"damping": damping, "layers": tuple(layers or ()), "seed": seed, "dtype": dtype, "device": device},
    )  # fmt: skip
    if quick and (base or data or query or model or command):
        raise OptionError("--quick with a model or data of your own", wanted="one or the other")
    if _own(data, query, model, base, command):
        retraining = importlib.import_module("whence.retraining")
        found = retraining.lds(model, train=data, query=query, how=how, subsets=subsets, watch=voice)
    else:
        found = importlib.import_module("whence.demo.quick").almanac_lds(demo, how=how, watch=voice)
    return answer(voice, found, out)


@spoken
def loo(
    voice: Voice,
    model: Model = None,
    base: Base = None,
    data: Data = None,
    query: Query = None,
    contenders: Contenders = None,
    rows: Annotated[int, typer.Option(help="Rows left out, one at a time.", min=3)] = 32,
    seeds: Seeds = 3,
    recipe: RecipeFile = None,
    command: Command = None,
    bank: BankFolder = None,
    out: Out = None,
    demo: Demo = Path(".demo"),
    damping: Damping = "relative:0.1",
    layers: Layers = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> int:
    """Does the score of a row predict what leaving it out does?

    whence evaluate loo

    whence evaluate loo --base ./base --data train.jsonl --query questions.jsonl --rows 32 --seeds 5

    Trains without each of some rows, by default of the Almanac. For networks one row is mostly below the noise between
    seeds, which is measured.
    """
    how = _how(
        base, contenders, bank=bank, out=out, recipe=recipe, command=command, seeds=seeds,
        options={"damping": damping, "layers": tuple(layers or ()), "seed": seed, "dtype": dtype, "device": device},
    )  # fmt: skip
    if _own(data, query, model, base, command):
        retraining = importlib.import_module("whence.retraining")
        found = retraining.loo(model, train=data, query=query, how=how, count=rows, watch=voice)
    else:
        found = importlib.import_module("whence.demo.quick").almanac_loo(demo, how=how, count=rows, watch=voice)
    return answer(voice, found, out)


@spoken
def removal(
    voice: Voice,
    model: Model = None,
    base: Base = None,
    data: Data = None,
    query: Query = None,
    contenders: Contenders = None,
    remove: Annotated[
        list[int] | None, typer.Option(help="Rows to remove, repeatable [default: one in twenty].", show_default=False)
    ] = None,
    seeds: Seeds = 3,
    recipe: RecipeFile = None,
    command: Command = None,
    bank: BankFolder = None,
    out: Out = None,
    demo: Demo = Path(".demo"),
    damping: Damping = "relative:0.1",
    layers: Layers = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> int:
    """What does a query's loss do when the rows that a contender puts first are taken out?

    whence evaluate removal

    whence evaluate removal --base ./base --data train.jsonl --query questions.jsonl --remove 10 --remove 50

    Against random and similar rows, and against the rise in nats that the scores foretell.
    """
    how = _how(
        base, contenders, bank=bank, out=out, recipe=recipe, command=command, seeds=seeds,
        options={"damping": damping, "layers": tuple(layers or ()), "seed": seed, "dtype": dtype, "device": device},
    )  # fmt: skip
    counts = tuple(remove or ())
    if _own(data, query, model, base, command):
        retraining = importlib.import_module("whence.retraining")
        found = retraining.removal(model, train=data, query=query, how=how, counts=counts, watch=voice)
    else:
        quick = importlib.import_module("whence.demo.quick")
        found = quick.almanac_removal(demo, how=how, counts=counts, watch=voice)
    return answer(voice, found, out)


def _how(
    base: str | None, names: str | None, *, out: str | None, recipe: str | None, options: dict[str, Any], **given: Any
) -> Any:
    """The record of how to retrain; what is retrained is kept beside the answer unless a bank is named.

    Raises:
        StoreError: the answer cannot be written there.
    """
    check_out(out)
    retraining, evaluating = (importlib.import_module(f"whence.{name}") for name in ("retraining", "evaluating"))
    terms = evaluating.Terms(contender_names(names), trace_options(**options))
    given["command"] = given.get("command") or ""
    given["bank"] = given["bank"] or (str(Path(out) / "bank") if out else None)
    return retraining.Retraining(base, retraining.read_recipe(recipe), terms=terms, **given)


def _own(data: list[str] | None, query: list[str] | None, *others: str | None) -> bool:
    """Whether the user brought data; False = nothing at all, which means the embedded example."""
    if not (data or query or any(others)):
        return False
    if not data or not query:
        wanted = "training rows and questions, or nothing of your own for the embedded example"
        raise OptionError(f"no --{'query' if data else 'data'}", wanted=wanted)
    return True
