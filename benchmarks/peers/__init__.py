"""The same EK-FAC job done by other libraries, each in its own environment."""
