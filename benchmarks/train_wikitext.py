"""Train a small Llama on WikiText-2 in about five CPU minutes, to have a model that `whence trace` can be tried on.

Writes a Hugging Face folder `model/`, the rows it was trained on (`train.jsonl`: `id`, `text`, one paragraph each) and
`queries.jsonl` (held-out paragraphs, cut to a prompt and its continuation).

Run: python -m benchmarks.train_wikitext --data ../shared/data --out benchmarks/.work/wikitext
Then: whence trace --model benchmarks/.work/wikitext/model ... (the script prints the line)
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks import corpus
from benchmarks.workload import WORK, Sizes, new_model, train

SIZES = Sizes(layers=2, width=192, intermediate=512, vocabulary=4096)
WORDS = (40, 90)
PROMPT_SHARE = 0.5


@dataclass(frozen=True)
class Job:
    """How much to train on, and where to write."""

    rows: int
    queries: int
    epochs: int
    length: int
    out: Path


def paragraphs(texts: list[str], count: int, *, seed: int) -> list[str]:
    """A seeded sample of paragraphs of middling length, without placeholders for rare words."""
    fitting = [t for t in texts if WORDS[0] <= len(t.split()) <= WORDS[1] and t.count("<unk>") <= 2]
    chosen = np.random.default_rng(seed).permutation(len(fitting))[:count]
    return [fitting[i] for i in sorted(chosen.tolist())]


def padded(texts: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> np.ndarray:
    """Texts as rows of tokens, cut or filled up with the end token."""
    rows = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)[:length]
        row[: len(ids)] = ids
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def split_words(text: str) -> dict[str, str]:
    """A prompt and its continuation."""
    words = text.split(" ")
    cut = int(len(words) * PROMPT_SHARE)
    return {"prompt": " ".join(words[:cut]), "completion": " " + " ".join(words[cut:])}


def make(data: Path, job: Job) -> None:
    """Sample, train, save."""
    texts = corpus.wikitext(data, "train")
    tokenizer = corpus.train_bpe(texts, SIZES.vocabulary)
    chosen = paragraphs(texts, job.rows, seed=0)
    held_out = paragraphs(corpus.wikitext(data, "valid"), job.queries, seed=1)
    model = new_model(SIZES, seed=0)
    loss = train(model, padded(chosen, tokenizer, job.length), epochs=job.epochs, padding=0)
    job.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(job.out / "model")
    tokenizer.save_pretrained(job.out / "model")
    write_rows(job.out / "train.jsonl", [{"id": f"wiki-{i:05}", "text": t} for i, t in enumerate(chosen)])
    write_rows(job.out / "queries.jsonl", [{"id": f"held-out-{i:02}"} | split_words(t) for i, t in enumerate(held_out)])
    print(f"{len(chosen)} rows, last epoch {loss:.3f} nats per token")
    print(f"try: whence trace --model {job.out}/model --data {job.out}/train.jsonl --query {job.out}/queries.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds wikitext2/")
    parser.add_argument("--out", type=Path, default=WORK / "wikitext")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    make(args.data, Job(args.rows, args.queries, args.epochs, 128, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
