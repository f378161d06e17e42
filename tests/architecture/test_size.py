"""Budgets that keep the house small: length of functions and files, parameters, switches, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from architecture.tree import PACKAGE, docstring_lines, functions, modules

MAX_FUNCTION, P90_FUNCTION = 60, 30
MAX_FILE = 450
MAX_PARAMETERS, MAX_POSITIONAL, MAX_BOOLEANS = 6, 4, 1
MAX_DOCSTRING_SHARE = 0.30
# a verb of the command line has one parameter per flag; its budget is the one for flags (test_command_line.py)
FLAGS_INSTEAD = ("cli",)
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "stuff"}


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[list[ast.arg], list[ast.arg]]:
    """(positional, keyword-only) parameters without self and cls."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if positional and positional[0].arg in ("self", "cls"):
        positional = positional[1:]
    return positional, function.args.kwonlyargs


def _lengths() -> list[tuple[int, str]]:
    found = []
    for module in modules():
        for function in functions(module.tree):
            length = (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)
            found.append((length, f"{module.at(function)} {function.name}"))
    return sorted(found)


def test_functions_are_short() -> None:
    lengths = _lengths()
    too_long = [f"{length} lines: {where}" for length, where in lengths if length > MAX_FUNCTION]
    assert not too_long, "functions over the limit:\n" + "\n".join(too_long)
    p90 = lengths[int(0.9 * len(lengths))][0]
    assert p90 <= P90_FUNCTION, f"p90 of function length is {p90}, the budget {P90_FUNCTION}"


def test_files_are_short() -> None:
    lengths = {m.name: m.text.count("\n") for m in modules()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE}


def _signatures() -> Iterator[tuple[str, list[ast.arg], list[ast.arg]]]:
    """(where and what, positional, keyword-only) of every function that is not a verb of the command line."""
    for module in modules():
        if module.top not in FLAGS_INSTEAD:
            for function in functions(module.tree):
                yield f"{module.at(function)} {function.name}", *_parameters(function)


def test_few_parameters() -> None:
    broken = []
    for where, positional, keyword_only in _signatures():
        total = len(positional) + len(keyword_only)
        if total > MAX_PARAMETERS:
            broken.append(f"{where} takes {total} parameters")
        if len(positional) > MAX_POSITIONAL:
            broken.append(f"{where} takes {len(positional)} by position; make the later ones keyword-only")
    assert not broken, "\n".join(["", *broken])


def test_a_mode_is_a_value_not_a_switch() -> None:
    broken = []
    for where, positional, keyword_only in _signatures():
        annotated = [(p.arg, p.annotation) for p in (*positional, *keyword_only)]
        switches = [name for name, kind in annotated if isinstance(kind, ast.Name) and kind.id == "bool"]
        if len(switches) > MAX_BOOLEANS:
            broken.append(f"{where} has switches {switches}")
    assert not broken, "\n".join(["", *broken])


def test_docstrings_do_not_drown_the_code() -> None:
    lines = docs = 0
    for module in modules():
        lines += module.text.count("\n")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docs += docstring_lines(node)
    assert docs / lines <= MAX_DOCSTRING_SHARE, f"docstrings are {docs / lines:.0%} of the lines"


def test_no_room_without_a_purpose() -> None:
    for path in PACKAGE.rglob("*"):
        assert path.stem.strip("_") not in VAGUE, f"{path.relative_to(PACKAGE)}: name it after what it holds"
