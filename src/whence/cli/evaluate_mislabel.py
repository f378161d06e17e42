"""``whence evaluate mislabel``: are wrong labels found by influence, and better than by their loss?"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from whence.cli.evaluated import CONFIG, OUT, answer, check_out, contender_names, options_of
from whence.cli.flags import pair, spoken
from whence.cli.voice import Voice
from whence.errors import OptionError
from whence.options import describe

SUSPECTS = (
    "Who takes part, with commas: self:METHOD, validation:METHOD, shuffled:METHOD, neighbours:bm25 (tfidf, "
    "embedding, activation), loss, gradient_norm, length, random."
)
MODEL = "A sequence classifier. Default: a small one over word counts, trained now on the labels as given."
VALIDATION = "Rows with right labels. Default without --model: a fifth of the rows."


@spoken
def mislabel(
    voice: Voice,
    model: Annotated[str | None, typer.Option(help=MODEL, show_default=False)] = None,
    data: Annotated[list[str] | None, typer.Option(help="Rows with text and label.", show_default=False)] = None,
    validation: Annotated[list[str] | None, typer.Option(help=VALIDATION, show_default=False)] = None,
    truth: Annotated[str | None, typer.Option(help="Column with the true label.", show_default=False)] = None,
    flip: Annotated[float, typer.Option(help="Without --truth: share of labels to plant wrongly.")] = 0.1,
    contenders: Annotated[str | None, typer.Option(help=SUSPECTS, show_default=False)] = None,
    damping: Annotated[str | None, typer.Option(help=describe("damping"), show_default=False)] = None,
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the flips, the held-out rows and the training.", show_default=False)
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help=describe("dtype"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help=CONFIG, show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=OUT, show_default=False)] = None,
) -> int:
    """Wrong labels ranked by self-influence and validation influence, with loss and gradient norm as controls.

    whence evaluate mislabel --data reviews.jsonl --flip 0.2 --out evaluation/

    whence evaluate mislabel --model ./classifier --data train.jsonl --truth checked_label

    A finished model has not seen labels planted now, and the answer says so. Without --data: the Almanac's documents.
    """
    check_out(out)
    if data is None and (model or validation or truth):
        raise OptionError("no --data", wanted="rows with text and label, or nothing at all for the embedded example")
    columns = dict(pair(text) for text in column or [])
    options = options_of(
        config, damping=damping, layers=tuple(layers or ()), seed=seed, dtype=dtype, device=device, columns=columns
    )
    evaluating = importlib.import_module("whence.evaluating")
    rows = data or importlib.import_module("whence.demo.evidence").labelled(options.seed)
    found = evaluating.mislabel(
        model,
        data=rows,
        validation=validation,
        labels=evaluating.Labels(flip=flip, truth=truth),
        terms=evaluating.Terms(contender_names(contenders), options),
        watch=voice,
    )
    return answer(voice, found, out)
