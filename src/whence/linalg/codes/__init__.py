"""Ways to keep a row of numbers in few bytes so that its dot product with a dense query is still nearly right.

What is compressed are whitened gradients, whose plain dot product is the score. One file per scheme; all are pure
functions of the row, deterministic, and of fixed size per row, so that a file of them can be mapped into memory.
"""
