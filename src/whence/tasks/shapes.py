"""Row shapes: which columns mean what, whether a row fits, and what a person sees of it.

=================== =========================================== ==========================================
shape               columns                                     loss on (default)
=================== =========================================== ==========================================
input_ids           input_ids (+ labels, attention_mask)        ``labels`` when given, else every token
messages            messages or conversations (+ tools)         the assistant's turns
prompt_completion   prompt, completion (text or messages)       the completion
instruction         instruction (+ input), output or response   the output
preference          prompt, chosen, rejected (text or messages) which of the two answers is preferred
pair                input, target                               the target
image               image (+ label, text)                       the noise that is predicted (diffusion models)
tagged              tokens, tags; or text, entities             the labelled tokens
text_label          text (+ text_pair), label                   the label; every token for a language model
features            features, target                            the target
text                text                                        every token
=================== =========================================== ==========================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whence.tasks.images import shown

Problem = tuple[str, str]
"""A short stable code, and a message for people."""

SHAPES = (
    "input_ids", "preference", "messages", "prompt_completion", "instruction", "pair", "tagged", "image", "text_label",
    "features", "text",
)  # fmt: skip
LABELLED = ("text_label", "tagged")
"""Shapes of a text with labels: a language model reads the text."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def detect_shape(fields: Mapping[str, Any]) -> str:
    """The shape that the column names speak for, the most specific first; "" when there is none."""
    names = fields.keys()
    if "input_ids" in names:
        return "input_ids"
    if "chosen" in names and "rejected" in names:
        return "preference"
    if "messages" in names or "conversations" in names:
        return "messages"
    if "prompt" in names and "completion" in names:
        return "prompt_completion"
    if "instruction" in names and ("output" in names or "response" in names):
        return "instruction"
    if "input" in names and "target" in names:
        return "pair"
    if ("text" in names and "entities" in names) or (words_of(fields) is not None and _tags(fields) is not None):
        return "tagged"
    if isinstance(fields.get("image"), Mapping | list):
        return "image"
    if "text" in names:
        return "text_label" if "label" in names else "text"
    if "features" in names and "target" in names:
        return "features"
    return ""


