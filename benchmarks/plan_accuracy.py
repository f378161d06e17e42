"""Is `whence plan` right? Three shapes of model and data: the plan, then the job in a fresh process, and both compared.

Shapes: a small deep-ish Llama on rows of very different lengths with questions (a trace), a wider GPT-2 on even rows
(an index), and a narrow Llama with many short rows and many questions (a trace with a fixed number of fit rows).
Models are made from configurations, rows from a seeded generator. Each plan and each job is a process of its own with
one thread.

Time is compared in CPU seconds, which say what the work costs whoever else is on the machine, and in wall clock. The
job's and the plan's runs alternate, and medians over the rounds are compared: CPU seconds of the very same work drift
by a fifth here within minutes.

Bars: disk within 10 %, peak memory within 20 %, time within 25 %.

Run: python -m benchmarks.plan_accuracy [--rounds 3] [--only deep,wide,many] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whence.store.provenance import environment

BARS = {"disk": 0.10, "memory": 0.20, "time": 0.25}
WORDS = 2000
CHILD = """
import json, sys, time
from whence.cli.main import run
started = time.perf_counter()
code = run(sys.argv[1:])
from whence.store.provenance import peak_memory_bytes
sys.stderr.write("MEASURED " + json.dumps({
    "code": code, "cpu_seconds": time.process_time(), "seconds": time.perf_counter() - started,
    "peak_bytes": peak_memory_bytes()}) + "\\n")
"""


@dataclass(frozen=True)
class Shape:
    """One model with its rows and the job to plan.

    Attributes:
        config: sizes of the model.
        rows: how many.
        lengths: shortest and longest, in words.
        questions: 0 plans an index.
        flags: of the job.
    """

    config: dict[str, Any]
    rows: int
    lengths: tuple[int, int]
    questions: int
    flags: Sequence[str] = field(default_factory=tuple)


SHAPES = {
    "deep": Shape({"kind": "llama", "width": 96, "layers": 4}, 500, (12, 160), 4),
    "wide": Shape({"kind": "gpt2", "width": 256, "layers": 2}, 320, (70, 110), 0, ("--budget", "8")),
    "many": Shape({"kind": "llama", "width": 64, "layers": 4}, 1500, (10, 40), 24, ("--fit-rows", "600")),
}


def make_model(folder: Path, config: dict[str, Any]) -> None:
    """A model with random weights and a tokenizer of made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    width, layers = config["width"], config["layers"]
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<pad>", *(f"w{n}" for n in range(WORDS))])}
    if config["kind"] == "llama":
        shape = LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=1,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model: Any = LlamaForCausalLM(shape)
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(vocabulary),
                n_embd=width,
                n_layer=layers,
                n_head=4,
                n_positions=512,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    model.save_pretrained(folder)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", model_max_length=512
    ).save_pretrained(folder)


def write_rows(path: Path, count: int, lengths: tuple[int, int], *, seed: int) -> None:
    """Rows of Zipf-like words, most of them short."""
    drawn = random.Random(seed)
    words = [f"w{n}" for n in range(WORDS)]
    weights = [1 / (n + 1) for n in range(WORDS)]
    low, high = lengths
    with path.open("w") as out:
        for _ in range(count):
            length = low + int((high - low) * drawn.random() ** 2)
            out.write(json.dumps({"text": " ".join(drawn.choices(words, weights, k=length))}) + "\n")


def measured(arguments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """A command in a fresh process: what it took, and its standard output."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", CHILD, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    line = next((x for x in done.stderr.splitlines() if x.startswith("MEASURED ")), None)
    if line is None or json.loads(line.partition(" ")[2])["code"]:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stderr[-2000:]}")
    return json.loads(line.partition(" ")[2]), done.stdout


def one_round(shape: Shape, place: Path, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plan, then job."""
    out = str(place / f"out-{number}")
    common = ["--model", str(place / "model"), "--data", str(place / "rows.jsonl"), "-o", out]
    common += ["--query", str(place / "questions.jsonl")] if shape.questions else []
    took, said = measured(["plan", *common, *shape.flags, "--json"])
    plan = next(record for line in said.splitlines() if (record := json.loads(line))["type"] == "plan")
    job, _ = measured(["trace" if shape.questions else "index", *common, *shape.flags, "--quiet"])
    disk = sum(p.stat().st_size for p in Path(out).iterdir() if p.is_file())
    planned = {
        "disk": plan["disk"]["bytes"], "memory": plan["peak_bytes"],
        "cpu": plan["cpu_seconds"], "wall": plan["seconds"],
        "took": took["seconds"], "took_cpu": took["cpu_seconds"],
        "stages": {step["name"]: [step["rows"], step["cpu_seconds"]] for step in plan["stages"]},
    }  # fmt: skip
    return planned, {
        "disk": disk, "memory": job["peak_bytes"], "cpu": job["cpu_seconds"], "wall": job["seconds"],
        "about": _stages(Path(out)),
    }  # fmt: skip


def _stages(out: Path) -> dict[str, Any]:
    """What the job says of itself: rows of the fit and seconds by part."""
    for name in ("run.json", "index.json"):
        if (out / name).is_file():
            about = json.loads((out / name).read_text())["about"]
            return {"fit": about.get("fit"), "seconds": about.get("seconds")}
    return {}


def compare(name: str, shape: Shape, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, planned over measured."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_model(place / "model", shape.config)
        write_rows(place / "rows.jsonl", shape.rows, shape.lengths, seed=0)
        write_rows(place / "questions.jsonl", max(1, shape.questions), shape.lengths, seed=1)
        pairs = []
        for number in range(rounds):
            pairs.append(one_round(shape, place, number))
            print(json.dumps({"shape": name, "round": number, "plan": pairs[-1][0], "job": pairs[-1][1]}), flush=True)

    def ratio(key: str) -> float:
        planned, real = (statistics.median(pair[side][key] for pair in pairs) for side in (0, 1))
        return planned / real

    found = {key: ratio(key) for key in ("disk", "memory", "cpu", "wall")}
    limits = {"disk": BARS["disk"], "memory": BARS["memory"], "cpu": BARS["time"]}
    met = {key: abs(found[key] - 1) <= limit for key, limit in limits.items()}
    took = statistics.median(pair[0]["took"] for pair in pairs)
    job = {key: statistics.median(pair[1][key] for pair in pairs) for key in ("disk", "memory", "cpu", "wall")}
    return {
        "shape": name,
        "planned_over_real": found,
        "met": met,
        "plan_took_seconds": took,
        "job": job,
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SHAPES))
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    results = [compare(name, SHAPES[name], given.rounds) for name in given.only.split(",")]
    for result in results:
        ratios = ", ".join(f"{key} {value:.2f}" for key, value in result["planned_over_real"].items())
        verdict = "met" if all(result["met"].values()) else "MISSED"
        print(
            f"{result['shape']:<6} planned / real: {ratios}; "
            f"the plan took {result['plan_took_seconds']:.0f} s; {verdict}"
        )
    met = all(all(result["met"].values()) for result in results)
    print(f"bars {BARS} (time in CPU seconds): {'met' if met else 'MISSED'}")
    if given.json:
        body = {"bars": BARS, "shapes": results, "machine": environment(threads=1)}
        given.json.write_text(json.dumps(body, indent=1) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
