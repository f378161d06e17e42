"""A result on its way to people: the page, the frame in a notebook."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np

from whence.candidates.duplicates import near_duplicates
from whence.report import Extras, render_html, report_data
from whence.report.damping import damping_table
from whence.report.stages import stage_table
from whence.report.unrolled import run_tables
from whence.results import Scores

COMPARED = 4_000  # strongest rows among which near-duplicates are looked for
FRAME_HEIGHT = 720


def page(scores: Scores, extras: Extras | None = None) -> str:
    """The one-file HTML report, with near-duplicates named."""
    extras = extras or Extras()
    found = extras.groups or groups(scores)
    asked = extras.quarantine or scores.about.get("quarantine", ())
    study = scores.about.get("damping_study")
    ran = scores.about.get("unrolled")
    stages = scores.about.get("stages")
    tables = (*extras.tables, *([stage_table(scores, stages)] if stages else []))
    tables = (*tables, *([damping_table(study)] if study else []), *(run_tables(ran) if ran else ()))
    return render_html(report_data(scores, extras=replace(extras, groups=found, quarantine=asked, tables=tables)))


def groups(scores: Scores, *, most: int = COMPARED) -> dict[str, str]:
    """Near-duplicate groups among the rows that rank high for some question."""
    each = max(50, most // max(1, 2 * len(scores.query_ids)))
    chosen: dict[str, None] = {}
    for q in range(len(scores.query_ids)):
        values = scores.row(q)
        order = np.argsort(np.where(np.isfinite(values), -values, np.inf), kind="stable")
        known = int(np.isfinite(values).sum())
        for n in (*order[: min(each, known)].tolist(), *order[max(0, known - each) : known].tolist()):
            chosen[scores.train_ids[n]] = None
    picked = list(chosen)[:most]
    return near_duplicates({id_: scores.train_rows[id_].text for id_ in picked if id_ in scores.train_rows})


def frame(scores: Scores) -> str:
    """The report as an inline frame for notebooks.

    The sandbox lets its scripts run in an origin of their own: they see neither the notebook nor its cookies, and the
    page's own policy forbids every request.
    """
    inside = html.escape(page(scores), quote=True)
    return (
        f'<iframe title="whence report" sandbox="allow-scripts allow-downloads" srcdoc="{inside}" '
        f'width="100%" height="{FRAME_HEIGHT}" style="border:1px solid #8884;border-radius:8px"></iframe>'
    )
