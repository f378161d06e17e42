"""Train a small BERT-shaped sentiment classifier on rt_polarity (film review sentences) from scratch, in a few minutes.

Writes a Hugging Face folder `model/` (with its tokenizer), `train.jsonl` and `queries.jsonl` (`id`, `text`, `label`),
so that `whence trace` can be tried on a sequence classifier.

Run: python -m benchmarks.train_classifier --data ../shared/data --out benchmarks/.work/classifier
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.workload import WORK

LABELS = ("negative", "positive")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LENGTH = 56
BATCH = 32
PEAK_RATE = 5e-4
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Set:
    """Encoded rows: integers N x T, mask N x T, labels N."""

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor

    def batch(self, chosen: Sequence[int] | np.ndarray) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward, cut to the longest row."""
        index = torch.as_tensor(np.asarray(chosen))
        width = int(self.mask[index].sum(1).max())
        parts = {"input_ids": self.ids[index, :width], "attention_mask": self.mask[index, :width]}
        return parts | {"labels": self.labels[index]}


def read_rows(data: Path, split: str) -> Rows:
    """Rows with id, text and the label's name.

    Raises:
        FileNotFoundError: no rt_polarity under that folder.
    """
    folder = data / "rt_polarity"
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    if not plain.exists() and not packed.exists():
        raise FileNotFoundError(f"no {split}.jsonl(.gz) in {folder}; --data wants the folder that holds rt_polarity/")
    text = plain.read_text(encoding="utf-8") if plain.exists() else gzip.decompress(packed.read_bytes()).decode()
    found = [json.loads(line) for line in text.split("\n") if line]
    return [
        {"id": f"rt-{split}-{i:05}", "text": r["sentence"], "label": LABELS[r["label"]]} for i, r in enumerate(found)
    ]


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """WordPiece in BERT's manner: [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **names)


def encode(rows: Rows, tokenizer: PreTrainedTokenizerFast) -> Set:
    """All rows at once, cut and padded to one length."""
    texts = [row["text"] for row in rows]
    found = tokenizer(texts, truncation=True, padding="max_length", max_length=LENGTH, return_tensors="pt")
    labels = torch.tensor([LABELS.index(row["label"]) for row in rows])
    return Set(found["input_ids"], found["attention_mask"], labels)


def new_model(vocabulary: int) -> BertForSequenceClassification:
    """Two layers, d = 128, much dropout: ten thousand sentences overfit soon."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
        label2id={name: i for i, name in enumerate(LABELS)},
        id2label=dict(enumerate(LABELS)),
    )
    return BertForSequenceClassification(config)


def accuracy(model: BertForSequenceClassification, rows: Set) -> float:
    """Share of rows whose label is the likelier one."""
    model.eval()
    right = 0
    with torch.no_grad():
        for chosen in np.array_split(np.arange(len(rows.labels)), -(-len(rows.labels) // 100)):
            batch = rows.batch(chosen)
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(rows.labels)


def train(model: BertForSequenceClassification, rows: Set, test: Set, *, epochs: int) -> float:
    """Train and return the test accuracy after the last epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05)
    batches = -(-len(rows.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=epochs * batches)
    shuffle, reached = np.random.default_rng(0), 0.0
    sample = Set(rows.ids[:1000], rows.mask[:1000], rows.labels[:1000])
    for epoch in range(epochs):
        model.train()
        for chosen in np.array_split(shuffle.permutation(len(rows.labels)), batches):
            model(**rows.batch(chosen)).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        reached = accuracy(model, test)
        print(f"epoch {epoch + 1}/{epochs}: {accuracy(model, sample):.1%} train, {reached:.1%} test", flush=True)
    return reached


def write_rows(path: Path, rows: Rows) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds rt_polarity/")
    parser.add_argument("--out", type=Path, default=WORK / "classifier")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--queries", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, test = read_rows(args.data, "train"), read_rows(args.data, "test")
    tokenizer = train_tokenizer([row["text"] for row in rows], 6000)
    model = new_model(len(tokenizer))
    reached = train(model, encode(rows, tokenizer), encode(test, tokenizer), epochs=args.epochs)
    args.out.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(args.out / "model")
    tokenizer.save_pretrained(args.out / "model")
    write_rows(args.out / "train.jsonl", rows)
    write_rows(args.out / "queries.jsonl", test[: args.queries])
    print(f"test accuracy {reached:.1%} (chance 50%)")
    print(f"try: whence trace {args.out}/model --train {args.out}/train.jsonl --query {args.out}/queries.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main())
