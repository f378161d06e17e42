"""The training behind unrolled scores, as tables for the report: what was run, and how smooth it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whence.report.records import Table

ROUGH = "Below about 0.5 a derivative by the rows' weights foretells little."


def run_tables(ran: Mapping[str, Any]) -> tuple[Table, ...]:
    """``about["unrolled"]`` as one or two tables.

    Args:
        ran: as ``unrolled.front`` writes it.
    """
    rows = [
        ("optimiser", str(ran.get("optimiser", ""))),
        ("steps", ran.get("steps")),
        ("peak learning rate", f"{float(ran.get('peak_rate', 0.0)):g}"),
        ("parameters that move", ran.get("parameters")),
        ("seed of the order", ran.get("seed")),
        ("optimiser states in memory", ran.get("states")),
        ("cost, in trainings", ran.get("trainings")),
        ("the run repeats itself within", f"{float(ran.get('repeated_within', 0.0)):g}"),
    ]
    note = "Scores are derivatives through all of these steps: no curvature, damping or choice of layers is in them."
    return (Table("The training that was taken back", ("what", "value"), tuple(rows), note), *_smooth(ran))


def _smooth(ran: Mapping[str, Any]) -> tuple[Table, ...]:
    smooth = ran.get("smoothness")
    if not isinstance(smooth, Mapping):
        return ()
    pairs = zip(smooth.get("foretold", ()), smooth.get("measured", ()), strict=False)
    rows = tuple((f"question {n}", float(a), float(b)) for n, (a, b) in enumerate(pairs, start=1))
    said = (
        f"{smooth.get('rows')} rows weigh {float(smooth.get('width', 0.0)):g} more, and training is repeated. Signs "
        f"of successive changes of the parameters agree to {float(smooth.get('parameters', 0.0)):+.2f} of 1. {ROUGH} "
        f"Measured changes are {float(smooth.get('slope', 0.0)):.2f} times those foretold; without the "
        f"strongest row {float(smooth.get('left_slope', 0.0)):.2f} times."
    )
    return (Table("Is it smooth?", ("", "change foretold, nats", "measured, nats"), rows, said),)
