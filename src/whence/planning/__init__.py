"""``whence plan``: what a trace or an index would cost on this machine, before it starts."""

from whence.planning.estimating import estimate, estimate_request

__all__ = ["estimate", "estimate_request"]
