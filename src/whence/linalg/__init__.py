"""Floor 1: tensors only. No text, no models."""
