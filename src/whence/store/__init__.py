"""Floor 5 · disk: atomic writes (``atomic``) and the run folder (``run``, ``tables``)."""
