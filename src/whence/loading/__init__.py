"""Models in: a folder, a hub id, ``id@revision``, a PEFT adapter folder, or a live model and tokenizer."""

from whence.loading.load import (
    ALLOWABLE,
    AUTO_CLASSES,
    PICKLE_WEIGHTS,
    REMOTE_CODE,
    Loaded,
    join_ranks,
    load_model,
    over_ranks,
)
from whence.loading.places import HOST

__all__ = [
    "ALLOWABLE",
    "AUTO_CLASSES",
    "HOST",
    "PICKLE_WEIGHTS",
    "REMOTE_CODE",
    "Loaded",
    "join_ranks",
    "load_model",
    "over_ranks",
]
