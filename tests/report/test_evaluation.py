"""The page and the plots of an evaluation: hostile text stays text, every known point is drawn where it belongs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from whence.errors import OptionError
from whence.evaluate.outcome import Chart, Curve, Outcome
from whence.report import charts, plots
from whence.report.evaluation import chart_svg, evaluation_page, write_outcome

SVG = "{http://www.w3.org/2000/svg}"
NAN = float("nan")
LINE = Chart(
    "How it grows", "share", "found", (Curve("a", (0.0, 0.5, 1.0), (0.0, NAN, 10.0)), Curve("b", (0.5,), (5.0,)))
)
BARS = Chart("MRR", "", "mean", (Curve("m", (0, 1), (0.5, -0.25), (0.4, -0.5), (0.6, 0.0)),), "bars", groups=("x", "y"))
CLOUD = Chart("Cloud", "predicted", "observed", (Curve("c", (1.0, 10.0, 100.0), (1.0, 2.0, 3.0)),), "scatter", True)


def outcome(**changes: Any) -> Outcome:
    given: dict[str, Any] = {
        "verb": "lds",
        "title": "Does it predict?",
        "columns": ("method", "LDS", "interval"),
        "rows": (("ekfac", 0.25, "0.2 to 0.3"), ("bm25", NAN, "–")),
        "charts": (LINE, BARS, CLOUD),
        "values": {"v": np.arange(3)},
        "words": ("It does.",),
        "about": {"seed": 0},
    }
    return Outcome(**{**given, **changes})


class Page(HTMLParser):
    """Elements with their attributes, and all text outside the style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside != "style":
            self.texts.append(data)


def test_the_page_says_everything() -> None:
    page = Page(evaluation_page(outcome()))
    text = "\n".join(page.texts)
    for wanted in ("Does it predict?", "It does.", "ekfac", "0.25", "0.2 to 0.3", "How it grows", '"seed": 0'):
        assert wanted in text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    cells = [attrs.get("class") for tag, attrs in page.elements if tag == "td"]
    assert cells[:3] == [None, "num", None]


def test_the_policy_allows_the_style_and_nothing_else() -> None:
    text = evaluation_page(outcome())
    style = re.search(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    assert style is not None and text.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    metas = [attrs.get("content") for tag, attrs in Page(text).elements if tag == "meta"]
    assert policy in metas
    assert " style=" not in text  # the policy would block it


def test_hostile_texts_stay_texts(payloads: list[str]) -> None:
    plain = Page(evaluation_page(outcome()))
    allowed = {tag for tag, _ in plain.elements}
    for start in range(0, len(payloads), 20):
        some = payloads[start : start + 20]
        chart = Chart(
            some[0], some[1], some[2], tuple(Curve(p, (0, 1), (1, 2)) for p in some), "bars", groups=(some[3], some[4])
        )
        line = Chart(some[5], some[6], some[7], tuple(Curve(p, (0, 1), (1, 2)) for p in some))
        found = outcome(
            verb=some[0], title=some[1], columns=(some[2], some[3]), rows=tuple((p, p) for p in some),
            charts=(chart, line), values={p: p for p in some}, words=tuple(some), about={p: [p] for p in some},
        )  # fmt: skip
        page = Page(evaluation_page(found))
        assert {tag for tag, _ in page.elements} <= allowed
        assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "href"]
        for each in (chart, line):
            ElementTree.fromstring(chart_svg(each))  # well-formed, whatever the names hold


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg)
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]


def test_points_are_where_they_belong() -> None:
    found = circles(chart_svg(LINE))
    assert len(found) == 3  # one of four is unknown
    (x0, y0), (x1, y1), (x2, y2) = found
    assert (x0, x1) == (charts.LEFT, charts.WIDTH - charts.RIGHT)  # x runs over the whole width
    assert y0 == charts.HEIGHT - charts.BOTTOM  # y starts at 0
    assert x2 == pytest.approx((x0 + x1) / 2, abs=0.06) and y2 == pytest.approx((y0 + y1) / 2, abs=0.06)
    assert y1 < y0


