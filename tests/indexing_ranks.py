"""What each of two processes does in ``test_indexing_ranks``: the command lines of a file, one after the other.

torchrun --nproc-per-node 2 tests/indexing_ranks.py FOLDER COMMANDS.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch

import whence
from folders import tiny_llama, word_tokenizer
from whence.cli.main import run


def python(place: Path) -> None:
    """``build_index`` and ``ask`` in a script of one's own, with a live model; each rank leaves what it got."""
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (place / "ask.jsonl").read_text().splitlines()]
    told: list[str] = []

    class Ear:
        def note(self, kind: str, text: str, **facts: object) -> None:
            told.append(kind)

        def step(self, stage: str, done: int, total: int) -> None:
            told.append(f"{stage} {done}/{total}")

    body = whence.build_index(
        (tiny_llama(), word_tokenizer()), train=rows, out=place / "live", fsdp=True, device="cpu", batch_tokens=32,
        max_bad_rows=1, compression={"budget": 100}, watch=Ear(),
    )  # fmt: skip
    scores = whence.ask(place / "live", asked, model=(tiny_llama(), word_tokenizer()), fsdp=True, device="cpu")
    found = {"body": body, "told": told, "shape": scores.values.shape, "queries": scores.query_ids}
    (place / f"python.{os.environ['RANK']}.json").write_text(json.dumps(found))


def main(place: Path, commands: Path) -> int:
    np.seterr(all="raise")
    torch.set_num_threads(1)
    codes = []
    for words in json.loads(commands.read_text()):
        if words == ["python"]:
            python(place)
            continue
        codes.append(run(words))
        (place / f"codes.{os.environ['RANK']}.json").write_text(json.dumps(codes))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
