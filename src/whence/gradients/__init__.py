"""Floor 2: the only forward and backward passes in the library."""
