"""Settings of a method, written after its name: ``ekfac:blocks=2``, ``cg:steps=50,tolerance=1e-3``.

The keyword parameters of the module's ``method`` function *are* the settings: their names, types and defaults are read
from its signature, so that a method declares each of them once. Tasks are set the same way (``preference:beta=0.2``).
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from whence.errors import OptionError, did_you_mean

_GIVEN = (inspect.Parameter.POSITIONAL_ONLY,)  # what the library hands over, not the user
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Setting:
    """One setting of a method: its name, its type in words and its default."""

    name: str
    kind: Any
    default: Any

    @property
    def words(self) -> str:
        """``steps (a whole number, default 100)``."""
        default = "none" if self.default is None else f"{self.default}".lower()
        return f"{self.name} ({_in_words(self.kind)}, default {default})"


def split_spec(text: str, *, what: str = "method") -> tuple[str, dict[str, str]]:
    """``name:key=value,key=value`` as the name and the settings as written.

    Raises:
        OptionError: something after the colon that is not ``key=value``.
    """
    name, _, rest = text.partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise OptionError(
                f"{what} {text!r}: {part!r} is no setting",
                wanted="name:key=value,key=value",
                try_="ekfac:blocks=2" if what == "method" else "preference:beta=0.2",
            )
        given[key.strip().replace("-", "_")] = value.strip()
    return name.strip(), given


def join_spec(name: str, settings: Mapping[str, Any]) -> str:
    """The inverse of ``split_spec``."""
    return name + (":" + ",".join(f"{k}={v}" for k, v in settings.items()) if settings else "")


def settings_of(factory: Callable[..., Any] | None) -> dict[str, Setting]:
    """The settings that a ``method`` function takes by keyword, in its order; none without such a function."""
    if factory is None:
        return {}
    hints = get_type_hints(factory)
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: Setting(p.name, hints.get(p.name, str), p.default) for p in parameters if p.kind not in _GIVEN}


def read_settings(
    name: str, factory: Callable[..., Any] | None, given: Mapping[str, Any], *, what: str = "method"
) -> dict[str, Any]:
    """Settings as the method (or task: ``what``) wants them.

    Raises:
        OptionError: a setting that this method does not have (near matches first), a value of another type, or a number
            that is not finite.
    """
    known = settings_of(factory)
    values = {}
    for key, text in given.items():
        if key not in known:
            listing = "; ".join(s.words for s in known.values()) or f"none: this {what} has no settings"
            raise OptionError(
                f"{what} {name} has no setting {key!r}",
                wanted=f"one of its settings: {listing}",
                try_=did_you_mean(key, known) if known else name,
            )
        try:
            values[key] = _value(known[key].kind, text)
        except ValueError as error:
            raise OptionError(f"{what} {name}: {key}={text}", wanted=known[key].words) from error
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            default = join_spec(name, {key: f"{known[key].default}".lower()})
            raise OptionError(
                f"{what} {name}: {key}={text}", wanted=f"a finite number: {known[key].words}", try_=default
            )
    return values


def check_counts(**given: tuple[int | None, str]) -> None:
    """Refuse counts of which there must be at least one; None = as many as there are.

    Args:
        given: name -> the count, and what is usual.

    Raises:
        OptionError: a count below 1.
    """
    for name, (count, usual) in given.items():
        if count is not None and count < 1:
            raise OptionError(f"{name}={count}", wanted="a whole number of at least 1", try_=f"{name}={usual}")


def check_tolerance(tolerance: float, *, usual: float) -> None:
    """Refuse a residual that no solve can reach.

    Raises:
        OptionError: not above 0.
    """
    if not tolerance > 0:
        raise OptionError(f"tolerance={tolerance}", wanted="a number above 0", try_=f"tolerance={usual:g}")


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _value(kind: Any, text: Any) -> Any:
    """The text as the first of the kinds that it can be; anything but text is taken as it is."""
    if not isinstance(text, str):
        return text
    for choice in _choices(kind):
        try:
            return _reading(choice)(text)
        except (ValueError, KeyError):
            continue
    raise ValueError(text)


def _reading(choice: Any) -> Callable[[str], Any]:
    if choice is type(None):
        return lambda text: {"none": None, "null": None}[text.lower()]
    if get_origin(choice) is Literal:
        return lambda text: {str(option): option for option in get_args(choice)}[text]
    if choice is bool:
        return lambda text: _WORDS[text.lower()]
    return choice if choice in (int, float) else str


def _in_words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    parts = []
    for choice in _choices(kind):
        literal = get_origin(choice) is Literal
        parts.append(" or ".join(map(str, get_args(choice))) if literal else names.get(choice, "text"))
    return " or ".join(parts)
