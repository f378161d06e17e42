"""Budgets that keep the house small: length of functions and files, parameters, switches, docstrings."""

from __future__ import annotations

import ast

import pytest

from architecture.tree import PACKAGE, Module, docstring_lines, functions, modules

MAX_FUNCTION, P90_FUNCTION = 60, 30
MAX_FILE = 450
MAX_PARAMETERS, MAX_POSITIONAL, MAX_BOOLEANS = 6, 4, 1
MAX_DOCSTRING_SHARE = 0.30
# a verb of the command line has one parameter per flag; its budget is the one for flags (test_command_line.py)
FLAGS_INSTEAD = ("cli",)
VAGUE = {"utils", "util", "helpers", "helper", "misc", "common", "tools", "stuff"}

every_module = pytest.mark.parametrize("module", modules(), ids=[m.name or "whence" for m in modules()])


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


@every_module
def test_files_are_short(module: Module) -> None:
    assert module.text.count("\n") <= MAX_FILE, f"{module.name}: {module.text.count(chr(10))} lines"


@every_module
def test_few_parameters(module: Module) -> None:
    if module.top in FLAGS_INSTEAD:
        return
    for function in functions(module.tree):
        positional, keyword_only = _parameters(function)
        total = len(positional) + len(keyword_only)
        assert total <= MAX_PARAMETERS, f"{module.at(function)}: {function.name} takes {total} parameters"
        by_position = f"{module.at(function)}: {function.name} takes {len(positional)} by position"
        assert len(positional) <= MAX_POSITIONAL, f"{by_position}; make the later ones keyword-only"


@every_module
def test_a_mode_is_a_value_not_a_switch(module: Module) -> None:
    if module.top in FLAGS_INSTEAD:
        return
    for function in functions(module.tree):
        positional, keyword_only = _parameters(function)
        switches = [
            p.arg
            for p in (*positional, *keyword_only)
            if isinstance(p.annotation, ast.Name) and p.annotation.id == "bool"
        ]
        assert len(switches) <= MAX_BOOLEANS, f"{module.at(function)}: {function.name} has switches {switches}"


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
