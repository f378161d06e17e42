"""``whence unrolled``: the training itself, taken back step by step."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.flags import spoken
from whence.cli.trace import LISTED, SHOWN, emit_scores
from whence.cli.voice import Voice
from whence.options import TraceRequest, describe, trace_options
from whence.report import render_text, report_data
from whence.unrolled.options import UnrollOptions

BASE = "The checkpoint that training starts from: a folder, a hub id, or a PEFT adapter folder."
RECIPE = "YAML of the training: optimiser, rate, epochs, batch, schedule ... as of `whence evaluate`."
RECORD = "A recorded run (whence_training.json, or the Trainer's output folder) to repeat instead of a recipe."


def _said(name: str) -> str:
    return UnrollOptions.model_fields[name].description or ""


@spoken
def unrolled(
    voice: Voice,
    base: Annotated[str, typer.Option(help=BASE, show_default=False)],
    data: Annotated[list[str], typer.Option(help=describe("data"), show_default=False)],
    prompt: Annotated[str | None, typer.Option(help=describe("prompt"), show_default=False)] = None,
    response: Annotated[str | None, typer.Option(help=describe("response"), show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)] = None,
    recipe: Annotated[str | None, typer.Option(help=RECIPE, show_default=False)] = None,
    record: Annotated[str | None, typer.Option(help=RECORD, show_default=False)] = None,
    seed: Annotated[int, typer.Option(help=_said("seed"))] = 0,
    states: Annotated[int | None, typer.Option(help=_said("states"), show_default=False)] = None,
    smoothness: Annotated[float, typer.Option(help=_said("smoothness"))] = 0.1,
    out: Annotated[str | None, typer.Option("--out", "-o", help=describe("out"), show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help=describe("dtype"), hidden=True)] = "auto",
    root: Annotated[float | None, typer.Option(help=_said("root"), hidden=True)] = None,
    tokens: Annotated[int, typer.Option(help=_said("tokens"), hidden=True)] = 8192,
    max_length: Annotated[int | None, typer.Option(help=describe("max_length"), hidden=True)] = None,
    top_k: Annotated[int | None, typer.Option(help=describe("top_k"), hidden=True)] = None,
    combine: Annotated[str, typer.Option(help=describe("combine"), hidden=True)] = "each",
    device: Annotated[str, typer.Option(help=describe("device"), hidden=True)] = "auto",
) -> int:
    """The exact effect of every row's weight, through every step of a small training that is repeated here.

    whence unrolled --base ./base --data train.jsonl --query questions.jsonl --recipe recipe.yaml -o run/

    The yardstick for other methods: no curvature, damping or choice of layers. It costs a few trainings, all questions
    together, and explains the one run it makes: base, rows, recipe and seed.
    """
    api, front, retraining = (
        importlib.import_module(f"whence.{name}") for name in ("api", "unrolled.front", "retraining")
    )
    asked = {"query": tuple(query or ()), "prompt": prompt, "response": response}
    questions = api.asked_of(TraceRequest(model="", data=("",), **asked))
    own = {} if root is None else {"root": root}
    run = front.run_of(
        recipe=None if recipe is None else retraining.read_recipe(recipe), record=record, out=out, watch=voice,
        seed=seed, states=states, tokens=tokens, smoothness=smoothness, **own,
    )  # fmt: skip
    options = trace_options(dtype=dtype, max_length=max_length, top_k=top_k, combine=combine, device=device)
    scores = front.unroll(base, train=data, query=questions, run=run, options=options)
    if voice.json:
        emit_scores(voice, scores, top_k or LISTED)
    else:
        voice.out.print()
        render_text(report_data(scores), voice.out, k=min(SHOWN, top_k or SHOWN))
    voice.emit({"type": "done", "out": out})
    page = (
        f"open {out.rstrip('/')}/report.html in a browser" if out else "add -o run/ to keep the scores and the report"
    )
    voice.say(f"\nnext: {page}", "bold")
    return 0