def test_a_logarithmic_axis() -> None:
    (x0, _), (x1, _), (x2, _) = circles(chart_svg(CLOUD))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    shown = [t.text for t in ElementTree.fromstring(chart_svg(CLOUD)).iter(f"{SVG}text")]
    assert {"1", "10", "100", "predicted", "observed"} <= set(shown)


def test_bars_have_their_length_and_interval() -> None:
    root = ElementTree.fromstring(chart_svg(BARS))
    bars = [r.attrib for r in root.iter(f"{SVG}rect") if r.attrib.get("class") == "c0"]
    assert len(bars) == 2
    assert float(bars[0]["width"]) == pytest.approx(2 * float(bars[1]["width"]), abs=0.2)
    zero = float(next(r for r in root.iter(f"{SVG}line") if r.attrib["class"] == "axis").attrib["x1"])
    assert float(bars[0]["x"]) == pytest.approx(zero, abs=0.1)
    assert float(bars[1]["x"]) + float(bars[1]["width"]) == pytest.approx(zero, abs=0.2)
    whiskers = [r.attrib for r in root.iter(f"{SVG}line") if r.attrib["class"] == "whisker"]
    unit = float(bars[0]["width"]) / 0.5
    assert float(whiskers[0]["x2"]) - float(whiskers[0]["x1"]) == pytest.approx(0.2 * unit, abs=0.2)


def test_a_bar_with_half_an_interval_has_none_and_a_whole_one_runs_through_its_middle() -> None:
    bars = Chart("MRR", "", "mean", (Curve("m", (0, 1, 2), (0.5,) * 3, (0.4, NAN, 0.4), (NAN, 0.6, 0.6)),), "bars")
    svg = chart_svg(bars)
    drawn, (whisker,) = elements(svg, "rect", "c0"), elements(svg, "line", "whisker")
    assert float(whisker["y1"]) == float(whisker["y2"]) == float(drawn[2]["y"]) + float(drawn[2]["height"]) / 2


@pytest.mark.parametrize("values", [(), (NAN, NAN), (3.0, 3.0), (float("inf"), 1.0), (-1e-9, 1e12)])
@pytest.mark.parametrize("kind", ["line", "scatter", "bars"])
@pytest.mark.parametrize("log_x", [False, True])
def test_odd_values_are_drawn_or_left_out(values, kind, log_x) -> None:
    chart = Chart("t", "x", "y", (Curve("a", tuple(range(len(values))), values), Curve("b", (), ())), kind, log_x)
    svg = chart_svg(chart)
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg


def test_ticks_are_round_and_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 7))
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 11 and low - 1e-9 * abs(low) <= found[0] and found[-1] <= high + 1e-9 * abs(high)


def test_a_single_value_is_its_own_tick() -> None:
    assert charts.ticks(3.0, 3.0) == [3.0] and charts.ticks(4.0, 3.0) == [4.0]


def intervals(count: int, kind: str = "line") -> Chart:
    """Points at 0, 1, 2 ... of height 5, each from 4 to 7."""
    x = tuple(float(n) for n in range(count))
    return Chart("Band", "x", "y", (Curve("a", x, (5.0,) * count, (4.0,) * count, (7.0,) * count),), kind)


def elements(svg: str, name: str, kind: str) -> list[dict[str, str]]:
    found = ElementTree.fromstring(svg).iter(f"{SVG}{name}")
    return [e.attrib for e in found if e.attrib.get("class", "").startswith(kind)]


