"""What an example is, and what it costs: rows, batches, and the tasks that price them.

A module of this folder that defines ``TASK`` is a task; the folder is the registry. Nothing is imported here: the
readers load ``datasets`` and ``pyarrow``, which a loss has no use for.
"""
