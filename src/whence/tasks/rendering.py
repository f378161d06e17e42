"""A row as the text that the model was trained on, with the character ranges that carry the loss.

Masks are made of *characters* and turned into tokens by the tokenizer's own offsets, so that no text is ever tokenised
in pieces: pieces tokenise differently at their seams, and re-tokenising rendered text is how a beginning-of-sequence
token gets doubled.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from whence.errors import TaskError
from whence.tasks.base import RowProblem
from whence.tasks.shapes import answer_of, messages_of

Span = tuple[int, int]
Message = Mapping[str, Any]
T = TypeVar("T")

RENDER_SECONDS = 5.0
RENDER_CHARACTERS = 8 * 2**20
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SENTINEL = "\ue0f0whence\ue0f1"

ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Rendered:
    """Text to tokenise.

    Attributes:
        text: all of it.
        trained: character ranges whose tokens carry a loss; None = all.
        special: whether the tokenizer adds its own special tokens (a chat template writes them itself).
        written: the parts that people wrote (not the template), for spotting special tokens hidden in them.
    """

    text: str
    trained: tuple[Span, ...] | None
    special: bool = True
    written: tuple[str, ...] = ()


def render_text(fields: Mapping[str, Any]) -> Rendered:
    """Plain text: a loss on every token."""
    return Rendered(fields["text"], None, written=(fields["text"],))


def render_pair(prompt: str, completion: str) -> Rendered:
    """A prompt and what was to follow it: a loss on the completion."""
    text = prompt + completion
    return Rendered(text, ((len(prompt), len(text)),), written=(prompt, completion))


def render_instruction(fields: Mapping[str, Any]) -> Rendered:
    """An instruction row in Alpaca's words: a loss on the answer."""
    template = ALPACA_INPUT if fields.get("input") else ALPACA
    # Not str.format: braces in the user's own text must stay what they are.
    prompt = template
    for name in ("input", "instruction"):
        prompt = prompt.replace("{" + name + "}", str(fields.get(name) or ""), 1)
    return render_pair(prompt, answer_of(fields))


def instruction_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An instruction row as a chat of one question and one answer."""
    asked = fields["instruction"] + (f"\n\n{fields['input']}" if fields.get("input") else "")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer_of(fields)}]


def render_messages(tokenizer: Any, fields: Mapping[str, Any]) -> Rendered:
    """A chat through the tokenizer's template: a loss on what the assistant says.

    The turns come from the template's own ``{% generation %}`` marks when it has them, else from ``turn_spans``.

    Raises:
        TaskError: the tokenizer has no chat template.
        RowProblem: the template refuses the row, runs too long, or hides where a turn begins.
    """
    messages = messages_of(fields)
    template = _Template(tokenizer, fields.get("tools"))
    if template.marks_generation:
        text, spans = _limited(lambda: template.render_marked(messages))
        _check_size(text)
        return Rendered(text, tuple(spans), special=False, written=_contents(messages))
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    return _render_turns(template, messages, turns)


def render_dialogue(tokenizer: Any, prompt: Sequence[Message], completion: Sequence[Message]) -> Rendered:
    """A prompt and a completion given as messages: a loss on the assistant's turns of the completion."""
    messages = [*prompt, *completion]
    turns = [i for i in range(len(prompt), len(messages)) if messages[i]["role"] == "assistant"]
    return _render_turns(_Template(tokenizer, None), messages, turns)


def _render_turns(template: _Template, messages: Sequence[Message], turns: Sequence[int]) -> Rendered:
    text, spans = _limited(lambda: template.locate(messages, turns))
    return Rendered(text, spans, special=False, written=_contents(messages))


def _contents(messages: Iterable[Message]) -> tuple[str, ...]:
    return tuple(str(m["content"]) for m in messages if m["content"])


def _check_size(text: str) -> None:
    if len(text) > RENDER_CHARACTERS:
        raise RowProblem("template_too_long", f"the chat template made {len(text):,} characters of this row")


