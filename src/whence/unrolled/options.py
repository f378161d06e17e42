"""Settings of an unrolled attribution, apart from model, data, question and recipe. No torch here: help starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from whence.errors import OptionError

ROOT = 1e-10  # inside Adam's square root; its own epsilon squared, 1e-16, is too rough (docs/studies/unrolled.md)


class UnrollOptions(BaseModel):
    """How the run is repeated and taken back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, description="Seed of the order of the rows.")
    root: float = Field(
        default=ROOT, ge=0, description="Added inside Adam's square root, so that it is smooth; 0 = as torch has it."
    )
    states: int | None = Field(
        default=None,
        ge=1,
        description="Most optimiser states in memory (default: about twice the root of the number of steps).",
    )
    smoothness: float = Field(
        default=0.1,
        ge=0,
        description="Weight change of the metasmoothness check, three more trainings; 0 = no check.",
    )
    tokens: int = Field(default=8192, ge=1, description="Most tokens of a step in one forward pass. Memory only.")


def unroll_options(given: UnrollOptions | Mapping[str, Any] | None = None) -> UnrollOptions:
    """Options from a record or a mapping.

    Raises:
        OptionError: a setting that does not exist or cannot have this value.
    """
    if isinstance(given, UnrollOptions):
        return given
    try:
        return UnrollOptions.model_validate(dict(given or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        known = UnrollOptions.model_fields
        wanted = known[name].description or "" if name in known else "one of " + ", ".join(known)
        raise OptionError(f"{name} = {first['input']!r}: {first['msg']}", wanted=wanted) from error
