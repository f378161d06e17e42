"""Token sources of the benchmarks: WikiText-2 from a folder given by path, or a synthetic Zipf/Markov stream."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"
BRANCHES = 40


def wikitext(data: Path, split: str) -> list[str]:
    """Non-empty paragraphs of one split (`train` or `valid`), headings left out.

    Raises:
        FileNotFoundError: no WikiText-2 under that folder.
    """
    folder = data / "wikitext2"
    packed_path, plain_path = folder / f"{split}.txt.gz", folder / f"{split}.txt"
    if packed_path.exists():
        text = gzip.decompress(packed_path.read_bytes()).decode()
    elif plain_path.exists():
        text = plain_path.read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(f"no {split}.txt(.gz) in {folder}; --data wants the folder that holds wikitext2/")
    return [line.strip() for line in text.split("\n") if line.strip() and not line.startswith(" =")]


def train_bpe(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `vocabulary` entries; the first is the end/padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def word_list(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer for synthetic tokens, whose words are `w0 w1 ...`."""
    words = {END: 0} | {f"w{i}": i for i in range(1, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=END)


def packed(texts: list[str], tokenizer: PreTrainedTokenizerFast, shape: tuple[int, int]) -> np.ndarray:
    """Texts joined by the end token and cut to `shape` = (rows, tokens) integers.

    Raises:
        ValueError: the texts hold too few tokens.
    """
    wanted = shape[0] * shape[1]
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer.encode(text, add_special_tokens=False), 0]
        if len(stream) >= wanted:
            return np.asarray(stream[:wanted], dtype=np.int64).reshape(shape)
    raise ValueError(f"{len(stream)} tokens in the corpus; {wanted} are wanted")


def synthetic(shape: tuple[int, int], vocabulary: int, *, seed: int) -> np.ndarray:
    """Tokens of a Markov chain whose marginals are Zipf-like: each token has a few likely successors.

    The chain itself is the same for every seed; the seed draws the walk.
    """
    chain = np.random.default_rng(0)
    zipf = 1 / np.arange(1, vocabulary)
    zipf /= zipf.sum()
    successors = chain.choice(np.arange(1, vocabulary), size=(vocabulary, BRANCHES), p=zipf)
    weights = 1 / np.arange(1, BRANCHES + 1)
    walk = np.random.default_rng(seed)
    branches = walk.choice(BRANCHES, size=shape, p=weights / weights.sum())
    tokens = np.empty(shape, dtype=np.int64)
    tokens[:, 0] = walk.choice(np.arange(1, vocabulary), size=shape[0], p=zipf)
    for t in range(1, shape[1]):
        tokens[:, t] = successors[tokens[:, t - 1], branches[:, t]]
    return tokens
