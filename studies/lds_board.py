"""C10: which scores predict what fine-tuning on a subset does? (Grosse et al. 2023; Bae et al. 2024; Bergson's board.)

    python studies/lds_board.py --data DATA        # DATA/stories260K (tokenizer), DATA/wikitext2

A small Llama (2 layers, width 64, the 512 pieces of stories260K) is trained on WikiText-2, then fine-tuned on 512
further passages, once on all of them and many times on random halves, two seeds each. The linear datamodelling score
(LDS) of a method is the rank correlation over halves, per held-out passage, of the loss measured with the loss
predicted by summed scores. All methods are judged on one bank, so differences are paired.
"""

from __future__ import annotations

import gzip
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from whence.curvature.implied import implied_damping
from whence.evaluate.bank import Plan, open_bank, train_members
from whence.evaluate.contenders import Contest, contenders
from whence.evaluate.lds import Board, board, lds_outcome
from whence.evaluate.statistics import spearman
from whence.evaluate.trainers import BatchedTrainer, Recipe, from_checkpoint
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.store.atomic import plain
from whence.tasks.base import Example
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM

# everything projected is at 16 numbers per side and layer, as the peers ship it
PROJECTED = ("logra:size=16", "trackstar:size=16", "projected:size=16", "trak:size=16")
FEWER, DAMPED = "trak:size=4", "trak:size=16@relative:10"  # TRAK has one matrix over all layers: see ``interpolated``
# 3 steps on all rows: each further one costs as much as the other methods together. Its damping is measured: the pull
# that this fine-tuning implies where it stopped. ``TENFOLD`` is the constant of EVIDENCE A11.
QUALITY = "ekfac_cg:steps=3@implied"
TENFOLD = "ekfac_cg:steps=3@relative:10"
UNDERDAMPED = "ekfac_cg:steps=3"  # the same solve at EK-FAC's own damping
METHODS = (
    QUALITY, TENFOLD, UNDERDAMPED, "ekfac", "ekfac@implied", "ekfac@relative:1", "ekfac@relative:10", "relative:ekfac",
    "shampoo", "kfac", "diagonal", "datainf", "dot", "cosine", *PROJECTED, FEWER, DAMPED, "bm25", "tfidf", "embedding",
    "activation", "gradient_norm", "loss", "length", "random", "shuffled:ekfac",
)  # fmt: skip
CHARACTERS = 6  # of text read per token wanted: a token has two and a half


DESCRIPTION = (
    "A Llama of 2 layers and width 64 (the 512 pieces of stories260K) is trained on {base_passages:,} passages of "
    "WikiText-2, {tokens} tokens each, then fine-tuned on {rows} further ones for {epochs:g} epochs (AdamW, rate "
    "{rate:g}, linear decay to 0, {batch} passages a step). The bank holds {subsets} random halves of these rows x "
    "{seeds} seeds. Scores are taken at the model fine-tuned on all rows; curvature at damping {damping}. Everybody "
    "predicts the losses of the same {questions} held-out passages."
)
DIFFERS = (
    "Differences from the boards this follows: the models and texts are tiny (GPT-2 and 4,608 x 512 tokens in "
    "Bergson's, 500 retrainings in kronfluence's), everything moves in training but scores follow the linear maps "
    "only, TRAK has one model instead of many, and projected methods have 16 numbers per side and layer. The shared "
    "base makes the problem kinder to influence functions than training from scratch. Values depend on the recipe more "
    "than on the method: only the order within this page means anything."
)


@dataclass(frozen=True)
class Config:
    base: str = "wikitext"  # or stories260K: the trained model itself, fine-tuned on old children's books
    base_passages: int = 16000
    base_rate: float = 3e-3
    rows: int = 512
    questions: int = 32
    tokens: int = 64
    subsets: int = 64
    seeds: int = 2
    epochs: float = 3.0
    batch: int = 16
    rate: float = 3e-4
    decay: float = 0.01
    damping: str = "relative:0.1"
    at_once: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Passages:
    """Training rows and questions: fixed numbers of tokens, never of the same passage, and their texts."""

    rows: Sequence[Example]
    questions: Sequence[Example]
    others: Sequence[Example]
    texts: tuple[tuple[str, ...], tuple[str, ...]]


def pieces(config: Config, data: Path, tokenizer: Any) -> np.ndarray:
    """All passages, P x T token ids: of WikiText-2, or of the books."""
    if config.base == "wikitext":
        texts = [gzip.decompress((data / "wikitext2" / "train.txt.gz").read_bytes()).decode("utf-8")]
        wanted = (config.base_passages + config.rows + config.questions) * config.tokens
        texts = [texts[0][: wanted * CHARACTERS]]
    else:
        books = sorted((data / "childrens_books").glob("*.txt.gz"))
        texts = [gzip.decompress(path.read_bytes()).decode("utf-8") for path in books]
    found = []
    for text in texts:
        ids = tokenizer(" ".join(text.split()), add_special_tokens=False)["input_ids"]
        found += [ids[n : n + config.tokens] for n in range(0, len(ids) - config.tokens, config.tokens)]
    return np.array(found)[np.random.default_rng(config.seed).permutation(len(found))]