@pytest.mark.parametrize("count", [charts.MANY - 1, charts.MANY])
def test_many_intervals_are_a_band(count: int) -> None:
    """Whiskers and dots of many points would hide each other."""
    svg = chart_svg(intervals(count))
    bands, whiskers, dots = elements(svg, "polygon", "band"), elements(svg, "line", "whisker"), circles(svg)
    if count < charts.MANY:
        assert not bands and len(whiskers) == len(dots) == count
        assert {(w["y1"], w["y2"]) for w in whiskers} == {(whiskers[0]["y1"], whiskers[0]["y2"])}
        assert float(whiskers[0]["y1"]) > dots[0][1] > float(whiskers[0]["y2"])  # y runs down
        assert float(whiskers[0]["y1"]) - dots[0][1] == pytest.approx(
            (dots[0][1] - float(whiskers[0]["y2"])) / 2, abs=0.2
        )
    else:
        assert not whiskers and not dots and len(bands) == 1
        corners = [tuple(map(float, corner.split(","))) for corner in bands[0]["points"].split()]
        (line,) = elements(svg, "polyline", "line")
        x = [float(corner.split(",")[0]) for corner in line["points"].split()]
        assert [c[0] for c in corners] == x + x[::-1]  # there along the lower ends, back along the upper ones
        assert len({c[1] for c in corners[:count]}) == len({c[1] for c in corners[count:]}) == 1
        assert corners[0][1] > corners[-1][1]


def test_points_of_a_cloud_have_their_intervals() -> None:
    svg = chart_svg(intervals(3, "scatter"))
    whiskers, dots = elements(svg, "line", "whisker"), circles(svg)
    assert [float(w["x1"]) for w in whiskers] == [float(w["x2"]) for w in whiskers] == [x for x, _ in dots]
    assert all(float(w["y1"]) > y > float(w["y2"]) for w, (_, y) in zip(whiskers, dots, strict=True))
    assert elements(chart_svg(CLOUD), "line", "whisker") == []