@dataclass(frozen=True)
class _Template:
    """A chat template with its tools. Rendered by transformers' sandbox only, never by an environment of ours."""

    tokenizer: Any
    tools: Any

    @property
    def source(self) -> str:
        try:
            return self.tokenizer.get_chat_template(tools=self.tools)
        except (ValueError, AttributeError) as error:
            raise TaskError(
                "the rows are chats, but the tokenizer has no chat template",
                wanted="the template that the model was trained with",
                try_="set tokenizer.chat_template, or give rows as prompt + completion",
            ) from error

    @property
    def marks_generation(self) -> bool:
        return bool(_GENERATION.search(self.source))

    def render(self, messages: Sequence[Message], prompt: str = "") -> str:
        """The chat as text; ``prompt="assistant"`` ends it where the assistant is about to speak."""
        text = self._call(messages, add_generation_prompt=bool(prompt))[0][0]
        _check_size(text)
        return text

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The chat, and the ranges between ``{% generation %}`` marks."""
        texts, spans = self._call(messages, return_assistant_tokens_mask=True)
        return texts[0], [(int(start), int(end)) for start, end in spans[0]]

    def _call(self, messages: Sequence[Message], **options: Any) -> Any:
        clean = [{k: v for k, v in m.items() if v is not None} for m in messages]
        known = dict(self.tokenizer.special_tokens_map)
        return render_jinja_template([clean], tools=self.tools, chat_template=self.source, **options, **known)

    def locate(self, messages: Sequence[Message], turns: Sequence[int]) -> tuple[str, tuple[Span, ...]]:
        """The chat, and the range of each of the given assistant turns, its end-of-turn mark included.

        Two ways, neither of which searches for the content, so that repeated or quoted content cannot mislead them:
        the chat up to the turn as a prefix of the whole; or, where the template changes earlier turns when later ones
        follow, a sentinel in the turn's place and a comparison of what stands before and after it.
        """
        text = self.render(messages)
        spans = (self._by_prefix(text, messages, i) or self._by_sentinel(text, messages, i) for i in turns)
        return text, tuple((start, _without_trailing_space(text, start, end)) for start, end in spans)

    def _by_prefix(self, text: str, messages: Sequence[Message], turn: int) -> Span | None:
        try:
            before = self.render(messages[:turn], prompt="assistant")
            plain = self.render(messages[:turn]) if turn else ""
            upto = self.render(messages[: turn + 1])
        except (jinja2.TemplateError, ValueError, IndexError):  # some templates refuse a chat that stops early
            return None
        # A template that ignores the generation prompt would leave the role's header inside the turn.
        if before == plain or not (text.startswith(before) and text.startswith(upto) and len(upto) >= len(before)):
            return None
        return len(before), len(upto)

    def _by_sentinel(self, text: str, messages: Sequence[Message], turn: int) -> Span:
        altered = [*messages[:turn], {**messages[turn], "content": _SENTINEL}, *messages[turn + 1 :]]
        other = self.render(altered)
        start, found = other.find(_SENTINEL), other.count(_SENTINEL)
        after = other[start + len(_SENTINEL) :]
        if found != 1 or not text.startswith(other[:start]) or not text.endswith(after):
            raise RowProblem("template_mask", f"cannot tell where turn {turn + 1} stands in the rendered chat")
        return start, self._end_of_turn(text, len(text) - len(after))

    def _end_of_turn(self, text: str, end: int) -> int:
        """Past the special token that closes a turn, when one follows at once: the model learns to say it."""
        marks = [t for t in self.tokenizer.all_special_tokens if text.startswith(t, end)]
        return end + max(map(len, marks), default=0)


def _without_trailing_space(text: str, start: int, end: int) -> int:
    """The line break after an end-of-turn mark belongs to the template; the last word's own spaces stay."""
    stripped = len(text[start:end].rstrip()) + start
    return stripped if text[stripped - 1 : stripped] in (">", "]", "|", "}") else end


def _limited(render: Callable[[], T]) -> T:
    """Run a rendering with a time limit; templates come from strangers and can loop without end.

    A thread, interrupted from outside: signals work in the main thread only, and a process per row is too slow.

    Raises:
        RowProblem: out of time, or the template raised.
    """
    box: list[Any] = []

    def work() -> None:
        try:
            box.append(render())
        except _OutOfTime:
            pass
        except BaseException as error:
            box.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(RENDER_SECONDS)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_OutOfTime))
        thread.join(1.0)
        raise RowProblem("template_timeout", f"the chat template took longer than {RENDER_SECONDS:g} s")
    result = box[0]
    if isinstance(result, RowProblem | TaskError):
        raise result
    if isinstance(result, BaseException):
        message = f"the chat template refuses this row: {type(result).__name__}: {str(result)[:200]}"
        raise RowProblem("template_error", message) from result
    return result


class _OutOfTime(BaseException):
    """Thrown into a rendering thread. Not an Exception, so that no template code can swallow it."""
