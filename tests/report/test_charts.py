"""Drawings: keys, axes, colours and the room they take."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from whence.report import charts

SVG = "{http://www.w3.org/2000/svg}"


def curve(name: str, y: tuple[float, ...] = (1.0, 2.0), **more: Any) -> dict[str, Any]:
    return {"name": name, "x": list(range(len(y))), "y": list(y), "low": [], "high": [], **more}


def chart(*curves: dict[str, Any], **changes: Any) -> dict[str, Any]:
    given = {"title": "T", "x_axis": "across", "y_axis": "up", "kind": "line", "log_x": False, "groups": []}
    return {**given, "curves": list(curves), **changes}


def drawn(given: dict[str, Any], **how: Any) -> ElementTree.Element:
    return ElementTree.fromstring(charts.chart_svg(given, **how))


def of(svg: ElementTree.Element, name: str, kind: str = "") -> list[dict[str, str]]:
    return [e.attrib for e in svg.iter(f"{SVG}{name}") if e.attrib.get("class", "").startswith(kind)]


def texts(svg: ElementTree.Element) -> list[str]:
    return [t.text or "" for t in svg.iter(f"{SVG}text")]


def test_a_drawing_of_its_own_brings_its_style_and_one_in_a_page_does_not() -> None:
    alone, inside = drawn(chart(curve("a"))), drawn(chart(curve("a")), alone=False)
    assert len(list(alone.iter(f"{SVG}style"))) == 1 and not list(inside.iter(f"{SVG}style"))
    assert [r["fill"] for r in of(alone, "rect") if "fill" in r] == ["#fff"]
    assert alone.attrib["aria-label"] == "T" and alone.attrib["role"] == "img"


@pytest.mark.parametrize(("kind", "count", "keys"), [("line", 1, 1), ("line", 2, 2), ("bars", 1, 0), ("bars", 2, 2)])
def test_keys_name_the_curves(kind: str, count: int, keys: int) -> None:
    """Bars of one kind are named by the title."""
    svg = drawn(chart(*(curve(f"curve {n}") for n in range(count)), kind=kind), alone=False)
    boxes = [r for r in of(svg, "rect", "c") if r["width"] == "10"]
    assert [b["class"] for b in boxes] == [f"c{n}" for n in range(keys)]
    assert [t for t in texts(svg) if t.startswith("curve")] == [f"curve {n}" for n in range(keys)]
    height = charts.HEIGHT if kind == "line" else charts.TOP + 2 * (count * charts.BAR + charts.GAP) + 48
    room = 18 + 6 if keys else 0
    assert svg.attrib["viewBox"] == f"0 0 {charts.WIDTH} {height + room}"


def test_keys_that_find_no_room_begin_a_new_line() -> None:
    svg = drawn(chart(*(curve(f"a curve with a long name {n}") for n in range(7))), alone=False)
    boxes = [(float(r["x"]), float(r["y"])) for r in of(svg, "rect", "c")]
    lines = sorted({y for _, y in boxes})
    assert len(lines) == 3 and lines[1] - lines[0] == lines[2] - lines[1] == 18
    assert [min(x for x, y in boxes if y == line) for line in lines] == [charts.LEFT] * 3
    wide = 26 + charts.LETTER * len("a curve with a long name 0")
    assert all(x + wide <= charts.WIDTH - charts.RIGHT for x, _ in boxes)
    assert svg.attrib["viewBox"].endswith(f" {charts.HEIGHT + 3 * 18 + 6}")


def test_colours_come_again_dashed() -> None:
    svg = drawn(chart(*(curve(str(n)) for n in range(12))))
    kinds = [line["class"] for line in of(svg, "polyline", "line")]
    assert kinds == [f"line c{n}" for n in range(10)] + ["line c0 dashed", "line c1 dashed"]


def test_long_and_hidden_names_are_shortened_and_shown() -> None:
    assert charts.label("x" * 44) == "x" * 44 and charts.label("x" * 45) == "x" * 43 + "…"
    assert charts.label("a\x1b\n<b>&", 20) == "a␛ ↵ &lt;b&gt;&amp;"
    assert charts.label(5) == "5" and charts.label("e" + "\u0301" * 9) == "e" + "\u0301" * 4


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 4.0, [-2, 0, 2, 4]),
        (0.013, 0.02, [0.014, 0.016, 0.018, 0.02]),
        (0.0, 2600.0, [0, 500, 1000, 1500, 2000, 2500]),
    ],
)
def test_ticks_of_known_ranges(low: float, high: float, found: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(found)


def test_axes_have_their_names_and_values_at_their_places() -> None:
    svg = drawn(chart(curve("a", (0.0, 10.0))), alone=False)
    grid = of(svg, "line", "grid")
    assert {(line["x1"], line["x2"]) for line in grid} == {(str(charts.LEFT), str(charts.WIDTH - charts.RIGHT))}
    shown = {t.text: t.attrib for t in svg.iter(f"{SVG}text")}
    assert {"across", "up", "0", "2", "10"} <= set(shown)
    foot = charts.HEIGHT - charts.BOTTOM
    assert float(shown["2"]["y"]) == pytest.approx(foot - (foot - charts.TOP) * 2 / 10.4 + 4, abs=0.06)
    assert shown["up"]["transform"].startswith("rotate(-90 ") and "transform" not in shown["across"]
    assert float(shown["across"]["x"]) == (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2


def test_a_range_away_from_zero_has_room_on_both_sides() -> None:
    svg = drawn(chart(curve("a", (100.0, 101.0))), alone=False)
    ((_, low), (_, high)) = (
        map(float, p.split(",")) for p in of(svg, "polyline", "line")[0]["points"].split()
    )  # fmt: skip
    foot, room = charts.HEIGHT - charts.BOTTOM, (charts.HEIGHT - charts.BOTTOM - charts.TOP) * 0.04 / 1.08
    assert low == pytest.approx(foot - room, abs=0.06) and high == pytest.approx(charts.TOP + room, abs=0.06)


@pytest.mark.parametrize(
    ("x", "shown"), [((1.0, 100.0), {"1", "10", "100"}), ((2.0, 5.0), {"2", "5"}), ((3.0,), {"3", "30"})]
)
def test_powers_of_a_logarithmic_axis(x: tuple[float, ...], shown: set[str]) -> None:
    """Without two powers inside, the ends are named."""
    given = curve("a", tuple(1.0 for _ in x)) | {"x": list(x)}
    svg = drawn(chart(given, log_x=True, kind="scatter"), alone=False)
    below = {t.text for t in svg.iter(f"{SVG}text") if t.attrib["y"] == str(charts.HEIGHT - charts.BOTTOM + 18)}
    assert shown <= below


def test_points_at_or_below_nothing_have_no_place_on_a_logarithmic_axis() -> None:
    given = curve("a", (1.0, 2.0, 3.0, 4.0)) | {"x": [-1.0, 0.0, 1.0, 10.0]}
    assert len(of(drawn(chart(given, log_x=True)), "circle")) == 2
    assert len(of(drawn(chart(given)), "circle")) == 4


def test_one_curve_of_a_drawing_may_be_drawn_otherwise() -> None:
    svg = drawn(chart(curve("a"), curve("b", drawn="scatter")))
    assert len(of(svg, "polyline", "line")) == 1 and len(of(svg, "circle", "dot cloud c1")) == 2


def test_groups_of_bars_stand_below_each_other_with_their_names() -> None:
    given = chart(curve("a", (0.5, 1.0)), curve("b", (0.25,)), kind="bars", groups=["first", "second"])
    svg = drawn(given, alone=False)
    bars = [r for r in of(svg, "rect", "c") if r["height"] == str(charts.BAR - 2)]
    assert [b["class"] for b in bars] == ["c0", "c1", "c0"]  # the second group has no bar of b
    tops = [float(b["y"]) for b in bars]
    each = 2 * charts.BAR + charts.GAP
    assert tops == [
        charts.TOP + charts.GAP / 2,
        charts.TOP + charts.GAP / 2 + charts.BAR,
        charts.TOP + charts.GAP / 2 + each,
    ]
    widths = [float(b["width"]) for b in bars]
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.11) and widths[0] == pytest.approx(2 * widths[1], abs=0.11)
    names = {t.text: t.attrib for t in svg.iter(f"{SVG}text")}
    left = 16 + charts.LETTER * len("second")
    assert float(names["first"]["x"]) == float(names["second"]["x"]) == pytest.approx(left - 8, abs=0.51)
    assert float(names["second"]["y"]) - float(names["first"]["y"]) == each
    assert names["up"]["text-anchor"] == "middle" and "across" not in names  # values run to the right
    (axis,) = of(svg, "line", "axis")
    assert axis["x1"] == axis["x2"] == bars[0]["x"]


def test_groups_without_names_have_numbers() -> None:
    svg = drawn(chart(curve("a", (1.0, 2.0, 3.0)), kind="bars", groups=["x"]), alone=False)
    ends = [t.text for t in svg.iter(f"{SVG}text") if t.attrib["text-anchor"] == "end"]
    assert ends == ["x", "1", "2"]


def test_the_palette_fills_everything_but_lines() -> None:
    rules = charts.palette(["red", "blue"]).splitlines()
    assert rules == [
        f".chart .c{n} {{ fill: {colour}; }} .chart .line.c{n} {{ fill: none; stroke: {colour}; }}"
        for n, colour in enumerate(("red", "blue"))
    ]
    assert len(charts.LIGHT) == len(charts.DARK) == charts.COLOURS == 10
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in charts.LIGHT + charts.DARK)
