"""The score-card never calls something a pass that was not run, and names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

from clones import ROOT, load


def test_every_named_test_exists() -> None:
    absent = []
    defined: dict[str, set[str]] = {}
    properties = load("properties")
    for line in properties.PROPERTIES:
        for name in line.tests:
            file, _, test = name.partition("::")
            if file not in defined:
                tree = ast.parse((ROOT / file).read_text("utf-8")) if (ROOT / file).is_file() else ast.parse("")
                defined[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            if test not in defined[file]:
                absent.append(name)
    assert absent == []


def test_all_families_and_properties_are_there() -> None:
    families, properties = load("families").FAMILIES, load("properties").PROPERTIES
    numbers = [*range(1, 17), *range(20, 32), *range(40, 56), *range(60, 75)]
    assert list(families) == [f"F{n}" for n in numbers] and len(families) == 59
    assert [line.id for line in properties] == [f"R{n}" for n in range(1, 25)]


def test_nothing_that_was_not_run_is_a_pass(tmp_path: Path) -> None:
    outcome, runs = load("outcome"), load("tests_run")
    assert outcome.counted("", 0, 0).status == "not run"
    assert outcome.counted("", 5, 0, missing="the rest").status == "partly"
    assert outcome.counted("", 5, 1, missing="the rest").status == "fail"
    assert outcome.counted("", 5, 0).status == "pass"
    skipped = runs.Cases(skipped=3)
    assert not skipped.held
    assert runs.together(["a", "b"], {"a": runs.Cases(2), "b": skipped}) == (2, 0, ["b"])
    assert runs.read_report(tmp_path / "nothing.xml") == {}


def test_a_report_of_tests_is_read(tmp_path: Path) -> None:
    runs = load("tests_run")
    path = tmp_path / "r.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_c[x]"/>'
        '<testcase classname="tests.a.test_b" name="test_c[y]"><failure/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_d"><skipped/></testcase></testsuite></testsuites>'
    )
    found = runs.read_report(path)
    assert found["tests/a/test_b.py::test_c"] == runs.Cases(1, 1, 0)
    assert found["tests/a/test_b.py::test_d"] == runs.Cases(0, 0, 1)


def test_the_page_says_what_was_not_run() -> None:
    page = load("page")
    machine = {"cpu": "c", "cpus": 2, "git": "abc", "python": "3", "versions": {"torch": "2"}}
    line = {"id": "R1", "promise": "p | q", "target": "t", "status": "not run", "measured": "", "missing": "why"}
    line |= {"when": "", "commit": "", "mode": ""}
    said = page.text({"seconds": 60, "machine": machine, "lines": [line]})
    assert "| R1 | p \\| q | t | not run |  | why |  |" in said and "1 not run" in said