def test_a_folder_gets_numbers_page_and_plots(tmp_path: Path) -> None:
    written = write_outcome(outcome(), tmp_path / "out")
    assert not written.missing
    names = sorted(str(file.relative_to(tmp_path / "out")) for file in written.files)
    assert names == [
        "outcome.json", "plots/1-how-it-grows.png", "plots/1-how-it-grows.svg", "plots/2-mrr.png", "plots/2-mrr.svg",
        "plots/3-cloud.png", "plots/3-cloud.svg", "report.html",
    ]  # fmt: skip
    assert all(file.is_file() for file in written.files)
    read = json.loads((tmp_path / "out/outcome.json").read_text())
    assert read["values"]["v"] == [0, 1, 2] and read["charts"][0]["curves"][0]["y"] == [0, None, 10]
    assert evaluation_page(read) == (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/plots/2-mrr.png").read_bytes().startswith(b"\x89PNG")


def test_files_of_drawings_have_names_that_any_disk_takes(tmp_path: Path) -> None:
    titles = ("../../A: b/c?", "?!", "x" * 99)
    given = outcome(charts=tuple(Chart(title, "x", "y", LINE.curves) for title in titles))
    written = write_outcome(given, tmp_path)
    names = [p.name for p in written.files if p.suffix == ".svg"]
    assert names == ["1-a-b-c.svg", "2-chart.svg", f"3-{'x' * 48}.svg"]
    assert {p.parent for p in written.files} == {tmp_path, tmp_path / "plots"}


def test_without_matplotlib_the_drawings_are_svg_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    written = write_outcome(outcome(), tmp_path)
    assert "matplotlib" in written.missing and "whence[plots]" in written.missing
    assert sorted(p.suffix for p in (tmp_path / "plots").iterdir()) == [".svg"] * 3
    with pytest.raises(OptionError):
        plots.chart_png({})


def test_figures_hold_the_same_points() -> None:
    figure = plots.chart_figure(json.loads(json.dumps(outcome().to_dict()["charts"][1], default=list)))
    axes = figure.axes[0]
    assert [round(bar.get_width(), 3) for bar in axes.patches] == [0.5, -0.25]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x", "y"]


def test_figures_have_bands_and_names_as_the_drawings_do() -> None:
    axes = plots.chart_figure(json.loads(json.dumps(intervals(3).__dict__, default=vars))).axes[0]
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert {tuple(c) for c in corners[:, :2]} >= {(x, y) for x in (0.0, 1.0, 2.0) for y in (4.0, 7.0)}
    assert list(axes.lines[0].get_ydata()) == [5.0] * 3 and axes.get_legend() is None
    bars = {**BARS.__dict__, "groups": (), "curves": [{**vars(c)} for c in BARS.curves]}
    nameless = plots.chart_figure(bars).axes[0]
    assert "x" not in [t.get_text() for t in nameless.get_yticklabels()]
    assert [round(bar.get_width(), 3) for bar in nameless.patches] == [0.5, -0.25]


def test_figures_are_laid_out_as_the_drawings_are() -> None:
    two = Chart("MRR " + "x" * 200, "across", "up", (Curve("m", (0, 1), (0.5, 0.25), (0.4, 0.1), (0.6, 0.5)),
                Curve("n" * 60, (0, 1), (0.1, 0.2), (0.0, 0.1), (0.2, 0.3))), "bars", groups=("x", "y"))  # fmt: skip
    axes = plots.chart_figure(json.loads(json.dumps(two.__dict__, default=vars))).axes[0]
    places = [(bar.get_y() + bar.get_height() / 2, bar.get_height()) for bar in axes.patches]
    assert [p for p, _ in places] == pytest.approx([-0.2, 0.8, 0.2, 1.2])  # side by side around their group
    assert {round(h, 6) for _, h in places} == {0.4}
    whiskers = [
        (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if len(set(line.get_ydata())) == 1
    ]
    assert [x for x, _ in whiskers] == [[0.4, 0.6], [0.1, 0.5], [0.0, 0.2], [0.1, 0.3]]
    assert [y[0] for _, y in whiskers] == pytest.approx([-0.2, 0.8, 0.2, 1.2])
    assert axes.get_xlabel() == "up" and axes.yaxis_inverted()  # values run to the right, groups downwards
    assert len(axes.get_title()) == 110 and axes.get_title().endswith("x…")
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["m", "n" * 43 + "…"]
    cloud = plots.chart_figure(json.loads(json.dumps(CLOUD.__dict__, default=vars))).axes[0]
    assert (cloud.get_xlabel(), cloud.get_ylabel(), cloud.get_xscale()) == ("predicted", "observed", "log")
    assert list(cloud.lines[0].get_xdata()) == [1.0, 10.0, 100.0] and cloud.lines[0].get_marker() == "."


def test_a_page_does_not_carry_a_million_numbers() -> None:
    text = evaluation_page(outcome(values={"v": np.arange(300_000)}))
    assert len(text) < 200_000 and "They are in outcome.json" in text


@pytest.mark.browser
def test_in_a_browser_nothing_happens_but_the_page(chromium, payloads: list[str], tmp_path: Path) -> None:
    names = tuple(Curve(p, (0, 1), (1, 2)) for p in payloads[:30])
    chart = Chart(payloads[40], payloads[41], payloads[42], names)
    found = outcome(words=tuple(payloads), title=payloads[43], charts=(LINE, BARS, chart), about={"a": payloads})
    path = tmp_path / "report.html"
    path.write_text(evaluation_page(found), encoding="utf-8")
    context = chromium.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    noticed: list[str] = []
    page.on("dialog", lambda d: (noticed.append(d.message), d.dismiss()))
    page.on("request", lambda r: noticed.append(r.url) if r.url != path.as_uri() else None)
    page.on("console", lambda m: noticed.append(m.text))
    page.goto(path.as_uri())
    boxes = [svg.bounding_box() for svg in page.query_selector_all("svg")]
    line = page.eval_on_selector("polyline.line", "e => getComputedStyle(e).strokeWidth")
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth, typeof window.pwned]")
    context.close()
    assert noticed == [] and wide[2] == "undefined" and wide[0] <= wide[1]
    assert len(boxes) == 3 and all(box["height"] > 50 for box in boxes)
    assert line == "2px"  # the style was let in by its hash
