"""Flags from records: a verb's options are the fields of its pydantic records, described and named there once.

``spoken`` gives a verb its voice and the switches that every verb has; ``from_records`` turns fields into flags, the
twelve that most people need visible, the rest accepted (and in the YAML file) but not in the way.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from whence.cli.voice import Voice
from whence.errors import OptionError

Verb = Callable[..., Any]
EVERY_VERB = (
    ("json_", "--json", "Answer as NDJSON on stdout; prose stays on stderr."),
    ("quiet", "--quiet", "Say nothing but the answer and errors."),
    ("debug", "--debug", "Show tracebacks."),
)
COLUMN = "column"


def spoken(verb: Verb) -> Verb:
    """Replace the verb's first parameter by a ``Voice`` made from --json and --quiet, which it now accepts."""
    signature = inspect.signature(verb, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        _parameter(name, bool, typer.Option(flag, help=text, hidden=True), False) for name, flag, text in EVERY_VERB
    ]

    def run(**given: Any) -> Any:
        voice = Voice(json=given.pop("json_"), quiet=given.pop("quiet"))
        given.pop("debug")  # read by main, which alone decides how errors look
        try:
            return verb(voice, **given)
        finally:
            voice.close()

    return _dressed(run, verb, [*own, *shared])


def from_records(records: Sequence[type[BaseModel]], *, visible: Mapping[str, str]) -> Callable[[Verb], Verb]:
    """Give a verb ``(voice, given)`` one flag per field of the records.

    Args:
        records: whose fields become flags; a field named ``options`` is skipped (its record is listed itself).
        visible: field -> further flag such as ``-o`` ("" for none); in this order in the help. The rest is hidden.
    """
    fields = {n: f for record in records for n, f in record.model_fields.items() if n != "options"}
    names = [*visible, *(name for name in fields if name not in visible)]

    def decorate(verb: Verb) -> Verb:
        def run(voice: Voice, **given: Any) -> Any:
            wanted = {name: value for name, value in given.items() if value not in (None, [], ())}
            if COLUMN in wanted:
                wanted["columns"] = dict(pair(text) for text in wanted.pop(COLUMN))
            return verb(voice, wanted)

        flags = [_flag(name, fields[name], visible) for name in names if name in fields]
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.name == "voice"]
        return _dressed(run, verb, [*own, *flags])

    return decorate


def _flag(name: str, field: FieldInfo, visible: Mapping[str, str]) -> inspect.Parameter:
    dashed = name.replace("_", "-")
    kind, extra = _kind(field.annotation), [short for short in [visible.get(name, "")] if short]
    flags = [f"--{dashed}", *extra] if kind is not bool else [f"--{dashed}/--no-{dashed}"]
    if name == "columns":
        name, flags, kind = COLUMN, [f"--{COLUMN}"], list[str]
    info = typer.Option(
        *flags,
        help=_help(field),
        hidden=name not in visible,
        show_default=False,
        metavar=_metavar(name, kind),
        envvar=f"WHENCE_{name.upper()}" if not field.is_required() and name not in REQUEST_ONLY else None,
        show_envvar=False,
    )
    return _parameter(name, kind | None, info, None)


# Fields that say what to do rather than how; the environment must not answer for them.
REQUEST_ONLY = (
    "query", "prompt", "response", "out", "report", "config", COLUMN, "pretrained", "pretrained_data", "alpha",
    "pretrained_size",
    "against", "span", "combine", "generate",
)  # fmt: skip


def _kind(annotation: Any) -> Any:
    """The type a flag is parsed as; pydantic checks the rest."""
    if get_origin(annotation) in (Union, UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return _kind(parts[0]) if len(parts) == 1 else str
    if get_origin(annotation) is tuple:
        return list[str]
    if get_origin(annotation) is Literal:
        return str
    return annotation if annotation in (str, int, float, bool) else str


def _help(field: FieldInfo) -> str:
    shown = field.default
    plain = shown in (None, (), {}, False) or field.is_required()
    return f"{field.description}" + ("" if plain else f" [default: {shown}]")


def _metavar(name: str, kind: Any) -> str | None:
    words = {int: "N", float: "X", bool: None}
    return words.get(kind, name.upper().replace("_", "-"))


def pair(text: str) -> tuple[str, str]:
    """``text=story`` as (our name, theirs).

    Raises:
        OptionError: not of that form.
    """
    name, equals, theirs = text.partition("=")
    if not (equals and name.strip() and theirs.strip()):
        raise OptionError(f"--column {text}", wanted="our name = yours", try_="--column text=story")
    return name.strip(), theirs.strip()


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])


def _dressed(run: Verb, verb: Verb, parameters: Sequence[inspect.Parameter]) -> Verb:
    """``run`` looking like ``verb`` with these parameters; that is all Typer reads."""
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    run.__name__, run.__doc__ = verb.__name__, verb.__doc__
    run.__annotations__ = {}
    typing.cast("Any", run).__signature__ = inspect.Signature(keyword)
    return run