def passages(config: Config, data: Path, tokenizer: Any) -> Passages:
    """Passages in seeded order: the first are rows, the next questions, the others for the base."""
    chosen, cut = pieces(config, data, tokenizer), config.rows
    texts = tuple(tokenizer.decode(ids) for ids in chosen[: cut + config.questions])
    made = [
        Example(f"{'r' if n < cut else 'q'}{n}", {"input_ids": ids}, ids.copy(), len(ids), len(ids) - 1)
        for n, ids in enumerate(chosen[: cut + config.questions + config.base_passages])
    ]
    last = cut + config.questions
    return Passages(made[:cut], made[cut:last], made[last:], (texts[:cut], texts[cut:]))


def base_of(config: Config, data: Path, found: Passages) -> torch.nn.Module:
    """The model that every fine-tuning starts from."""
    if config.base != "wikitext":
        return AutoModelForCausalLM.from_pretrained(data / "stories260K", dtype=torch.float32)
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
    )
    torch.manual_seed(config.seed)
    recipe = Recipe(rate=config.base_rate, epochs=1, batch=32, weight_decay=0.1, warm_up=50, schedule="cosine", clip=1)
    fresh = from_checkpoint(LlamaForCausalLM(shape))
    trainer = BatchedTrainer(fresh, CausalLM(None), found.others, found.questions, recipe, at_once=1)
    return trainer.models(np.ones((1, len(found.others)), dtype=bool), [0])[0]


def trainer_of(config: Config, data: Path, found: Passages) -> BatchedTrainer:
    """Fine-tuning of the base."""
    start = from_checkpoint(base_of(config, data, found))
    recipe = Recipe(rate=config.rate, epochs=config.epochs, batch=config.batch, weight_decay=config.decay)
    return BatchedTrainer(start, CausalLM(None), found.rows, found.questions, recipe, at_once=config.at_once)


