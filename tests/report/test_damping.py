"""The page of a damping study: every known point where it belongs, the choice marked, unknown values left out."""

from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from whence.report import damping
from whence.report.damping import curves, damping_table, render_damping

STUDY: dict[str, Any] = {
    "dampings": ["relative:0.01", "relative:0.1", "relative:10"],
    "values": [0.01, 0.1, 10.0],
    "layers": ["a.0", "b<1>"],
    "neighbours": [
        {"spearman": 0.9, "pearson": 0.8, "layers_spearman": [1.0, 0.75]},
        {"spearman": None, "pearson": -0.25, "layers_spearman": [None, -1.0]},
    ],
    "to_plain": [0.2, 0.5, 1.0],
    "evidence": [
        {"kind": "lds", "values": [0.1, 0.3, 0.2], "errors": [0.05, 0.0, 0.1]},
        {"kind": "own", "values": [None, 0.4, 0.6], "errors": []},
    ],
    "recommended": {"damping": "relative:0.1", "basis": "lds", "reason": "it predicts best"},
    "about": {"method": "ekfac", "rows": 12, "queries": 2},
}


def study(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(STUDY), **changes}


def drawing(page: str) -> ElementTree.Element:
    found = re.search(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert found is not None
    return ElementTree.fromstring(found[0])


def test_neighbours_stand_between_their_dampings() -> None:
    found = {name: (list(x), list(y), list(errors)) for name, x, y, errors in curves(study())}
    assert found["neighbours, rank correlation"] == (
        [pytest.approx(0.1**1.5), pytest.approx(1.0)], [0.9, None], [],
    )  # fmt: skip
    assert found["neighbours, linear correlation"][1] == [0.8, -0.25]
    assert found["agreement with the gradient dot product"] == ([0.01, 0.1, 10.0], [0.2, 0.5, 1.0], [])
    assert found["retrained subsets (LDS)"] == ([0.01, 0.1, 10.0], [0.1, 0.3, 0.2], [0.05, 0.0, 0.1])
    assert found["own"][1] == [None, 0.4, 0.6]  # a kind of evidence without a name of its own


def test_the_table_marks_the_choice_and_leaves_unknowns_empty() -> None:
    table = damping_table(study())
    assert table.columns == ("damping", "rank correlation to the next", "to gradient dot", "lds", "own", "")
    assert table.rows == (
        ("relative:0.01", "0.900", "0.200", "0.100", "", ""),
        ("relative:0.1", "", "0.500", "0.300", "0.400", "used"),
        ("relative:10", "", "1.000", "0.200", "0.600", ""),  # nothing follows the last
    )
    assert table.note == "it predicts best"


def test_points_are_where_they_belong() -> None:
    svg = drawing(render_damping(study()))
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter("circle")]
    assert len(circles) == 1 + 2 + 3 + 3 + 2  # without the unknown ones
    lines = [line.attrib["points"].split() for line in svg.iter("polyline")]
    assert [tuple(map(float, point.split(","))) for line in lines for point in line] == circles
    left, right = damping.LEFT, damping.WIDTH - damping.RIGHT
    top, foot = damping.TOP, damping.HEIGHT - damping.BOTTOM
    assert circles[3][0] == left and circles[5] == (right, top)  # the whole width; a correlation of 1 is the top
    lowest = -0.3  # of -0.25, in tenths
    assert circles[2][1] == pytest.approx(foot - (foot - top) * (-0.25 - lowest) / (1 - lowest), abs=0.06)
    middle = left + (right - left) / 3  # 0.1 of 0.01 to 10, in powers
    (chosen,) = [line for line in svg.iter("line") if line.attrib.get("class") == "chosen"]
    assert float(chosen.attrib["x1"]) == float(chosen.attrib["x2"]) == pytest.approx(middle, abs=0.06)
    assert circles[4][0] == pytest.approx(middle, abs=0.06)


def test_standard_errors_are_bars_and_none_is_no_bar() -> None:
    svg = drawing(render_damping(study()))
    bars = [line.attrib for line in svg.iter("line") if "style" in line.attrib]
    assert len(bars) == 2
    high = (damping.HEIGHT - damping.TOP - damping.BOTTOM) / 1.3  # of one unit
    assert [float(b["y2"]) - float(b["y1"]) for b in bars] == pytest.approx([0.1 * high, 0.2 * high], abs=0.11)


def test_axes_are_named_at_powers_and_quarters() -> None:
    shown = [t.text for t in drawing(render_damping(study())).iter("text")]
    assert shown == ["-0.3", "0", "0.25", "0.5", "0.75", "1", "0.01", "0.1", "1", "10", "relative damping"]
    positive = study(neighbours=[{**n, "pearson": 0.5} for n in STUDY["neighbours"]])
    assert [t.text for t in drawing(render_damping(positive)).iter("text")][:2] == ["0", "0.25"]


def test_layers_that_move_are_shaded() -> None:
    page = render_damping(study())
    rows = re.findall(r"<tr><td>([^<]*)</td>(.*?)</tr>", page.partition("<h2>Layers</h2>")[2])
    shades = {name: re.findall(r"c5\) (\d+)%, transparent\)\">([^<]*)<", cells) for name, cells in rows}
    assert shades == {"a.0": [("0", "1.000"), ("0", "")], "b&lt;1&gt;": [("30", "0.750"), ("60", "-1.000")]}


def test_the_page_says_what_was_studied() -> None:
    page = render_damping(study())
    assert "<h1>relative:0.1</h1><p>it predicts best</p><p>ekfac on 12 rows and 2 questions; one fit" in page
    assert "<script" not in page and "default-src 'none'" in page
    bare = study()
    del bare["about"]
    assert " on ? rows and ? questions;" in render_damping(bare)


def test_one_damping_alone_is_a_point() -> None:
    alone = study(dampings=["relative:0.1"], values=[0.1], neighbours=[], to_plain=[0.5], evidence=[], layers=[])
    circles = list(drawing(render_damping(alone)).iter("circle"))
    assert [float(c.attrib["cx"]) for c in circles] == [damping.LEFT]


def test_nothing_known_is_a_page_without_points() -> None:
    empty = [{**n, "spearman": None, "pearson": None} for n in STUDY["neighbours"]]
    page = render_damping(study(neighbours=empty, to_plain=[None] * 3, evidence=[]))
    assert "<circle" not in page and "nan" not in page.lower().partition("</style>")[2]
