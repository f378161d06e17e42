"""Labels as people write them -> the number of the class in the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whence.tasks.base import RowProblem


def class_of(label: Any, label2id: Mapping[str, int]) -> int:
    """The model's class of a label given by name, by number, or by number as text.

    Raises:
        RowProblem: a label that the model does not know.
    """
    known = set(label2id.values())
    if isinstance(label, str) and label in label2id:
        return label2id[label]
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, str) and label.strip().isdecimal():
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and label in known:
        return label
    names = ", ".join(f"{name}={i}" for name, i in list(label2id.items())[:10])
    raise RowProblem("unknown_label", f"label {str(label)[:60]!r}; the model knows {names}")