def scored(config: Config, trainer: BatchedTrainer, found: Passages, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Scores at the model fine-tuned on all rows."""
    model = trainer.models(np.ones((1, config.rows), dtype=bool), [0])[0]
    layers = find_layers(model)

    def source(examples: Sequence[Example]) -> LiveGradients:
        plan = plan_batches([e.length for e in examples], token_budget=4096)
        return LiveGradients(model, trainer.task, examples, plan, layers)

    row_texts, query_texts = found.texts
    implied = implied_damping(source(found.rows), trainer.start(0))
    contest = Contest(config.damping, seed=config.seed, query_texts=query_texts, row_texts=row_texts, implied=implied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # solves that stop at their step limit are part of what is compared
        return contenders(names, source(found.rows), source(found.questions), contest)


def run(config: Config, data: Path, bank_folder: Path | None = None, names: Sequence[str] = METHODS) -> dict[str, Any]:
    """Train the bank (or what is missing of it), score with everybody, judge."""
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260K")
    found = passages(config, data, tokenizer)
    trainer = trainer_of(config, data, found)
    ids = [e.id for e in found.rows], [e.id for e in found.questions]
    plan = Plan(config.rows, config.subsets, repeats=config.seeds, seed=config.seed)
    bank = open_bank(bank_folder, plan, trainer, train_ids=ids[0], query_ids=ids[1])
    seconds = {}
    started = time.perf_counter()
    trained = train_members(bank, trainer, lambda done, of: print(f"{done} of {of} models", flush=True))
    seconds["bank"], started = time.perf_counter() - started, time.perf_counter()
    scores = scored(config, trainer, found, names)
    seconds["scores"], started = time.perf_counter() - started, time.perf_counter()
    judged = board(scores, plan.kept_MN, bank.losses_MRQ)
    seconds["bootstrap"] = time.perf_counter() - started
    return {"board": judged, "trained": trained, "seconds": seconds, "losses": bank.losses_MRQ, "scores": scores}


def bars(found: Board) -> dict[str, Any]:
    """What was promised: each order with its paired difference, and whether it holds, is clear, or is reversed."""
    names = {s.name for s in found.standings}
    checked = {}
    order = ((QUALITY, "ekfac"), ("ekfac", "kfac"))
    above = [("ekfac", name) for name in ("dot", "cosine", *PROJECTED)]
    for wanted, pairs in (("at least", order), ("clearly above", above)):
        for first, second in pairs:
            if {first, second} <= names:
                each = found.paired(first, second)
                verdict = "clear" if each.low > 0 else "reversed" if each.high < 0 else "not told apart"
                holds = each.mean >= 0 if wanted == "at least" else each.low > 0
                checked[f"{first} {wanted} {second}"] = {**vars(each), "verdict": verdict, "holds": bool(holds)}
    return checked


def nearness(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean over questions of each method's rank correlation with the quality mode's scores."""
    best = scores[QUALITY]
    return {name: float(np.nanmean(spearman(values, best))) for name, values in scores.items() if name != QUALITY}


def damped(found: Board) -> str:
    """What damping does to the quality mode, from this board."""
    said = []
    for other in (TENFOLD, UNDERDAMPED):
        if other in {s.name for s in found.standings}:
            each, value = found.paired(QUALITY, other), found[other].interval.mean
            said.append(f"`{other}` {value:.3f}, {-each.mean:+.3f} ({-each.high:+.3f} to {-each.low:+.3f})")
    if not said:
        return ""
    return (
        f"Damping of the solve: `{QUALITY}` has {found[QUALITY].interval.mean:.3f}; {'; '.join(said)}. `implied` is "
        "measured from the base and the fine-tuned model alone, without any retraining: the pull towards the start "
        "that makes the fine-tuned model a minimum (`whence.curvature.implied`). Along flat directions of the whole "
        "matrix the exact solve divides by little more than the damping, while so short a training hardly moves there: "
        "it needs more damping than EK-FAC, whose eigenvalues are averages and spread more evenly."
    )


def interpolated(found: Board) -> str:
    """Why TRAK with many numbers has nothing to say here, from this board."""
    values = {s.name: s.interval.mean for s in found.standings}
    if not {"trak:size=16", FEWER, DAMPED} <= set(values):
        return ""
    return (
        "TRAK inverts one matrix over all layers, and 16 x 16 numbers in each of 14 layers are 3,584, seven times the "
        f"rows: hardly damped, it fits every row exactly and says nothing about others ({values['trak:size=16']:.3f}). "
        f"With fewer numbers than rows (`{FEWER}`: 224) it has {values[FEWER]:.3f}, damped as a matrix of so low a "
        f"rank needs (`{DAMPED}`) {values[DAMPED]:.3f}. LoGra's matrices are one per layer, 256 numbers each.\n\n"
    )


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    found: Board = result["board"]
    outcome = lds_outcome(found, reference="ekfac")
    checked, near = bars(found), nearness(result["scores"])
    record = plain({"bars": checked, "nearness": near, **outcome.values, "seconds": result["seconds"], "about": about})
    failed = [name for name, each in checked.items() if not each["holds"]]
    said = [
        f"{name}: {each['mean']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f}), {each['verdict']}"
        for name, each in checked.items()
    ]
    verdict = (
        "**Every order that was expected comes out.**" if not failed else f"**Not as expected: {', '.join(failed)}.**"
    )
    text = (
        "# Which scores predict fine-tuning on a subset\n\n"
        f"{DESCRIPTION.format(**vars(config))} {result['trained']} of the models were trained in this run"
        f"{'.' if result['trained'] == config.subsets * config.seeds else ', the others were in its bank.'}\n\n"
        + _page.table(outcome.columns, [(f"`{row[0]}`", *row[1:]) for row in outcome.rows])
        + "\n\n"
        + " ".join(outcome.words)
        + f"\n\n{verdict} Paired differences with 95 % intervals:\n\n"
        + "\n".join(f"- {line}" for line in said)
        + "\n\n"
        + f"{damped(found)}\n\nRow by row, the scores of `ekfac` rank as those of `{QUALITY}` do to "
        + f"{near['ekfac']:.3f} (Spearman, mean over questions), those of `kfac` to {near['kfac']:.3f}, of `dot` to "
        + f"{near['dot']:.3f}.\n\n"
        + interpolated(found)
        + DIFFERS.format(**vars(config))
    )
    x = list(range(1, len(found.standings) + 1))
    ends = [s.interval for s in found.standings]
    lines = [_page.Line("LDS", x, [e.mean for e in ends], [(e.high - e.low) / 2 for e in ends])]
    if found.ceiling is not None:
        lines.append(_page.Line("noise ceiling", x, [found.ceiling.best.mean] * len(x)))
    _page.write(
        folder, "lds_board", text=text, lines=lines, axes=("methods, in the order of the table", "LDS"), record=record
    )
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", subsets=Config.subsets, seeds=Config.seeds, seed=Config.seed, bank="")
    torch.set_num_threads(1)
    config = replace(Config(), subsets=given.subsets, seeds=given.seeds, seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data, Path(given.bank) if given.bank else None)
    page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print((given.docs / "lds_board.md").read_text())


if __name__ == "__main__":
    main()
