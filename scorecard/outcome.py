"""What a line of the score-card holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "partly", "not run"]


@dataclass(frozen=True)
class Outcome:
    """One property, counted.

    Attributes:
        status: ``pass`` only when everything that the target names was run and held; ``partly`` when what was run held
            and some of the target was not run; ``not run`` is never a pass.
        measured: in words, with the counts.
        cases, failed: how many.
        missing: what of the target was not run, and why.
        facts: further numbers.
    """

    status: Status
    measured: str
    cases: int = 0
    failed: int = 0
    missing: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def counted(
    measured: str, cases: int, failed: int, *, missing: str = "", facts: dict[str, Any] | None = None
) -> Outcome:
    """The outcome that counts speak for."""
    status: Status = "fail" if failed else "not run" if cases == 0 else "partly" if missing else "pass"
    return Outcome(status, measured, cases, failed, missing, facts or {})


def not_run(why: str) -> Outcome:
    """Honestly nothing."""
    return Outcome("not run", "", missing=why)
