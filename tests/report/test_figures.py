"""Figures draw what the scores say; without matplotlib there is one clear error."""

from __future__ import annotations

import importlib
import io

import pytest

from whence.errors import OptionError
from whence.report import figures
from whence.results import TokenTrack


def drawn(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")
    return file.getvalue()


def test_figures_show_the_scores(scores):
    pytest.importorskip("matplotlib")
    figure = figures.ranking(scores, 0, 3)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    lines = scores.proponents(0, 3) + scores.opponents(0, 3)[::-1]
    assert widths == pytest.approx([line.removal_effect for line in lines])
    drawn(figure)
    drawn(figures.tail(scores))
    drawn(figures.layers(scores))
    drawn(figures.layers(scores, scores.proponents(0, 1)[0].train_id))


def test_a_tail_needs_proponents_and_a_fit_needs_twenty(make):
    pytest.importorskip("matplotlib")
    scores = make(n=12, queries=1)
    with pytest.raises(OptionError, match="no row has a positive score"):
        figures.tail(scores.with_(values=-abs(scores.values)))
    few = figures.tail(scores.with_(values=abs(scores.values)))
    (points,) = few.axes[0].lines  # 11 proponents: points, no line through them
    effects = sorted(abs(scores.values[0][abs(scores.values[0]) > 0]) / scores.n_train, reverse=True)
    shares = [effects.index(x) for x in points.get_xdata()]
    assert shares[0] == 0 and shares[-1] == 10 and len(shares) > 6
    assert list(points.get_ydata()) == pytest.approx([(n + 1) / 11 for n in shares])
    many = make(n=60, queries=1)
    fitted = figures.tail(many.with_(values=abs(many.values)))
    assert len(fitted.axes[0].lines) == 2 and fitted.axes[0].get_title().startswith("exponent ")


def test_layers_without_a_depth_are_bars(scores):
    pytest.importorskip("matplotlib")
    named = scores.with_(layer_names=("first", "second", "head.out", "head.in"))
    axes = figures.layers(named).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(named.layers(None, 0).values()))
    assert [t.get_text() for t in axes.get_yticklabels()] == ["first", "second", "head.out", "head.in"]


def test_token_bars(scores):
    pytest.importorskip("matplotlib")
    best = scores.proponents(0, 1)[0].train_id
    told = scores.with_(token_tracks={("q-0", best): (TokenTrack(((0, 8), (9, 10)), (2.0, -1.0)),)})
    figure = figures.tokens(told, best)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2.0, -1.0]
    drawn(figure)
    with pytest.raises(OptionError, match="kind"):
        figures.tokens(told, best, kind="output")


def test_hostile_labels_are_only_text(make, payloads):
    pytest.importorskip("matplotlib")
    scores = make(n=40, queries=1)
    names = (*(f"{p} $\\frac{{{i}" for i, p in enumerate(payloads[:40])),)
    drawn(figures.ranking(scores.with_(train_ids=names, train_rows={}), 0, 20))


def test_without_matplotlib_the_error_names_the_extra(scores, monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(OptionError) as caught:
        figures.ranking(scores)
    assert 'pip install "whence[plots]"' in str(caught.value)
