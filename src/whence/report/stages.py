"""Which stage of training answers for a question: both in the same nats, as a table for the report."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whence.report.records import Table
from whence.results import Scores

NOTE = (
    "Sums of removal effects in nats: what the question's loss is predicted to rise by without these rows, to first "
    "order. Rows of pre-training passed the curvature of both stages; their size depends on alpha."
)
MOST = 50  # questions listed


def stage_table(scores: Scores, stages: Mapping[str, int]) -> Table:
    """One line per question and stage.

    Args:
        scores: of all stages side by side; a row's source begins with the name of its stage.
        stages: name -> number of rows.
    """
    names = {id_: view.source.partition(":")[0] for id_, view in scores.train_rows.items()}
    of_row = np.array([names.get(id_, "") for id_ in scores.train_ids])
    lines = []
    for q in range(min(len(scores.query_ids), MOST)):
        effects = np.nan_to_num(scores.removal_effect(q))
        for stage, count in stages.items():
            inside = of_row == stage
            own = np.where(inside, effects, 0.0)
            best = int(own.argmax()) if own.max(initial=0.0) > 0 else -1
            strongest = scores.train_ids[best] if best >= 0 else "none"
            up, down = float(own[own > 0].sum()), float(own[own < 0].sum())
            lines.append(
                (scores.query_ids[q], stage, count, up, down, strongest, float(own[best]) if best >= 0 else None)
            )
    columns = ("question", "stage", "rows", "for, nats", "against, nats", "strongest row", "its effect, nats")
    return Table("Which stage of training", columns, tuple(lines), NOTE)
