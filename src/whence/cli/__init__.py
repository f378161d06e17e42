"""Floor 8 · the command line: one file per verb group; errors become exit codes in ``main`` and nowhere else."""
