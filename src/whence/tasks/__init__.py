"""What an example is, and what it costs: rows, batches, and the tasks that price them.

A module of this folder that defines ``TASK`` is a task; the folder is the registry.
"""

from whence.tasks.base import Batch, Example, RowProblem, Task, get_task, move, task_names
from whence.tasks.batches import BatchPlan, plan_batches
from whence.tasks.encode import encode_rows, encoding_notes
from whence.tasks.rows import (
    Quarantined,
    ReadOptions,
    Row,
    Rows,
    check_bad_rows,
    check_unchanged,
    read_rows,
    row_text,
    row_view,
)

__all__ = [
    "Batch",
    "BatchPlan",
    "Example",
    "Quarantined",
    "ReadOptions",
    "Row",
    "RowProblem",
    "Rows",
    "Task",
    "check_bad_rows",
    "check_unchanged",
    "encode_rows",
    "encoding_notes",
    "get_task",
    "move",
    "plan_batches",
    "read_rows",
    "row_text",
    "row_view",
    "task_names",
]
