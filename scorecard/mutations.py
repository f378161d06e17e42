"""Small mistakes that a program could hold: every place of a module where one can be put, and the module with one.

Comparisons, conditions, arithmetic, constants and whole statements. Left alone: annotations, decorators, imports,
docstrings, assertions (they are for our own mistakes), fault points (only the sweeps of R2 to R6 hear of them), and
texts for people (those with a blank or a value in them; R21 reviews messages).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
}  # fmt: skip
CLASSES = ("str", "int", "float", "bool", "list", "dict", "tuple", "bytes", "Path", "Mapping", "Sequence")
UNTOUCHED = {"annotation", "returns", "decorator_list", "type_comment", "format_spec"}


@dataclass(frozen=True)
class Change:
    """One mistake in a parsed module.

    Attributes:
        lines: first and last line of the statement, or of the condition, that it is in.
        kind: what is done.
        node: what it is done to.
        make: does it, in place.
    """

    lines: tuple[int, int]
    kind: str
    node: ast.AST
    make: Callable[[], None]


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        number: of the change, among all of the module.
        lines: as of ``Change``.
        kind: what was done.
        before, after: the text of what it was done to.
        source: the whole module.
    """

    number: int
    lines: tuple[int, int]
    kind: str
    before: str
    after: str
    source: str


def count(source: str) -> int:
    """How many different mistakes can be put into this text."""
    return sum(1 for _ in changes(ast.parse(source)))


def mutant(source: str, number: int) -> Mutant:
    """The text with one of them.

    Raises:
        IndexError: it has not so many.
    """
    tree = ast.parse(source)
    for n, change in enumerate(changes(tree)):
        if n == number:
            before = ast.unparse(_shown(change.node))
            change.make()
            after = ast.unparse(_shown(change.node))
            return Mutant(
                number, change.lines, change.kind, before, after, ast.unparse(ast.fix_missing_locations(tree))
            )
    raise IndexError(number)


def _shown(node: ast.AST) -> ast.AST:
    """Of something with a body its condition alone."""
    return node.test if isinstance(node, ast.If | ast.While) else node


def changes(tree: ast.AST) -> Iterator[Change]:
    """Every change, in the order of the text: the same text gives the same changes."""
    yield from _inside(tree, (1, 1))


def _inside(node: ast.AST, lines: tuple[int, int]) -> Iterator[Change]:
    if isinstance(node, ast.stmt):
        head = node.test if isinstance(node, ast.If | ast.While) else node.iter if isinstance(node, ast.For) else node
        compound = hasattr(node, "body")
        end = (head.end_lineno if head is not node or not compound else node.lineno) or node.lineno
        lines = node.lineno, end
    for kind, make in _of(node):
        yield Change(lines, kind, node, make)
    for name, value in ast.iter_fields(node):
        for child in () if name in UNTOUCHED else value if isinstance(value, list) else [value]:
            part_of_text = isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)
            if isinstance(child, ast.AST) and not part_of_text and not _is_left_alone(child):
                yield from _inside(child, lines)


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        call = node.value
        if isinstance(call, ast.Call):
            return ast.unparse(call.func) in ("reach", "faults.point")
        return isinstance(call, ast.Constant)  # a docstring, or the dots of a protocol
    return isinstance(node, ast.Assert | ast.Import | ast.ImportFrom)


def _of(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """The changes of this node itself."""
    if isinstance(node, ast.Compare):
        for n, op in enumerate(node.ops):
            yield "comparison", lambda n=n, op=op: node.ops.__setitem__(n, SWAPPED[type(op)]())
    elif isinstance(node, ast.BoolOp):
        yield "and / or", lambda: setattr(node, "op", SWAPPED[type(node.op)]())
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPPED and not _is_union(node):
        yield "arithmetic", lambda: setattr(node, "op", SWAPPED[type(node.op)]())
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.comprehension):
        for n, test in enumerate(node.ifs):
            yield "condition negated", lambda n=n, t=test: node.ifs.__setitem__(n, ast.UnaryOp(ast.Not(), t))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign dropped", lambda: _become(node, node.operand)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node)
    elif isinstance(node, ast.stmt):
        yield from _of_statement(node)


def _is_union(node: ast.BinOp) -> bool:
    """``str | int``: classes, not numbers."""
    return isinstance(node.op, ast.BitOr) and isinstance(node.right, ast.Name) and node.right.id in CLASSES


def _of_constant(node: ast.Constant) -> Iterator[tuple[str, Callable[[], None]]]:
    value, other = node.value, None
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, int):
        other = value + 1
    elif isinstance(value, float):
        other = value * 2 or 1.0
    elif isinstance(value, str) and not any(c.isspace() for c in value.strip()):
        other = f"XX{value}"
    elif isinstance(value, bytes):
        other = b"XX" + value
    if other is not None:
        yield "constant", lambda: setattr(node, "value", other)


def _of_statement(node: ast.stmt) -> Iterator[tuple[str, Callable[[], None]]]:
    if isinstance(node, ast.Expr | ast.AugAssign | ast.Raise):
        yield "statement removed", lambda: _become(node, ast.Pass())
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "returns nothing", lambda: setattr(node, "value", ast.Constant(None))
    elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant):
        yield "assigns nothing", lambda: setattr(node, "value", ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break):
        yield (
            "break / continue",
            lambda: _become(node, ast.Break() if isinstance(node, ast.Continue) else ast.Continue()),
        )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _become(node: ast.AST, other: Any) -> None:
    """One node in the place of another, whoever holds it."""
    kept = {name: getattr(node, name) for name in ("lineno", "col_offset") if hasattr(node, name)}
    node.__class__ = type(other)
    node.__dict__.clear()
    node.__dict__.update({**vars(other), **kept})
