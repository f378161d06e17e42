"""Properties that are counted here rather than by a test: each gives an ``Outcome``."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import whence
from folders import animal_rows, tiny_llama, word_tokenizer, write_rows
from fuzz import loader
from scorecard.outcome import Outcome, counted, not_run
from whence.evaluate.statistics import recall_at, spearman

ROOT = Path(__file__).resolve().parent.parent
SHM = Path("/dev/shm")
QUESTION = [
    {"prompt": "the cat sat", "completion": " on the mat ."},
    {"prompt": "the dog", "completion": " ran over it ."},
]
ROWS, TOP = 32, 20
POISON: Mapping[str, Callable[[str], Any]] = {
    "invalid JSON": lambda id_: f'{{"id": "{id_}", "text": ',
    "empty text": lambda id_: {"id": id_, "text": ""},
    "one token": lambda id_: {"id": id_, "text": "."},
    "null text": lambda id_: {"id": id_, "text": None},
    "a number for text": lambda id_: {"id": id_, "text": 5},
    "half a character": lambda id_: f'{{"id": "{id_}", "text": "\\ud800"}}',
}


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder in memory where there is one."""
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as place:
        yield Path(place)


def rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows with ids of their own."""
    return [{"id": f"row-{n}", **row} for n, row in enumerate(animal_rows(count))]


def distinct(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows of which no two have one text: equal scores have no ranks to keep."""
    texts = [
        f"the {animal} {verb} {where} the {place}" + " ." * (n % 4)
        for n, (animal, verb, where, place) in enumerate(
            product(("cat", "dog", "bird"), ("sat", "ran"), ("on", "under", "over"), ("mat", "log"))
        )
    ]
    return [{"id": f"row-{n}", "text": text} for n, text in enumerate(texts[:count])]


def scores(data: Any, *, dtype: torch.dtype = torch.float32, **options: Any) -> whence.Scores:
    """Of the small model."""
    settings = {"fit_rows": "all", "tokens": 0, "lexical": False, "max_bad_rows": 5, **options}
    return whence.attribute((tiny_llama().to(dtype), word_tokenizer()), train=data, query=QUESTION, **settings)


def fuzz(cases: int) -> Outcome:
    """R7."""
    with scratch() as place:
        tally = loader.run(cases, place)
    said = f"{len(tally.escapes)} escapes in {tally.tried:,} cases; slowest {tally.slowest:.2f} CPU s"
    said += f", memory +{tally.grown_mb:.0f} MB"
    facts = {"families": tally.families, "escapes": tally.escapes}
    return counted(said, tally.tried, len(tally.escapes), facts=facts)


def poisoned_rows(step: int) -> Outcome:
    """R8: one unusable row at every place; the others' scores to the bit as if it had never been there."""
    failed: list[str] = []
    tried = 0
    with scratch() as place:
        for k in range(0, ROWS, step):
            clean = [row for n, row in enumerate(rows()) if n != k]
            truth = scores(str(write_rows(place / "clean.jsonl", clean)))
            for name, make in POISON.items():
                data = list(rows())
                data[k] = make(f"row-{k}")
                found = scores(str(write_rows(place / "bad.jsonl", data)))
                kept = [n for n in range(ROWS) if n != k]
                same = np.array_equal(found.values[:, kept], truth.values) and np.isnan(found.values[:, k]).all()
                tried += 1
                if not same:
                    failed.append(f"{name} at {k}")
    return counted(f"{tried - len(failed)} of {tried} bitwise equal", tried, len(failed), facts={"failed": failed})


def invariance() -> Outcome:
    """R10: other batches, another order, another number of threads."""
    found: dict[str, dict[str, float]] = {}
    failed = tried = 0
    limits = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for method in ("identity", "ekfac"):
            truth = scores(distinct(), dtype=dtype, method=method)
            worst, rank, overlap = 0.0, 1.0, 1.0
            for changed in _changed(dtype, method):
                order = [changed.train_ids.index(id_) for id_ in truth.train_ids]
                values = changed.values[:, order]
                worst = max(worst, float(np.abs(values - truth.values).max() / np.abs(truth.values).max()))
                rank = min(rank, float(np.min(spearman(truth.values, values))))
                overlap = min(overlap, _overlap(truth.values, values))
                tried += 1
            found[f"{name} {method}"] = {"relative_error": worst, "lowest_spearman": rank, "overlap": overlap}
            same_order = overlap >= 0.95 if dtype is torch.bfloat16 else rank >= 0.9999
            failed += (method == "identity" and worst > limits[name]) or not same_order
    said = "; ".join(
        f"{k}: {v['relative_error']:.1e}, Spearman {v['lowest_spearman']:.5f}, top {TOP} {v['overlap']:.2f}"
        for k, v in found.items()
    )
    return counted(said, tried, failed, facts={"largest": found})


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Of the strongest proponents; the smallest over the questions."""
    strongest = [{*row.tolist()} for row in np.argsort(-first)[:, :TOP]]
    return float(recall_at(second, strongest, TOP).min())


def _changed(dtype: torch.dtype, method: str) -> Iterator[whence.Scores]:
    for tokens in (1, 24, 64, 10_000):
        yield scores(distinct(), dtype=dtype, method=method, batch_tokens=tokens)
    yield scores(distinct()[::-1], dtype=dtype, method=method)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield scores(distinct(), dtype=dtype, method=method)
    torch.set_num_threads(threads)


TINY = """
import json, os, sys
from whence.store.provenance import peak_memory_bytes
from whence.tasks.rows import read_rows
before, files = peak_memory_bytes(), len(os.listdir("/proc/self/fd"))
found = read_rows(sys.argv[1])
print(json.dumps({"rows": len(found), "grown_mb": (peak_memory_bytes() - before) / 1e6,
                  "open": len(os.listdir("/proc/self/fd")) - files}))
