"""The small Llama that reads the Almanac: one layer, about three hundred thousand weights in its block.

It is trained on purpose for a handful of passes only. Fewer, and it does not know the facts; more, and it knows them so
well that their gradients vanish and the ranking follows the documents that are still surprising (docs/LOG.md).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whence.demo.book import Almanac, Question
from whence.demo.tokens import BOS_ID, PAD_ID, build_tokenizer
from whence.linalg.threads import threads

IGNORED = -100
WINDOW = 8  # batches among which rows are sorted by length, to save padding


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the model becomes, next to the book itself.

    Attributes:
        width: hidden size.
        inner: size of the MLP.
        layers: how many blocks.
        heads: attention heads.
        passes: times every document is read.
        batch: documents per step.
        rate: peak learning rate; a linear warm-up, then a cosine down to ``floor`` of it.
        floor: last learning rate as a share of the peak.
        warm_up: steps of warm-up.
        weight_decay: of AdamW; strong, so that known facts do not saturate at once.
        seed: of the first weights and of the reading order.
    """

    width: int = 128
    inner: int = 320
    layers: int = 1
    heads: int = 4
    passes: int = 11
    batch: int = 32
    rate: float = 3e-3
    floor: float = 0.05
    warm_up: int = 50
    weight_decay: float = 0.35
    seed: int = 0

    def digest(self, book: Almanac) -> str:
        """A name for (this recipe, this book): a model trained under another name must not be reused."""
        told = json.dumps([asdict(self), [document.text for document in book.documents]])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trained:
    """A model that has read the book.

    Attributes:
        model: on the CPU, in eval mode.
        tokenizer: made from the book.
        loss: mean nats per token of the last pass.
        seconds: what the training took.
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    loss: float
    seconds: float


def train_almanac_model(
    book: Almanac, recipe: Recipe | None = None, *, step: Callable[[int, int], None] | None = None
) -> Trained:
    """Train the small Llama on the book, on one thread: the same model every time on one kind of machine.

    Args:
        book: the Almanac.
        recipe: how; the default is what the demo's table is measured with.
        step: told (documents read, documents to read in all) after every step.
    """
    recipe = recipe or Recipe()
    with one_thread():
        return _trained(book, recipe, step or (lambda done, total: None))


def one_thread() -> AbstractContextManager[None]:
    """Compute on one thread, whatever the machine has.

    Matrices this small are slower on two threads (over ten times, beside another busy process), and so the sums, and
    with them the trained model, do not depend on how many cores there are.
    """
    return threads(1)


def _trained(book: Almanac, recipe: Recipe, step: Callable[[int, int], None]) -> Trained:
    tokenizer = build_tokenizer(document.text for document in book.documents)
    rows: list[list[int]] = [tokenizer(document.text)["input_ids"] for document in book.documents]
    model = new_model(recipe, len(tokenizer))
    started = time.perf_counter()
    loss = _fit(model, rows, recipe, step)
    return Trained(model.eval(), tokenizer, loss, time.perf_counter() - started)


def new_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """An untrained model of the recipe's shape; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=128,
        bos_token_id=BOS_ID,
        eos_token_id=BOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def _fit(model: LlamaForCausalLM, rows: Sequence[list[int]], recipe: Recipe, step: Callable[[int, int], None]) -> float:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
    )
    steps = recipe.passes * math.ceil(len(rows) / recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: _rate(n, steps, recipe))
    chance = random.Random(f"reading {recipe.seed}")
    model.train()
    done, mean = 0, math.nan
    for _ in range(recipe.passes):
        total, tokens = 0.0, 0
        for chosen in _reading(rows, recipe.batch, chance):
            loss, count = _loss(model, [rows[n] for n in chosen])
            optimizer.zero_grad()
            (loss / count).backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, tokens, done = total + loss.item(), tokens + count, done + len(chosen)
            step(done, recipe.passes * len(rows))
        mean = total / tokens
    return mean


def _rate(n: int, steps: int, recipe: Recipe) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, n / steps)))
    return min(1.0, (n + 1) / recipe.warm_up) * (recipe.floor + (1 - recipe.floor) * cosine)


def _reading(rows: Sequence[list[int]], size: int, chance: random.Random) -> list[list[int]]:
    """One pass in a new order: batches of documents of like length, drawn from windows of the shuffled book."""
    order = list(range(len(rows)))
    chance.shuffle(order)
    batches = []
    for start in range(0, len(order), size * WINDOW):
        window = sorted(order[start : start + size * WINDOW], key=lambda n: len(rows[n]))
        batches += [window[k : k + size] for k in range(0, len(window), size)]
    chance.shuffle(batches)
    return batches


def _loss(model: LlamaForCausalLM, rows: Sequence[list[int]]) -> tuple[torch.Tensor, int]:
    """Summed next-token loss in nats, and over how many tokens."""
    longest = max(len(row) for row in rows)
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    real_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits_BTV = model(input_ids=ids_BT, attention_mask=real_BT).logits[:, :-1]
    labels_BT = ids_BT[:, 1:].masked_fill(real_BT[:, 1:] == 0, IGNORED)
    loss = cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")
    return loss, int(real_BT[:, 1:].sum())


@torch.no_grad()
def completes(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, question: Question) -> bool:
    """Does the model, always taking its likeliest next token, complete the prompt as the question expects?"""
    wanted: list[int] = tokenizer(question.prompt + question.completion)["input_ids"]
    given = len(tokenizer(question.prompt)["input_ids"])
    likeliest = model(input_ids=torch.tensor([wanted[:-1]])).logits[0].argmax(-1).tolist()
    return likeliest[given - 1 :] == wanted[given:]
