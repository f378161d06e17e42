"""The page of the documentation, from the JSON of the last run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from scorecard.families import FAMILIES

HEAD = """# Score-card

What whence promises about reliability, counted by `make scorecard`. This page is written by that command from
`scorecard/reliability.json`; no number on it is typed by hand. *partly* means: what was run held, and some of the
target was not run. *not run* is never a pass.
"""


def summary(lines: Sequence[Mapping[str, Any]]) -> str:
    """How many of which status."""
    counts = Counter(line["status"] for line in lines)
    return ", ".join(f"{counts[status]} {status}" for status in ("pass", "partly", "fail", "not run"))


def text(body: Mapping[str, Any]) -> str:
    """The whole page."""
    machine = body["machine"]
    versions = machine["versions"]
    made = (
        f"Counted on {machine['cpu']} ({machine['cpus']} cores, one thread), torch {versions['torch']}, Python "
        f"{machine['python']}. **{summary(body['lines'])}.**"
    )
    table = _table(
        ("", "promise", "target", "", "counted", "not run", "when, at which commit"),
        [
            (
                line["id"],
                line["promise"],
                line["target"],
                line["status"],
                line["measured"],
                line["missing"],
                _when(line),
            )
            for line in body["lines"]
        ],
    )
    families = _table(("", "fault", "tests"), [_family(name) for name in FAMILIES])
    return "\n\n".join([HEAD.strip(), made, table, "## Fault families (R1)", families]) + "\n"


def _when(line: Mapping[str, Any]) -> str:
    nightly = ", nightly counts" if line["mode"] == "full" else ""
    return f"{line['when']}, {line['commit']}{nightly}" if line["when"] else ""


def _family(name: str) -> tuple[str, str, str]:
    tests = [test.partition("::")[2] for test in FAMILIES[name].tests]
    return name, FAMILIES[name].fault, ", ".join(f"`{test}`" for test in tests) or "none yet"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    return "\n".join(lines)
