"""The source tree as data: every module of whence with its syntax tree. Shared by the architecture tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "whence"


@dataclass(frozen=True)
class Module:
    """One file: its dotted name without the leading ``whence``, its path, its text and its tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def top(self) -> str:
        """The part of the house it belongs to: ``curvature`` for ``curvature.ekfac``, empty for the package itself."""
        return self.name.split(".")[0]

    def at(self, node: ast.AST) -> str:
        """``src/whence/...:line`` for messages."""
        return f"{self.path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


@cache
def modules() -> tuple[Module, ...]:
    """All modules, sorted by path."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        found.append(Module(name, path, text, ast.parse(text, str(path))))
    assert len(found) > 5, f"no source below {PACKAGE}"
    return tuple(found)


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(node, dotted name) of every import below a node, also under TYPE_CHECKING and inside functions.

    ``from a import b`` yields ``a.b``: whether b is a module or a name is for the reader to decide.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            for alias in node.names:
                yield node, f"{node.module}.{alias.name}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def docstring_lines(node: ast.AST) -> int:
    """How many lines the docstring of a module, class or function takes; 0 without one."""
    body = getattr(node, "body", [])
    if not body or not isinstance(body[0], ast.Expr) or not isinstance(body[0].value, ast.Constant):
        return 0
    if not isinstance(body[0].value.value, str):
        return 0
    return (body[0].end_lineno or 0) - body[0].lineno + 1


def call_name(node: ast.Call) -> str:
    """``torch.load`` for a call of it, as written; starts with a dot where the front is no name (``f(x).eval()``)."""
    parts: list[str] = []
    target: ast.expr = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join([target.id, *reversed(parts)]) if isinstance(target, ast.Name) else ".".join(["", *reversed(parts)])
