"""Floor 3: one file per method; the folder is the registry."""
