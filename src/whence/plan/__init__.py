"""What a job would cost, from a few batches of the real work: rows, passes, time, memory, disk, and what is cheaper.

``meter`` measures, ``glimpse`` shows a few batches of the rows, ``laws`` turns what was seen into the whole, ``record``
is the answer, ``alternatives`` what would be cheaper. ``whence.planning`` puts them to work on a model and rows.
"""
