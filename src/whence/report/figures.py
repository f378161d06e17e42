"""Figures for notebooks and papers, drawn with matplotlib (the ``plots`` extra). Every function returns a ``Figure``.

::

    from whence.report import figures

    figures.ranking(scores).savefig("top.pdf")
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from whence.errors import OptionError
from whence.report import statistics
from whence.report.characters import calm, visible
from whence.report.data import arrange_layers
from whence.results import Scores

UP, DOWN, INK = "#3d87c9", "#dd7a33", "#1b1f24"


def ranking(scores: Scores, query: int | str = 0, k: int = 10) -> Any:
    """The k strongest rows on both sides: bars of the predicted effect of removing them, in nats.

    Raises:
        OptionError: matplotlib is not installed, or no such query.
    """
    lines = scores.proponents(query, k) + scores.opponents(query, k)[::-1]
    figure, axes = _canvas(width=7, height=0.8 + 0.28 * max(1, len(lines)))
    effects = [line.removal_effect for line in lines]
    axes.barh(range(len(lines)), effects, color=[UP if e > 0 else DOWN for e in effects])
    axes.set_yticks(range(len(lines)), [_plain(line.train_id) for line in lines], parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("predicted rise of the loss without the row, nats (positive = proponent)")
    return figure


def tail(scores: Scores, query: int | str = 0) -> Any:
    """Share of proponents at or above an effect, on log-log axes, with the fitted power law.

    Raises:
        OptionError: matplotlib is not installed, no such query, or no proponent.
    """
    effects = scores.removal_effect(query)
    spread = statistics.describe(effects[np.isfinite(effects)])
    if spread is None or not spread.survival:
        raise OptionError("no row has a positive score", wanted="at least one proponent")
    figure, axes = _canvas(width=5, height=3.6)
    x, share = np.array(spread.survival).T
    axes.loglog(x, share, ".", color=UP, markersize=4)
    if spread.tail is not None:
        fit, count = spread.tail, len(effects[effects > 0])
        axis = np.geomspace(fit.minimum, x.max(), 40)
        axes.plot(axis, fit.count / count * (axis / fit.minimum) ** (1 - fit.exponent), "--", color=DOWN)
        axes.set_title(f"exponent {fit.exponent:.2f}, KS p = {fit.p_value:.2f}", fontsize=10)
    axes.set_xlabel("effect, nats")
    axes.set_ylabel("share of proponents")
    return figure


def layers(scores: Scores, train_id: str | None = None, query: int | str = 0) -> Any:
    """Score by depth and kind of layer, of one row or of all proponents.

    Raises:
        OptionError: matplotlib is not installed, or layers were not kept.
    """
    found = scores.layers(train_id, query)
    grid = arrange_layers(tuple(found))
    values = np.array([*found.values()])
    figure, axes = _canvas(width=6, height=4)
    if grid is None:
        axes.barh(range(len(values)), values, color=[UP if v > 0 else DOWN for v in values])
        axes.set_yticks(range(len(values)), [_plain(name) for name in found], parse_math=False)
        axes.invert_yaxis()
        return figure
    cells = np.array([[values[at] if at >= 0 else np.nan for at in line] for line in grid.cells])
    image = axes.imshow(cells, cmap="PuOr_r", vmin=-np.nanmax(abs(cells)), vmax=np.nanmax(abs(cells)), aspect="auto")
    axes.set_xticks(range(len(grid.kinds)), [_plain(kind) for kind in grid.kinds], rotation=40, ha="right")
    axes.set_yticks(range(len(grid.depths)), list(grid.depths))
    axes.set_ylabel("depth")
    figure.colorbar(image, label="score")
    return figure


def tokens(scores: Scores, train_id: str, query: int | str = 0, kind: str = "position") -> Any:
    """Token scores of one row as bars over its tokens, in reading order.

    Raises:
        OptionError: matplotlib is not installed, no token scores of this row, or none of this kind.
    """
    tracks = {track.kind: track for track in scores.tokens(train_id, query)}
    if kind not in tracks:
        raise OptionError(f"no token scores of kind {kind!r}", wanted=f"one of {', '.join(tracks)}")
    track, view = tracks[kind], scores.train_rows.get(train_id)
    text = view.text if view else ""
    figure, axes = _canvas(width=max(5, 0.22 * len(track.spans)), height=2.6)
    axes.bar(range(len(track.spans)), track.scores, color=[UP if s > 0 else DOWN for s in track.scores])
    axes.axhline(0, color=INK, linewidth=0.8)
    names = [_plain(text[start:end].strip()) for start, end in track.spans]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axes.set_ylabel("score")
    return figure


def _canvas(*, width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own, outside pyplot's list of open figures."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise OptionError(
            "matplotlib is not installed", wanted="the plots extra", try_='pip install "whence[plots]"'
        ) from error
    figure = module.Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain(text: str) -> str:
    """Data as a label: one line, nothing invisible, not too long; matplotlib's own markup is switched off."""
    shown = visible(calm(text), one_line=True)
    return (shown if len(shown) <= 40 else shown[:39] + "…").replace("$", r"\$")
