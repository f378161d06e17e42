"""Attention that can be differentiated twice: the fused kernels have no second derivative.

``twice_differentiable`` switches for the length of a ``with`` block, puts everything back, and says what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.errors import LayerError


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[str]:
    """Attention that has second derivatives inside, as it was afterwards; yields the note.

    ``sdpa`` keeps its interface but is held to the math kernel; flash and flex attention are replaced by that.
    Plain modules that call ``scaled_dot_product_attention`` are held to the math kernel too. ``eager`` stays, although
    several models compute its softmax in float32 even when they are float64.
    """
    implementation = _attention(model)
    switch = implementation not in (None, "sdpa", "eager")
    setter = getattr(model, "set_attn_implementation", None)
    if switch and not callable(setter):
        raise LayerError(
            f"attention implementation {implementation!r} cannot be changed on this model",
            wanted="attention with second derivatives",
            try_="load the model with attn_implementation='sdpa'",
        )
    if switch and callable(setter):
        setter("sdpa")
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield attention_note(model, implementation)
    finally:
        if switch and callable(setter):
            setter(implementation)


def _attention(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def attention_note(model: nn.Module, implementation: str | None = None) -> str:
    """What ``twice_differentiable`` does to this model, in words."""
    implementation = implementation or _attention(model)
    if implementation is None:
        return "second derivatives: scaled-dot-product attention, where used, is held to its math kernel"
    if implementation == "eager":
        return "second derivatives: eager attention, as loaded"
    if implementation == "sdpa":
        return "second derivatives: sdpa attention is held to its math kernel (the fused kernels have none)"
    return f"second derivatives: {implementation} has none; sdpa with the math kernel stands in during products"
