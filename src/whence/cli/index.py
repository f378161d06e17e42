"""``whence index`` and ``whence ask``: gradients on disk once, answers from there."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from whence.cli.flags import pair, spoken
from whence.cli.trace import LISTED, SHOWN, emit_scores
from whence.cli.voice import Voice
from whence.errors import OptionError
from whence.launch import require_one
from whence.options import TraceRequest, describe, trace_options
from whence.report import render_text, report_data
from whence.watch import is_first

BUDGET = "KB (1,000 bytes) kept of each row, at most."
SCHEME = "sparse, low_rank, int8, fp16, or auto: all numbers where they fit, else each row's strongest."
SHARD = "Which of several processes this is, such as 3/16 (from 0); they share the work through the folder."
TUNED = "A model fine-tuned from the indexed one: the question is to this model, and its rows answer as well."
TUNED_DATA = "Rows it was fine-tuned on, as --data."
CACHE = "faiss: score only rows that a cache beside the index takes for near (made at the first question); faiss:5%."
OUT = "Folder of the index; the same command goes on where it stopped."


@spoken
def index(
    voice: Voice,
    model: Annotated[str, typer.Option(help=describe("model"), show_default=False)],
    data: Annotated[list[str], typer.Option(help=describe("data"), show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help=OUT, show_default=False)],
    budget: Annotated[float, typer.Option(help=BUDGET)] = 10.0,
    scheme: Annotated[str, typer.Option(help=SCHEME)] = "auto",
    method: Annotated[str, typer.Option(help=describe("method"))] = "ekfac",
    damping: Annotated[str, typer.Option(help=describe("damping"))] = "relative:0.1",
    layers: Annotated[list[str] | None, typer.Option(help=describe("layers"), show_default=False)] = None,
    fit_rows: Annotated[str, typer.Option(help=describe("fit_rows"))] = "auto",
    max_length: Annotated[int | None, typer.Option(help=describe("max_length"), show_default=False)] = None,
    dtype: Annotated[str, typer.Option(help=describe("dtype"))] = "auto",
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), show_default=False)] = None,
    max_bad_rows: Annotated[float, typer.Option(help=describe("max_bad_rows"), hidden=True)] = 0.01,
    batch_tokens: Annotated[int, typer.Option(help=describe("batch_tokens"), hidden=True)] = 4096,
    device: Annotated[str, typer.Option(help=describe("device"), hidden=True)] = "auto",
    seed: Annotated[int, typer.Option(help=describe("seed"), hidden=True)] = 0,
    shard_mb: Annotated[float, typer.Option(help="MB (1,000,000 bytes) of a file of rows.", hidden=True)] = 32.0,
    shard: Annotated[str | None, typer.Option(help=SHARD, show_default=False, hidden=True)] = None,
    fsdp: Annotated[bool, typer.Option(help=describe("fsdp"), hidden=True)] = False,
) -> int:
    """Keep every training row's whitened gradient in few bytes, so that any later question takes moments.

    whence index --model ./model --data train.jsonl -o index/

    whence ask --index index/ --prompt "Who wrote Dune?" --response " Isaac Asimov."

    Costs what one trace costs: the fit and one more pass over the rows. Many processes share the work under torchrun,
    accelerate launch or srun (`torchrun --nproc-per-node 4 -m whence index ...`), or in an array with `--shard 3/16`.
    With `--fsdp` the processes of torchrun hold one model together, for models beyond one GPU.
    """
    rows = int(fit_rows) if fit_rows.isdigit() else fit_rows
    options = trace_options(
        method=method, damping=damping, layers=tuple(layers or ()), fit_rows=rows, max_length=max_length, dtype=dtype,
        columns=_columns(column), max_bad_rows=max_bad_rows, batch_tokens=batch_tokens, device=device, seed=seed,
        fsdp=fsdp,
    )  # fmt: skip
    indexing = importlib.import_module("whence.indexing")  # torch and transformers load only when there is work
    compression = indexing.Compression(budget, scheme, int(shard_mb * 1_000_000))
    _quiet_unless_first(voice, shard)
    body = indexing.build_index(
        model, train=data, out=out, compression=compression, options=options, watch=voice, shard=shard
    )
    if fsdp and not is_first():
        return 0  # worked along; the first process answers for all
    told = {name: body[name] for name in ("rows", "n_train", "bytes_per_row", "shards", "code")}
    voice.emit({"type": "done", "out": out, **told})
    voice.say(f'\nnext: whence ask --index {out} --prompt "..." --response " ..."', "bold")
    return 0


@spoken
def ask(
    voice: Voice,
    index: Annotated[str, typer.Option(help="Folder of a finished index.", show_default=False)],
    prompt: Annotated[str | None, typer.Option(help=describe("prompt"), show_default=False)] = None,
    response: Annotated[str | None, typer.Option(help=describe("response"), show_default=False)] = None,
    query: Annotated[list[str] | None, typer.Option(help=describe("query"), show_default=False)] = None,
    against: Annotated[str | None, typer.Option(help=describe("against"), show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="The indexed model, if it is elsewhere now.", show_default=False)
    ] = None,
    tuned: Annotated[str | None, typer.Option(help=TUNED, show_default=False)] = None,
    tuned_data: Annotated[list[str] | None, typer.Option(help=TUNED_DATA, show_default=False)] = None,
    top_k: Annotated[int | None, typer.Option(help=describe("top_k"), show_default=False)] = None,
    normalise: Annotated[str | None, typer.Option(help=describe("normalise"), show_default=False)] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help=describe("out"), show_default=False)] = None,
    report: Annotated[str | None, typer.Option(help=describe("report"), show_default=False)] = None,
    generate: Annotated[int, typer.Option(help=describe("generate"), hidden=True)] = 0,
    span: Annotated[str | None, typer.Option(help=describe("span"), hidden=True)] = None,
    combine: Annotated[str | None, typer.Option(help=describe("combine"), hidden=True)] = None,
    column: Annotated[list[str] | None, typer.Option(help=describe("columns"), hidden=True)] = None,
    device: Annotated[str | None, typer.Option(help=describe("device"), hidden=True)] = None,
    alpha: Annotated[str, typer.Option(help=describe("alpha"), hidden=True)] = "auto",
    cache: Annotated[str | None, typer.Option(help=CACHE, hidden=True)] = None,
    audit: Annotated[str | None, typer.Option(help=describe("audit"), hidden=True)] = None,
    fsdp: Annotated[bool, typer.Option(help=describe("fsdp"), hidden=True)] = False,
) -> int:
    """Which rows of an index made the model say this? The training rows themselves are not read.

    whence ask --index index/ --prompt "Who wrote Dune?" --response " Isaac Asimov."

    whence ask --index index/ --query questions.jsonl --top-k 100 -o run/

    whence ask --index base-index/ --tuned ./tuned --tuned-data tune.jsonl --query questions.jsonl

    The model is loaded for the question's gradient; it must be the one that was indexed, which is told by its content.
    With --tuned the question is to a model that was fine-tuned from it: rows of both stages answer, in the same nats.
    With --fsdp under torchrun the processes hold one model together, for models beyond one GPU.
    """
    if not fsdp:
        require_one(os.environ, verb="whence ask", try_="one process (srun -n 1); or --fsdp, to share a large model")
    questions = _questions(query, prompt, response, against, generate)
    asking = importlib.import_module("whence.asking")
    scores = asking.ask(
        index, questions, model=model, out=out, report=report, watch=voice, top_k=top_k,
        normalise=normalise, span=span, combine="contrast" if against is not None else combine,
        generate=generate or None, columns=_columns(column) or None, device=device,
        tuned=_tuned(tuned, tuned_data, alpha), cache=cache,
        audit=int(audit) if audit is not None and audit.isdigit() else audit, fsdp=fsdp or None,
    )  # fmt: skip
    if fsdp and not is_first():
        return 0  # worked along; the first process answers for all
    if voice.json:
        emit_scores(voice, scores, top_k or LISTED)
    else:
        voice.out.print()
        render_text(report_data(scores), voice.out, k=min(SHOWN, top_k or SHOWN))
    voice.emit({"type": "done", "out": out, "report": report})
    page = report or (f"{out.rstrip('/')}/report.html" if out else "")
    then = f"open {page} in a browser" if page else "add -o run/ to keep the scores and the HTML report"
    voice.say(f"\nnext: {then}", "bold")
    return 0


def _tuned(model: str | None, data: list[str] | None, alpha: str) -> dict[str, Any] | None:
    if (model is None) != (not data):
        raise OptionError(
            "--tuned without --tuned-data" if model else "--tuned-data without --tuned",
            wanted="both: the fine-tuned model and the rows it was tuned on",
        )
    return None if model is None else {"model": model, "data": data, "alpha": alpha}


def _questions(
    query: Iterable[str] | None, prompt: str | None, response: str | None, against: str | None, generate: int
) -> Any:
    """As ``trace`` reads its question, which also says what is missing."""
    if generate < 0:
        raise OptionError(f"generate = {generate}", wanted="0 or more tokens", try_="--generate 40")
    asked = {"query": tuple(query or ()), "prompt": prompt, "response": response, "against": against}
    request = TraceRequest(model="", data=("",), options=trace_options(generate=generate), **asked)
    return importlib.import_module("whence.api").asked_of(request)


def _quiet_unless_first(voice: Voice, shard: str | None) -> None:
    """Of several processes the first one speaks; errors come from everybody."""
    member = importlib.import_module("whence.store.crew").member_of(shard, os.environ)
    voice.quiet = voice.quiet or (member is not None and member.kind == "rank" and member.number > 0)


def _columns(given: Iterable[str] | None) -> dict[str, str]:
    return dict(pair(text) for text in given or ())