"""


def many_tiny_rows(count: int) -> Outcome:
    """R17: memory of very many short rows, and what stays open."""
    with scratch() as place:
        path = place / "tiny.jsonl"
        with path.open("w") as out:
            out.writelines(f'{{"text": "row {n}"}}\n' for n in range(count))
        done = subprocess.run([sys.executable, "-c", TINY, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        return counted(done.stderr[-200:], 1, 1)
    seen = json.loads(done.stdout)
    failed = seen["rows"] != count or seen["grown_mb"] > 400 or seen["open"] > 0
    return counted(
        f"{count:,} tiny rows: +{seen['grown_mb']:.0f} MB, {seen['open']} files left open", 1, int(failed), facts=seen
    )


def estimates(recorded: Path | None) -> Outcome:
    """R18: the last comparison of plans with jobs (``python -m benchmarks.plan_accuracy --json FILE``)."""
    if recorded is None or not recorded.is_file():
        return not_run("python -m benchmarks.plan_accuracy --json FILE, then --plans FILE")
    body = json.loads(recorded.read_text())
    met = [ok for shape in body["shapes"] for ok in shape["met"].values()]
    parts = []
    for shape in body["shapes"]:
        ratio = shape["planned_over_real"]
        parts.append(f"{shape['shape']}: " + ", ".join(f"{k} {ratio[k]:.2f}" for k in ("disk", "memory", "cpu")))
    said = "planned / real, " + "; ".join(parts)
    missing = "" if len(body["shapes"]) >= 3 else f"only {len(body['shapes'])} of three shapes"
    return counted(said, len(met), met.count(False), missing=missing, facts=body)


def messages(golden: Path, *, rewrite: bool = False) -> Outcome:
    """R21: each fault's message has a place or a value, a cause and a next step, in at most 12 lines; as reviewed."""
    found = dict(_messages())
    if rewrite:
        golden.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    reviewed = json.loads(golden.read_text()) if golden.is_file() else {}
    wrong = []
    for name, text in found.items():
        advice = "  wanted: " in text or "  try: " in text
        if text.count("\n") > 11 or not advice or "Traceback" in text or reviewed.get(name) != text:
            wrong.append(name)
    return counted(
        f"{len(found) - len(wrong)} of {len(found)} as reviewed", len(found), len(wrong), facts={"wrong": wrong}
    )


def _messages() -> Iterator[tuple[str, str]]:
    with scratch() as place:

        def said(work: Callable[[], Any]) -> str:
            try:
                work()
            except whence.WhenceError as error:
                return str(error).replace(str(place), "PLACE")
            return "nothing was said"

        for name, make in POISON.items():
            data = [make("a"), make("b"), {"id": "c", "text": "the cat sat"}]
            yield name, said(lambda data=data: scores(str(write_rows(place / "rows.jsonl", data)), max_bad_rows=0.01))
        good = str(write_rows(place / "good.jsonl", rows()))
        (place / "empty.jsonl").write_text("")
        (place / "utf16.jsonl").write_bytes('{"text": "x"}'.encode("utf-16"))
        (place / "bad.parquet").write_bytes(b"PAR1 nothing PAR1")
        for name in ("empty.jsonl", "utf16.jsonl", "bad.parquet", "nowhere.jsonl"):
            yield name, said(lambda name=name: scores(str(place / name)))
        for name, options in {
            "unknown method": {"method": "ekfak"}, "zero damping": {"damping": "relative:0"},
            "unknown option": {"dampning": 1}, "layers": {"layers": "*.nothing.*"},
            "a column": {"columns": {"text": "body"}},
            "a span": {"span": "9:3"}, "too few rows": {"fit_rows": 1}, "task": {"task": "causal"},
        }.items():  # fmt: skip
            yield name, said(lambda options=options: scores(good, **options))
        yield "no run there", said(lambda: whence.load(place / "nothing"))
        yield "no model there", said(lambda: whence.attribute(str(place / "model"), train=good, query=QUESTION))
