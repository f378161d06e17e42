"""A small text classifier over word counts, trained in seconds: what ``mislabel`` runs on when no model is given.

Its labels can be changed before it is trained, which a finished model's cannot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from whence.candidates.lexical import words
from whence.tasks.base import Example, Task, move

MOST_WORDS = 1000
PADDING, UNKNOWN = 0, 1


@dataclass(frozen=True)
class WordTokenizer:
    """Words of a text as numbers; as much of a tokenizer as ``SequenceClassification`` asks for.

    Attributes:
        vocabulary: word -> number, from 2.
    """

    vocabulary: Mapping[str, int]
    pad_token_id: int = PADDING
    model_max_length: int | None = None

    @staticmethod
    def of(texts: Sequence[str], *, most: int = MOST_WORDS) -> WordTokenizer:
        """The most frequent words of these texts (ties by spelling)."""
        counts = Counter(word for text in texts for word in words(text))
        chosen = sorted(counts, key=lambda word: (-counts[word], word))[:most]
        return WordTokenizer({word: n for n, word in enumerate(chosen, start=UNKNOWN + 1)})

    @property
    def size(self) -> int:
        return len(self.vocabulary) + UNKNOWN + 1

    def __call__(self, *texts: str, **_how: Any) -> dict[str, list[int]]:
        """Numbers of the words in order; words outside the vocabulary are one number together."""
        return {"input_ids": [self.vocabulary.get(word, UNKNOWN) for text in texts for word in words(text)]}


class WordCounts(nn.Module):
    """Logits from word counts (scaled to length 1), with one hidden layer."""

    def __init__(self, vocabulary: int, classes: int, *, hidden: int = 16) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.inner = nn.Linear(vocabulary, hidden)
        self.outer = nn.Linear(hidden, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, T] numbers (0 = padding) to [B, C] logits; padding is known by its number."""
        del attention_mask
        weight = self.inner.weight
        counts_BV = torch.zeros(len(input_ids), self.vocabulary, dtype=weight.dtype, device=weight.device)
        counts_BV.scatter_add_(1, input_ids, (input_ids != PADDING).to(weight.dtype))
        length_B1 = counts_BV.norm(dim=1, keepdim=True).clamp(min=1.0)
        return self.outer(torch.tanh(self.inner(counts_BV / length_B1)))


@dataclass(frozen=True)
class BagSettings:
    """How the classifier is trained: AdamW, a constant rate.

    Attributes:
        hidden: size of the hidden layer.
        epochs, batch, rate, weight_decay: as usual.
        seed: of the first weights and the order.
    """

    hidden: int = 16
    epochs: int = 20
    batch: int = 32
    rate: float = 1e-2
    weight_decay: float = 1e-2
    seed: int = 0


def train_bag(task: Task, examples: Sequence[Example], *, sizes: tuple[int, int], settings: BagSettings) -> WordCounts:
    """A classifier trained on these rows and labels; the global random state is left as it was.

    Args:
        task: collates the examples.
        examples: encoded with a ``WordTokenizer``.
        sizes: vocabulary and classes.
        settings: how.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = WordCounts(*sizes, hidden=settings.hidden)
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    order = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        mixed = order.permutation(len(examples))
        for start in range(0, len(mixed), settings.batch):
            batch = move(task.collate([examples[n] for n in mixed[start : start + settings.batch]]), "cpu")
            optimiser.zero_grad()
            cross_entropy(task.outputs(model, batch), batch.labels).backward()
            optimiser.step()
    return model.eval()


def accuracy(task: Task, model: nn.Module, examples: Sequence[Example]) -> float:
    """Share of rows whose likeliest class is their label; NaN without rows."""
    if not examples:
        return float("nan")
    with torch.no_grad():
        batch = task.collate(examples)
        return float((task.outputs(model, batch).argmax(1) == batch.labels).double().mean())
