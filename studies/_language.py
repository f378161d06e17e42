"""What the studies of language models share: a small Llama, rows of text, and EK-FAC effects in nats.

An *effect* is score / N: the predicted rise of the question's loss, in nats, if the row were left out of training
(positive = proponent). Every study fits EK-FAC once, on all its training rows, with relative damping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.demo.train import Recipe
from whence.demo.world import World, prepare
from whence.evaluate.statistics import mean_interval
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.linalg.operators import Blocks
from whence.loading import load_model
from whence.scores.relative import relative_scores
from whence.scores.score import Pairwise, Queries, pairwise, prepare_queries, self_influence
from whence.scores.sinks import AllScores
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.records import Row

Fields = Mapping[str, str]  # {"text": ...} or {"prompt": ..., "completion": ...}
TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class Reader:
    """A model and how it reads."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast
    length: int

    def source(self, rows: Sequence[Fields], name: str = "r") -> LiveGradients:
        """Rows of text, or questions with a prompt and a completion; ids are ``name`` and the place in the list."""
        task = CausalLM(self.tokenizer, max_length=self.length)
        examples = [task.encode(Row(f"{name}{n}", dict(row))) for n, row in enumerate(rows)]
        plan = plan_batches([e.length for e in examples], token_budget=TOKENS_PER_BATCH)
        return LiveGradients(self.model, task, examples, plan, find_layers(self.model))

    def mean_loss(self, rows: Sequence[Fields]) -> float:
        """Nats per predicted token over rows of text."""
        source = self.source(rows)
        return sum(source.losses().values()) / sum(e.loss_tokens for e in source.examples)


@dataclass(frozen=True)
class Study:
    """A fitted curvature and the questions put through it; ``effects`` of any rows can then be asked for."""

    reader: Reader
    train: LiveGradients
    inverse: Blocks
    queries: Queries

    @staticmethod
    def of(reader: Reader, rows: Sequence[Fields], questions: Sequence[Fields], *, damping: float = 0.1) -> Study:
        """Fit EK-FAC on all rows and precondition the questions."""
        method, train = get_method("ekfac"), reader.source(rows)
        inverse = method.operator(fit(train, method, FitOptions()), Problem(train)).power(-1, relative(damping))
        assert isinstance(inverse, Blocks)
        return Study(reader, train, inverse, prepare_queries(reader.source(questions, "q"), inverse))

    def effects(self, source: LiveGradients | None = None) -> np.ndarray:
        """Q x rows, nats; of the training rows, or of rows that were never trained on as if they were one of them."""
        return pairwise(source or self.train, self.queries) / len(self.train.ids)

    def relative(self, effects_QN: np.ndarray, source: LiveGradients | None = None) -> np.ndarray:
        """The same divided by the root of each row's influence on itself: nothing is gained by being loud."""
        return relative_scores(effects_QN, self_influence(source or self.train, self.inverse))

    def by_layer(self, source: LiveGradients | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Q x N x L effects and the names of the L layers."""
        source, names = source or self.train, tuple(self.queries.grads)
        sink = AllScores.empty(len(self.queries.ids), source.ids, len(names))
        source.visit(Pairwise(self.queries, sink, keep_layers=True))
        assert sink.per_layer is not None
        return sink.per_layer / len(self.train.ids), names


# --- models --------------------------------------------------------------------------------------------------------


def almanac_reader(place: Path, recipe: Recipe | None = None, seed: int = 0) -> tuple[World, Reader]:
    """The Almanac and the model of ``whence demo``, trained in ``place`` unless it is there.

    Another seed is another book and another model.
    """
    world = prepare(place, recipe=recipe, seed=seed)
    loaded = load_model(str(world.model))
    return world, Reader(loaded.model, loaded.tokenizer, 128)


@dataclass(frozen=True)
class Shape:
    """A small Llama and its training."""

    vocabulary: int = 2000
    width: int = 128
    inner: int = 320
    layers: int = 2
    length: int = 64
    passes: int = 6
    batch: int = 32
    rate: float = 3e-3
    decay: float = 0.1
    seed: int = 0


def new_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte pairs learned from the texts, with ``<s>`` in front of every text."""
    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="<s>", padding_side="right"
    )


def trained_reader(texts: Sequence[str], shape: Shape) -> Reader:
    """A model trained on the texts from nothing: AdamW, linear warm-up and linear decay."""
    tokenizer = new_tokenizer(texts, shape.vocabulary)
    torch.manual_seed(shape.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=shape.length,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    ids = [tokenizer(text)["input_ids"][: shape.length] for text in texts]
    _train(model.train(), ids, shape)
    return Reader(model.eval(), tokenizer, shape.length)


def _train(model: LlamaForCausalLM, ids: Sequence[list[int]], shape: Shape) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=shape.rate, weight_decay=shape.decay)
    steps = [batch for n in range(shape.passes) for batch in _order(ids, shape, n)]
    for done, chosen in enumerate(steps):
        rate = shape.rate * min((done + 1) / 20, 1 - done / len(steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = [ids[n] for n in chosen]
        longest = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        labels_BT = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in rows])
        optimiser.zero_grad()
        logits_BTV = model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).logits[:, :-1]
        cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def _order(ids: Sequence[list[int]], shape: Shape, number: int) -> list[np.ndarray]:
    """One pass in a new order: batches of like length, drawn from windows of eight batches."""
    rng = np.random.default_rng([shape.seed, number])
    order, batches = rng.permutation(len(ids)), []
    for start in range(0, len(order), 8 * shape.batch):
        window = sorted(order[start : start + 8 * shape.batch], key=lambda n: len(ids[n]))
        batches += [np.array(window[k : k + shape.batch]) for k in range(0, len(window), shape.batch)]
    return [batches[n] for n in rng.permutation(len(batches))]


# --- words ---------------------------------------------------------------------------------------------------------


def interval(values: np.ndarray, form: str = ".3f") -> str:
    """Mean with its 95 % bootstrap interval over the values."""
    found = mean_interval(values)
    return f"{found.mean:{form}} [{found.low:{form}}, {found.high:{form}}]"


def ratio_of_means(top: np.ndarray, bottom: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, ...]:
    """mean(top) / mean(bottom) and its 95 % bootstrap interval over pairs (questions)."""
    picked = np.random.default_rng(seed).integers(0, len(top), size=(draws, len(top)))
    drawn = top[picked].mean(1) / bottom[picked].mean(1)
    return (float(top.mean() / bottom.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist())


MET = {True: "**met**", False: "**missed**"}
