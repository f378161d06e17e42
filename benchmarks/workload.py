"""The shared workload: a small Llama, 1,000 rows of 128 tokens it was trained on, and 32 held-out queries.

4 layers, d = 128, 28 linear layers (q, k, v, o, gate, up, down), vocabulary 2,048, untied head, float32. The model
is trained for a few epochs on the very rows to be attributed, so that gradients are real ones. Written to a folder
in forms that every library can read: a Hugging Face model folder, `rows.npy` / `queries.npy` (integers), and
`rows.jsonl` / `queries.jsonl` (`id`, `input_ids`).

Run: python -m benchmarks.workload [--data ../shared/data]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import corpus

WORK = Path(__file__).resolve().parent / ".work"
BATCH = 32
PEAK_RATE = 2e-3
LINEAR_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sizes:
    """How big the workload is."""

    rows: int = 1000
    queries: int = 32
    length: int = 128
    vocabulary: int = 2048
    layers: int = 4
    width: int = 128
    intermediate: int = 344
    epochs: int = 6


@dataclass(frozen=True)
class Workload:
    """What every runner needs: the model folder and the two integer arrays (rows x tokens)."""

    folder: Path
    rows: np.ndarray
    queries: np.ndarray

    @property
    def model_folder(self) -> Path:
        """The Hugging Face folder."""
        return self.folder / "model"

    def model(self) -> LlamaForCausalLM:
        """The trained model in float32, in eval mode."""
        return LlamaForCausalLM.from_pretrained(self.model_folder, dtype=torch.float32).eval()


def load_workload(folder: Path) -> Workload:
    """Read a saved workload.

    Raises:
        FileNotFoundError: nothing was saved there.
    """
    if not (folder / "workload.json").exists():
        raise FileNotFoundError(f"no workload in {folder}; make one: python -m benchmarks.workload")
    return Workload(folder, np.load(folder / "rows.npy"), np.load(folder / "queries.npy"))


def linear_layers(model: torch.nn.Module) -> list[str]:
    """Names of the attributed layers: every linear map in the blocks, not the vocabulary head."""
    return [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in LINEAR_NAMES]


def new_model(sizes: Sizes, *, seed: int) -> LlamaForCausalLM:
    """An untrained model of the given sizes."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max(4096, sizes.length),
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def summed_loss(model: torch.nn.Module, tokens: torch.Tensor, *, padding: int = -100) -> torch.Tensor:
    """Next-token loss of a batch (B x T integers), summed over examples and tokens but padding, in nats."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=padding)


def train(model: LlamaForCausalLM, rows: np.ndarray, *, epochs: int, padding: int = -100) -> float:
    """Train on the rows, shuffled each epoch, AdamW with a one-cycle rate; returns the last epoch's loss per token.

    Tokens equal to `padding` carry no loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    batches = -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * batches)
    shuffle = np.random.default_rng(0)
    per_token = 0.0
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in np.array_split(shuffle.permutation(len(rows)), batches):
            loss = summed_loss(model, torch.from_numpy(rows[chosen]), padding=padding)
            (loss / (rows[chosen, 1:] != padding).sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item()
        per_token = total / float((rows[:, 1:] != padding).sum())
        print(f"epoch {epoch + 1}/{epochs}: {per_token:.3f} nats per token", flush=True)
    model.eval()
    return per_token


def tokens_of(data: Path | None, sizes: Sizes) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, rows and queries from WikiText-2, or synthetic ones without data."""
    shape, query_shape = (sizes.rows, sizes.length), (sizes.queries, sizes.length)
    if data is None:
        rows, queries = (corpus.synthetic(s, sizes.vocabulary, seed=i) for i, s in enumerate((shape, query_shape)))
        return corpus.word_list(sizes.vocabulary), rows, queries
    train_texts = corpus.wikitext(data, "train")
    tokenizer = corpus.train_bpe(train_texts, sizes.vocabulary)
    queries = corpus.packed(corpus.wikitext(data, "valid"), tokenizer, query_shape)
    return tokenizer, corpus.packed(train_texts, tokenizer, shape), queries


def write_tokens(folder: Path, name: str, tokens: np.ndarray) -> None:
    """Save tokens as an array and as JSON lines with ids."""
    np.save(folder / f"{name}.npy", tokens)
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as out:
        for i, row in enumerate(tokens.tolist()):
            out.write(json.dumps({"id": f"{name}:{i}", "input_ids": row}) + "\n")


def build(folder: Path, data: Path | None, sizes: Sizes) -> None:
    """Make the tokens, train the model, and save everything; the description, written last, marks completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, rows, queries = tokens_of(data, sizes)
    write_tokens(folder, "rows", rows)
    write_tokens(folder, "queries", queries)
    model = new_model(sizes, seed=0)
    loss = train(model, rows, epochs=sizes.epochs)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    about = {
        "source": "synthetic" if data is None else "WikiText-2",
        "sizes": vars(sizes),
        "train_loss_per_token": round(loss, 4),
        "tokens_sha256": hashlib.sha256(rows.tobytes() + queries.tobytes()).hexdigest(),
    }
    (folder / "workload.json").write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(about))


def opened(folder: Path, data: Path | None) -> Workload:
    """The saved workload; made first when there is none."""
    if not (folder / "workload.json").exists():
        build(folder, data, Sizes())
    return load_workload(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds wikitext2/; without it, synthetic tokens")
    parser.add_argument("--out", type=Path, default=WORK / "workload")
    parser.add_argument("--rows", type=int, default=Sizes.rows)
    parser.add_argument("--queries", type=int, default=Sizes.queries)
    args = parser.parse_args()
    build(args.out, args.data, Sizes(rows=args.rows, queries=args.queries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
