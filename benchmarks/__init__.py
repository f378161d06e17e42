"""Measurements of whence and of its peers. Run modules from the repository root: `python -m benchmarks.passes`."""
