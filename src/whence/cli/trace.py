"""``whence trace``: the main job in one go."""

from __future__ import annotations

import importlib
import os
from typing import Any

from pydantic import BaseModel, Field

from whence.cli.flags import from_records, spoken
from whence.cli.voice import Voice
from whence.launch import require_one
from whence.options import TraceOptions, TraceRequest, read_config, trace_request
from whence.report import render_text, report_data
from whence.results import Ranked, Scores
from whence.watch import is_first

SHOWN, LISTED = 5, 10
ONE = "one process (srun -n 1); --fsdp, to share a large model; or whence index, which shares its work, and whence ask"


class Config(BaseModel):
    """Where settings come from besides the flags."""

    config: str | None = Field(
        default=None, description="YAML file with any of these settings, or a run.json to replay; flags win."
    )


VISIBLE = {
    "model": "", "data": "", "prompt": "", "response": "", "query": "", "out": "-o", "method": "", "damping": "",
    "layers": "", "top_k": "", "report": "", "config": "-c",
}  # fmt: skip


@spoken
@from_records((TraceRequest, TraceOptions, Config), visible=VISIBLE)
def trace(voice: Voice, given: dict[str, Any]) -> int:
    """Which training rows made the model say this?

    whence trace --model ./model --data train.jsonl --prompt "Who wrote Dune?" --response " Isaac Asimov."

    whence trace --model ./model --data train.jsonl --query questions.jsonl -o run/

    whence trace -c two-stages.yaml --pretrained ./base --pretrained-data books.jsonl

    The response is appended to the prompt exactly as written: mind the space between them. Every setting that has no
    flag here (fisher, fit_rows, max_length, dtype, seed ...) goes into the YAML file, or on the line all the same:
    --fit-rows all. With pretrained, the rows of the training before the last one are asked as well.
    """
    flat = read_config(given.pop("config")) if "config" in given else {}
    request = trace_request({**flat, **given})
    if not request.options.fsdp:
        require_one(os.environ, verb="whence trace", try_=ONE)
    api = importlib.import_module("whence.api")  # torch and transformers load only when there is work
    if request.options.fsdp and not is_first():
        api.trace(request)  # works along; the first process answers for all
        return 0
    scores = api.trace(request, watch=voice)
    if voice.json:
        emit_scores(voice, scores, request.options.top_k or LISTED)
    else:
        voice.out.print()
        render_text(report_data(scores), voice.out, k=min(SHOWN, request.options.top_k or SHOWN))
    _say_next(voice, request)
    return 0


def emit_scores(voice: Voice, scores: Scores, k: int) -> None:
    """The k strongest rows on both sides of every query, one record each."""
    for query_id in scores.query_ids:
        view = scores.query_rows.get(query_id)
        voice.emit(
            {"type": "query", "query_id": query_id, "text": view.text if view else "", "n_train": scores.n_train}
        )
        for side, ranked in (
            ("proponent", scores.proponents(query_id, k)),
            ("opponent", scores.opponents(query_id, k)),
        ):
            for line in ranked:
                voice.emit(_record(scores, query_id, side, line))


def _record(scores: Scores, query_id: str, side: str, line: Ranked) -> dict[str, Any]:
    view = scores.train_rows.get(line.train_id)
    lexical = None
    if scores.lexical is not None:
        q, n = scores.query_index(query_id), scores.train_ids.index(line.train_id)
        column = n if scores.columns is None else int((scores.columns[q] == n).argmax())
        lexical = float(scores.lexical[q, column])
    return {
        "type": "score",
        "query_id": query_id,
        "side": side,
        "rank": line.rank,
        "train_id": line.train_id,
        "score": line.score,
        "removal_effect": line.removal_effect,
        "lexical": lexical,
        "source": view.source if view else "",
        "location": view.location if view else "",
        "status": view.status if view else "",
        "text": view.text if view else "",
    }


def _say_next(voice: Voice, request: TraceRequest) -> None:
    voice.emit({"type": "done", "out": request.out, "report": request.report})
    voice.say("")
    if request.report or request.out:
        page = request.report or f"{request.out.rstrip('/') if request.out else ''}/report.html"
        voice.say(f"next: open {page} in a browser", "bold")
        if request.out:
            voice.say(f"      whence info {request.out}    what was computed, and how to repeat it")
    else:
        voice.say("next: add -o run/ to keep the scores, their provenance and the HTML report", "bold")