def apply_columns(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's columns also under the names whence knows.

    The user's column comes before one that has the known name already. A record without the user's column stays as it
    is: with several sources, each may have names of its own. What follows a prompt may be called its response.
    """
    named = {**fields, **{known: fields[theirs] for known, theirs in columns.items() if theirs in fields}}
    if "prompt" in named and "response" in named and "completion" not in named:
        named["completion"] = named["response"]
    return named


def explain_columns(columns: Sequence[str], shape: str) -> str:
    """What to try when rows fit no shape, naming the columns that are there."""
    found = ", ".join(columns[:20]) or "none"
    asked, answered = (next((c for c in columns if c.lower() in names), None) for names in (_ASKED, _ANSWERED))
    if shape in ("auto", "prompt_completion") and asked and answered:
        return f"columns found: {found}. Name yours: --column prompt={asked} --column completion={answered}"
    target = "text" if shape in ("auto", "text", "text_label") else shape
    example = next((c for c in columns if c.lower() in _TEXT_LIKE), columns[0] if columns else "column")
    return f"columns found: {found}. Name yours: --column {target}={example}"


_ASKED, _ANSWERED = {"question", "query", "prompt", "input"}, {"answer", "output", "completion", "response", "target"}
_TEXT_LIKE = {"sentence", "content", "document", "body", "question", "review", "story", "passage", "en"}


def check_fields(fields: Mapping[str, Any], shape: str) -> Problem | None:
    """What keeps a record from having this shape, or None."""
    return _CHECKS[shape](fields) if shape in _CHECKS else ("unknown_shape", "no known columns")


def _text(fields: Mapping[str, Any], name: str) -> Problem | None:
    if name not in fields:
        return "missing_column", f"no column {name!r} (found: {', '.join(map(str, list(fields)[:8]))})"
    value = fields[name]
    if value is None:
        return "null_text", f"{name!r} is null where text was wanted"
    if not isinstance(value, str):
        return "wrong_type", f"{name!r} is {type(value).__name__} where text was wanted"
    return None


def _check_text(fields: Mapping[str, Any]) -> Problem | None:
    return _text(fields, "text")


def _check_prompt_completion(fields: Mapping[str, Any]) -> Problem | None:
    if isinstance(fields.get("prompt"), list):
        for name in ("prompt", "completion"):
            if problem := _messages_problem(fields.get(name), name):
                return problem
        return None
    return _text(fields, "prompt") or _text(fields, "completion")


def _check_instruction(fields: Mapping[str, Any]) -> Problem | None:
    answer = "output" if "output" in fields else "response"
    extra = _text(fields, "input") if fields.get("input") is not None else None
    return _text(fields, "instruction") or extra or _text(fields, answer)


def _check_messages(fields: Mapping[str, Any]) -> Problem | None:
    name = "messages" if "messages" in fields else "conversations"
    if name not in fields:
        return "missing_column", "no column 'messages'"
    return _messages_problem(fields[name], name)


def _messages_problem(value: Any, name: str) -> Problem | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return "wrong_type", f"{name!r} is {type(value).__name__} where a list of messages was wanted"
    if not value:
        return "no_messages", f"{name!r} is empty"
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            return "wrong_type", f"{name}[{i}] is {type(message).__name__} where an object was wanted"
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            return "missing_role", f"{name}[{i}] has no role"
        content = message.get("content", message.get("value"))
        if problem := _content_problem(content, message, f"{name}[{i}]"):
            return problem
    return None


def _content_problem(content: Any, message: Mapping[str, Any], where: str) -> Problem | None:
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return None
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        return None
    return "wrong_type", f"{where} has content of {type(content).__name__} where text was wanted"


def _check_ids(fields: Mapping[str, Any]) -> Problem | None:
    for name in ("input_ids", "labels", "attention_mask"):
        values = fields.get(name)
        if values is None and name != "input_ids":
            continue
        if not isinstance(values, Sequence) or isinstance(values, str):
            return "wrong_type", f"{name!r} is {type(values).__name__} where a list of whole numbers was wanted"
        if set(map(type, values)) - {int}:
            return "wrong_type", f"{name!r} holds something else than whole numbers"
        if len(values) != len(fields["input_ids"]):
            return "length_mismatch", f"{len(fields['input_ids'])} input_ids but {len(values)} {name}"
    return None


def _check_features(fields: Mapping[str, Any]) -> Problem | None:
    for name in ("features", "target"):
        given = fields.get(name)
        values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            return "wrong_type", f"{name!r} is not a number or a list of numbers"
        if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            return "not_finite", f"{name!r} holds NaN or infinity"
    return None


def words_of(fields: Mapping[str, Any]) -> Any:
    """The words of a tagged row, under either of their usual names; None when there are none."""
    return fields.get("tokens", fields.get("words"))


def _tags(fields: Mapping[str, Any]) -> Any:
    return next((fields[name] for name in ("tags", "ner_tags", "pos_tags") if name in fields), None)


def tags_of(fields: Mapping[str, Any]) -> list[Any]:
    """The labels of a tagged row's words."""
    return list(_tags(fields))


def _check_tagged(fields: Mapping[str, Any]) -> Problem | None:
    words, tags = words_of(fields), _tags(fields)
    if words is None:
        return _text(fields, "text") or _check_entities(fields.get("entities"), len(fields["text"]))
    for what, values in (("tokens", words), ("tags", tags)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            return "wrong_type", f"{what!r} is {type(values).__name__} where a list was wanted"
    if not all(isinstance(word, str) for word in words):
        return "wrong_type", "'tokens' holds something else than text"
    if len(words) != len(tags):
        return "length_mismatch", f"{len(words)} tokens but {len(tags)} tags"
    return None if words else ("no_loss_tokens", "the row has no words")


def _check_entities(spans: Any, length: int) -> Problem | None:
    if not isinstance(spans, Sequence) or isinstance(spans, str):
        return "wrong_type", f"'entities' is {type(spans).__name__} where a list of spans was wanted"
    for span in spans:
        start, end = (span.get("start"), span.get("end")) if isinstance(span, Mapping) else (None, None)
        if type(start) is not int or type(end) is not int:
            return "wrong_type", f"{str(span)[:60]} is no span with start, end and label"
        if not 0 <= start < end <= length or not isinstance(span.get("label"), str):
            return "bad_span", f"{str(span)[:60]} does not lie in the text's {length} characters, or has no label"
    return None


def _check_preference(fields: Mapping[str, Any]) -> Problem | None:
    for name in ("chosen", "rejected", *(("prompt",) if fields.get("prompt") is not None else ())):
        value = fields.get(name)
        problem = _messages_problem(value, name) if isinstance(value, list) else _text(fields, name)
        if problem:
            return problem
    kinds = {type(fields[name]) for name in ("chosen", "rejected")}
    return None if len(kinds) == 1 else ("wrong_type", "'chosen' and 'rejected' are one text and one list of messages")


def _check_pair(fields: Mapping[str, Any]) -> Problem | None:
    return _text(fields, "input") or _text(fields, "target")


def _check_image(fields: Mapping[str, Any]) -> Problem | None:
    given = isinstance(fields.get("image"), Mapping | list)
    return None if given else ("missing_column", "no column 'image' with an image in it")


_CHECKS: dict[str, Callable[[Mapping[str, Any]], Problem | None]] = {
    "text": _check_text,
    "text_label": _check_text,  # whether the label will do is for the task to say; a language model needs none
    "prompt_completion": _check_prompt_completion,
    "instruction": _check_instruction,
    "messages": _check_messages,
    "input_ids": _check_ids,
    "features": _check_features,
    "preference": _check_preference,
    "pair": _check_pair,
    "tagged": _check_tagged,
    "image": _check_image,
}


def messages_of(fields: Mapping[str, Any], name: str = "") -> list[dict[str, Any]]:
    """A chat as ``role``/``content`` messages, from either of the two common spellings.

    Content given as parts is joined when all parts are text. Keys other than role and content (tool calls, names) stay.
    """
    value = fields[name] if name else fields.get("messages", fields.get("conversations"))
    assert value is not None
    return [_message(m) for m in value]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    kept = {k: v for k, v in message.items() if k not in ("from", "value") and v is not None}
    return {**kept, "role": _ROLES.get(str(role), role), "content": content}


def answer_of(fields: Mapping[str, Any]) -> str:
    """The answer of an instruction row."""
    return fields["output"] if "output" in fields else fields["response"]


def sides_of(fields: Mapping[str, Any]) -> tuple[str, str]:
    """What is read and what is to be written, of a ``pair``, ``prompt_completion`` (texts) or ``instruction`` row."""
    if "target" in fields and "input" in fields:
        return fields["input"], fields["target"]
    if "instruction" in fields:
        return fields["instruction"] + (f"\n\n{fields['input']}" if fields.get("input") else ""), answer_of(fields)
    return str(fields["prompt"]), str(fields["completion"])


def said_by(fields: Mapping[str, Any], name: str) -> str:
    """A text, or the contents of a list of messages by line."""
    value = fields[name]
    if isinstance(value, str):
        return value
    return "\n".join(str(m["content"] or "") for m in messages_of(fields, name))


def fields_spans(fields: Mapping[str, Any], shape: str = "auto") -> tuple[tuple[str, str], ...]:
    """The pieces of a row that a person reads, as (kind, text); kinds are column names or roles."""
    shape = detect_shape(fields) if shape in ("auto", "mixed", "") else shape
    if shape == "messages":
        return tuple((str(m["role"]), str(m["content"] or "")) for m in messages_of(fields))
    if shape == "prompt_completion" and isinstance(fields["prompt"], list):
        parts = messages_of(fields, "prompt") + messages_of(fields, "completion")
        return tuple((str(m["role"]), str(m["content"] or "")) for m in parts)
    if shape == "prompt_completion":
        return ("prompt", fields["prompt"]), ("completion", fields["completion"])
    if shape == "instruction":
        given = (("input", fields["input"]),) if fields.get("input") else ()
        return ("instruction", fields["instruction"]), *given, ("output", answer_of(fields))
    if shape == "preference":
        names = ("prompt", "chosen", "rejected") if fields.get("prompt") is not None else ("chosen", "rejected")
        return tuple((name, said_by(fields, name)) for name in names)
    if shape == "pair":
        return ("input", fields["input"]), ("target", fields["target"])
    if shape == "tagged":
        return _tagged_spans(fields)
    if shape == "image":
        return (("image", shown(fields)),)
    if shape in ("text", "text_label"):
        pair = (("text_pair", str(fields["text_pair"])),) if fields.get("text_pair") else ()
        return ("text", fields["text"]), *pair
    if shape == "input_ids":
        return (("input_ids", str(fields.get("text") or " ".join(map(str, fields["input_ids"])))),)
    return (("row", ", ".join(f"{k}={v}" for k, v in fields.items())),)


def _tagged_spans(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    words = words_of(fields)
    if words is None:
        text = fields["text"]
        marked = [f"{text[s['start'] : s['end']]}/{s['label']}" for s in fields["entities"]]
    else:
        text, outside = " ".join(words), ("O", 0)
        marked = [f"{w}/{t}" for w, t in zip(words, tags_of(fields), strict=True) if t not in outside]
    return ("text", text), *((("tags", " ".join(marked)),) if marked else ())


def fields_text(fields: Mapping[str, Any], shape: str = "auto") -> tuple[str, tuple[tuple[str, str], ...]]:
    """What a person reads of a row: the text, and its pieces when there is more than one.

    Returns:
        The pieces joined (prompt and completion as they are, other pieces by line breaks), and the pieces as
        (kind, text), empty when the row is one piece: the ``text`` and ``spans`` of ``results.RowView``.
    """
    spans = fields_spans(fields, shape)
    glue = "" if len(spans) == 2 and spans[0][0] == "prompt" else "\n"
    return glue.join(text for _, text in spans), spans if len(spans) > 1 else ()
