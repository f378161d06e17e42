"""``whence evaluate VERB``: does the score predict what retraining does?

Each verb has a module of its own beside this one, imported only when it is asked for. Every one of them ends in
``evaluated.answer``, which shows, writes and emits an ``Outcome``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

# verb -> (module of this package, one line of help)
VERBS: Mapping[str, tuple[str, str]] = {
    "retrieval": ("evaluate_retrieval", "Are the rows found that are known to have taught the answer?"),
    "tailpatch": ("evaluate_tailpatch", "Does one training step on the rows put first make the answer likelier?"),
    "mislabel": ("evaluate_mislabel", "Are wrong labels found by influence, and better than by their loss?"),
    "pbrf": ("evaluate_pbrf", "Does the solver predict a short proximal retraining, row by row?"),
    "lds": ("evaluate_retraining", "Summed scores against models retrained on subsets of the rows."),
    "loo": ("evaluate_retraining", "Scores against leaving single rows out."),
    "removal": ("evaluate_retraining", "What taking the strongest rows out does to the loss."),
}


def evaluate(arguments: Sequence[str]) -> typer.Typer:
    """The application of what follows ``whence evaluate``; verbs not asked for are stand-ins."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.callback()(_evaluate)
    asked = next((word for word in arguments if not word.startswith("-")), "")
    for name, (module, line) in VERBS.items():
        verb: Callable[..., Any] = _stand_in
        if name == asked:
            verb = getattr(importlib.import_module(f"whence.cli.{module}"), name)
        app.command(name, short_help=line)(verb)
    return app


def _evaluate() -> None:
    """Does the score predict what retraining does, on your model and data or on the embedded example?

    whence evaluate retrieval --out evaluation/

    Every verb shows random, word overlap and other cheap contenders beside the methods, ends in a table, and writes
    report.html, outcome.json and the plots with --out. Without --model it runs on the Almanac of `whence demo`.
    """


def _stand_in() -> None:
    """Never called: the verb that is asked for is the real one."""
