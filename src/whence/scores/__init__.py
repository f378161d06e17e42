"""Floor 4: preconditioned queries meet training gradients."""
