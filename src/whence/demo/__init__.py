"""The Almanac: the embedded example. A generated book with known provenance, and the small model trained on it."""
