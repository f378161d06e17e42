"""whence: where did this behaviour come from? Training-data attribution with influence functions.

::

    import whence

    scores = whence.attribute("path/to/model", train="train.jsonl", query="questions.jsonl")
    scores.proponents(0, k=5)
    scores.report("report.html")

The names below are the whole public face, loaded on first use: ``import whence`` alone imports neither torch nor numpy.
Everything else can be imported from its floor by those who extend whence, and is promised to no one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whence.api import attribute as attribute
    from whence.api import load as load
    from whence.api import self_influence as self_influence
    from whence.asking import ask as ask
    from whence.callback import WhenceCallback as WhenceCallback
    from whence.curvature.base import Method as Method
    from whence.errors import WhenceError as WhenceError
    from whence.indexing import build_index as build_index
    from whence.linalg.damping import absolute as absolute
    from whence.linalg.damping import factored as factored
    from whence.linalg.damping import relative as relative
    from whence.options import TraceOptions as TraceOptions
    from whence.results import Scores as Scores
    from whence.tasks.base import Batch as Batch
    from whence.tasks.base import Task as Task
    from whence.unrolled.front import unroll as unroll

__version__ = "0.1.0"

# No name may equal that of a module of whence (``report``, ``check`` ...): importing the module would overwrite it.
_HOMES = {
    "attribute": "whence.api",
    "ask": "whence.asking",
    "build_index": "whence.indexing",
    "load": "whence.api",
    "self_influence": "whence.api",
    "unroll": "whence.unrolled.front",
    "WhenceCallback": "whence.callback",
    "TraceOptions": "whence.options",
    "Scores": "whence.results",
    "Task": "whence.tasks.base",
    "Batch": "whence.tasks.base",
    "Method": "whence.curvature.base",
    "absolute": "whence.linalg.damping",
    "relative": "whence.linalg.damping",
    "factored": "whence.linalg.damping",
    "WhenceError": "whence.errors",
}

__all__ = [
    "Batch",
    "Method",
    "Scores",
    "Task",
    "TraceOptions",
    "WhenceCallback",
    "WhenceError",
    "__version__",
    "absolute",
    "ask",
    "attribute",
    "build_index",
    "factored",
    "load",
    "relative",
    "self_influence",
    "unroll",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its floor the first time it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'whence' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__]
