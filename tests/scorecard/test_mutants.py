"""Mistakes are put where they belong, nowhere else, and what the tests make of them is counted honestly."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from clones import ROOT, load

SOURCE = '''
"""A docstring stays."""
import os

@decorated("stays")
def work(n: "stays" = 3, *, on: bool = True) -> "stays":
    """So does this."""
    assert n > 1
    reach("point", n)
    if n <= 2 and not on:
        raise ValueError("texts for people stay")
    total = [x - 1 for x in range(n) if x]
    total += [0.5]
    while total:
        break
    return f"{n + 0!r:stays}stays" or -n
'''


def told(source: str) -> list[tuple[str, str, str]]:
    mutations = load("mutations")
    made = [mutations.mutant(source, n) for n in range(mutations.count(source))]
    for one in made:
        compile(one.source, "mutant", "exec")
        assert one.source != ast.unparse(ast.parse(source))
    return [(m.kind, m.before, m.after) for m in made]


def test_every_change_is_made_once_and_alone() -> None:
    assert told(SOURCE) == [
        ("constant", "True", "False"),
        ("constant", "3", "4"),
        ("condition negated", "n <= 2 and (not on)", "not (n <= 2 and (not on))"),
        ("and / or", "n <= 2 and (not on)", "n <= 2 or not on"),
        ("comparison", "n <= 2", "n < 2"),
        ("constant", "2", "3"),
        ("sign dropped", "not on", "on"),
        ("statement removed", "raise ValueError('texts for people stay')", "pass"),
        ("assigns nothing", "total = [x - 1 for x in range(n) if x]", "total = None"),
        ("arithmetic", "x - 1", "x + 1"),
        ("constant", "1", "2"),
        ("condition negated", " for x in range(n) if x", " for x in range(n) if not x"),
        ("statement removed", "total += [0.5]", "pass"),
        ("constant", "0.5", "1.0"),
        ("condition negated", "total", "not total"),
        ("break / continue", "break", "continue"),
        ("returns nothing", "return f'{n + 0!r:stays}stays' or -n", "return None"),
        ("and / or", "f'{n + 0!r:stays}stays' or -n", "f'{n + 0!r:stays}stays' and -n"),
        ("arithmetic", "n + 0", "n - 0"),
        ("constant", "0", "1"),
        ("sign dropped", "-n", "n"),
    ]


def test_names_and_bytes_are_constants_and_types_are_not() -> None:
    assert told("a = isinstance(b, str | int)") == [
        ("assigns nothing", "a = isinstance(b, str | int)", "a = None"),
    ]  # fmt: skip
    assert told("f('name', b'x', 'two words', a | b)") == [
        ("statement removed", "f('name', b'x', 'two words', a | b)", "pass"),
        ("constant", "'name'", "'XXname'"),
        ("constant", "b'x'", "b'XXx'"),
        ("arithmetic", "a | b", "a & b"),
    ]


def test_a_change_knows_the_lines_of_its_statement() -> None:
    mutations = load("mutations")
    source = "def f(a):\n    x = g(\n        1,\n    )\n    if (\n        a\n    ):\n        return 2\n"
    lines = {(m.kind, m.before): m.lines for m in (mutations.mutant(source, n) for n in range(mutations.count(source)))}
    assert lines["constant", "1"] == (2, 4) and lines["condition negated", "a"] == (5, 6)
    assert lines["constant", "2"] == (8, 8)
    with pytest.raises(IndexError):
        mutations.mutant(source, 99)


def test_a_mutant_is_imported_and_the_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    for name, text in (("__init__", ""), ("one", "VALUE = 1\n"), ("two", "from pack.one import VALUE\n")):
        (tmp_path / "pack" / f"{name}.py").write_text(text)
    (tmp_path / "mutant.py").write_text("VALUE = 2\nFILE = __file__\n")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "from scorecard.mutant_import import install\n"
        f"install('pack.one={tmp_path / 'mutant.py'}')\n"
        "from pack import one, two\nprint(one.VALUE, two.VALUE, one.FILE)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2", str(tmp_path / "pack" / "one.py")]
    assert (tmp_path / "pack" / "one.py").read_text() == "VALUE = 1\n"


def found_by(**tests: list[str]):
    covered = load("covered")
    seconds = {"a.py::quick": 1.0, "a.py::mid": 10.0, "a.py::other": 5.0, "b.py::far": 30.0, "a.py::last": 20.0}
    lines = {int(line.removeprefix("line")): names for line, names in tests.items()}
    return covered.Covered(100.0, 1, 100.0, {"x.py": 100.0}, {"x.py": lines}, seconds)


def test_the_quickest_tests_of_a_line_come_first() -> None:
    mutants = load("mutants")
    found = found_by(line3=["a.py::mid", "a.py::quick"], line9=["b.py::far"])
    tests, within = mutants.chosen(found, "x.py", (2, 4))
    assert tests == ["a.py::quick", "a.py::mid", "a.py::other"]  # then those of the same file, within the budget
    assert within == 3 * 16 + 30
    assert mutants.chosen(found, "x.py", (9, 9))[0] == ["b.py::far"]  # one at least
    assert mutants.chosen(found, "x.py", (50, 50))[0] == [
        "a.py::quick",
        "a.py::mid",
    ]  # run while importing: of all lines
    assert mutants.chosen(found, "y.py", (1, 1)) == ([], 30.0)


def test_the_score_leaves_out_what_changes_nothing_and_nothing_else() -> None:
    mutants = load("mutants")
    ends = ["killed"] * 5 + ["timeout"] + ["survived", "no test", "equivalent", "equivalent"]
    told = mutants.summary([mutants.Verdict("f.py", 0, n, "k", "a", "b", end) for n, end in enumerate(ends)])
    assert (told["mutants"], told["killed"], told["timeouts"], told["equivalent"]) == (10, 6, 1, 2)
    assert told["score"] == 75.0
    assert told["survived"] == ["f.py:6 k: a -> b", "f.py:7 k: a -> b"]
    assert mutants.summary([])["score"] == 0.0


def test_a_sample_is_drawn_from_all_and_again_the_same() -> None:
    mutants = load("mutants")
    files = ["scorecard/outcome.py", "scorecard/page.py"]
    drawn = mutants.sample(files, 20, 0)
    assert drawn == mutants.sample(files[::-1], 20, 0) != mutants.sample(files, 20, 1)
    assert len(set(drawn)) == 20 and {file for file, _ in drawn} == set(files)
    assert len(mutants.sample(files, 10**6, 0)) == sum(
        load("mutations").count((ROOT / file).read_text("utf-8")) for file in files
    )


def test_what_is_judged_to_change_nothing_is_still_there() -> None:
    """A judgement is of a line as it stands: when that changes it must be judged again."""
    known = json.loads(load("mutants").EQUIVALENT.read_text())
    stale = [e for e in known if e["text"] not in (ROOT / e["file"]).read_text("utf-8")]
    assert stale == [] and all(len(e["why"]) > 15 for e in known)
