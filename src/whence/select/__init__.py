"""What to keep: rows chosen by influence, sources weighed, large pools judged from few gradients, labels cleaned.

Plain NumPy on scores and plain records; who computes the scores stands a floor above (``whence.selecting``).
"""
