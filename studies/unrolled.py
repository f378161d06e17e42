"""C11: how well does the exact metagradient predict retraining? (MAGIC: Ilyas & Engstrom 2025; Bergson's board.)

    python studies/unrolled.py --data DATA        # DATA/stories260K (tokenizer), DATA/wikitext2

The small Llama of the LDS board (2 layers, width 64) is fine-tuned on 256 passages for 60 steps of AdamW, without
dropout, in a fixed order. One reverse pass gives the derivative of every question's loss by every row's weight. It is
judged on banks of retrainings that drop 1 and 5 % of the rows: of the very same run with places left empty, of the
same seed with the gaps closed, and of other seeds; beside methods that only look at the end of the training.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _page
import lds_board
import numpy as np
import torch
from transformers import AutoTokenizer

from whence.evaluate.bank import Design, Given, Plan, open_bank, train_members
from whence.evaluate.contenders import Contest, contenders
from whence.evaluate.lds import board
from whence.evaluate.trainers import BatchedTrainer, Recipe, Trainer, from_checkpoint
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.store.atomic import plain
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.unrolled.course import course_of
from whence.unrolled.replay import ReplayTrainer
from whence.unrolled.reverse import Metagradients, metagradients
from whence.unrolled.smoothness import Smoothness, metasmoothness
from whence.unrolled.training import Training, training_of

UNROLLED, ROUGH = "unrolled", "unrolled, rough"
OTHERS = ("ekfac_cg:steps=3@relative:10", "ekfac", "dot", "cosine", "bm25")
BAR = 0.9


@dataclass(frozen=True)
class Config:
    base_passages: int = 8000
    rows: int = 256
    questions: int = 12
    tokens: int = 64
    steps: int = 60
    batch: int = 16
    rate: float = 3e-4
    decay: float = 0.01
    root: float = 1e-10
    rough: float = 1e-16  # Adam's own epsilon, squared: what the first version of this study had
    shares: tuple[float, ...] = (0.01, 0.05)
    subsets: int = 24
    seeds: tuple[int, ...] = (1,)
    at_once: int = 8
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        return Recipe(rate=self.rate, steps=self.steps, batch=self.batch, weight_decay=self.decay)

    @property
    def board(self) -> lds_board.Config:
        """Passages and base as of the LDS board, but for their numbers."""
        known = ("base_passages", "rows", "questions", "tokens", "seed")
        return replace(lds_board.Config(), **{name: getattr(self, name) for name in known})


@dataclass(frozen=True)
class World:
    """The training that is taken back, and what it was given."""

    config: Config
    found: lds_board.Passages
    base: torch.nn.Module
    training: Training

    def replays(self) -> ReplayTrainer:
        c, rows = self.config, self.found.rows

        def course(seed: int):
            return course_of(c.recipe, rows, seed=seed, root=c.root)

        return ReplayTrainer(self.base, CausalLM(None), rows, self.found.questions, course, c.at_once)

    def closing(self) -> BatchedTrainer:
        start = from_checkpoint(self.base)
        return BatchedTrainer(
            start, CausalLM(None), self.found.rows, self.found.questions, self.config.recipe, self.config.at_once
        )


def build(config: Config, data: Path) -> World:
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260K")
    found = lds_board.passages(config.board, data, tokenizer)
    base = lds_board.base_of(config.board, data, found)
    course = course_of(config.recipe, found.rows, seed=0, root=config.root)
    return World(config, found, base, training_of(base, CausalLM(None), found.rows, course))


def rougher(world: World) -> tuple[Metagradients, Smoothness]:
    """The same run with Adam as rough as torch has it, but for what keeps a derivative finite."""
    c, rows = world.config, world.found.rows
    course = course_of(c.recipe, rows, seed=0, root=c.rough)
    training = training_of(world.base, CausalLM(None), rows, course)
    found = metagradients(training, world.found.questions)
    return found, metasmoothness(training, world.found.questions, found)


def at_the_end(world: World, theta: torch.Tensor) -> dict[str, np.ndarray]:
    """Scores of the methods that look at the final model."""
    model = world.training.model_at(theta)
    layers, texts = find_layers(model), world.found.texts

    def source(examples) -> LiveGradients:
        plan = plan_batches([e.length for e in examples], token_budget=4096)
        return LiveGradients(model, CausalLM(None), examples, plan, layers)

    contest = Contest("relative:0.1", seed=world.config.seed, query_texts=texts[1], row_texts=texts[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return contenders(OTHERS, source(world.found.rows), source(world.found.questions), contest)


def banked(world: World, name: str, design: Design, trainer: Trainer, folder: Path | None) -> np.ndarray:
    """M x R x Q losses of a bank."""
    ids = [e.id for e in world.found.rows], [e.id for e in world.found.questions]
    place = None if folder is None else folder / name
    bank = open_bank(place, design, trainer, train_ids=ids[0], query_ids=ids[1])
    train_members(bank, trainer, lambda done, of: print(f"{name}: {done} of {of}", flush=True))
    return bank.losses_MRQ


def judged(scores: Mapping[str, np.ndarray], kept: np.ndarray, losses: np.ndarray, before: np.ndarray) -> dict:
    """LDS with intervals, and the slope of measured on foretold changes for the unrolled scores."""
    found = board(scores, kept, losses)
    change = losses.mean(1) - before
    foretold = (~kept).astype(float) @ scores[UNROLLED].T / kept.shape[1]
    slope = float((change * foretold).sum() / (foretold * foretold).sum())
    standings = {s.name: [s.interval.mean, s.interval.low, s.interval.high] for s in found.standings}
    return {"lds": standings, "slope": slope, "ceiling": found.ceiling and found.ceiling.best.mean}


def run(config: Config, data: Path, folder: Path | None = None) -> dict[str, Any]:
    """Train, take back, retrain, judge."""
    world = build(config, data)
    found = metagradients(world.training, world.found.questions)
    smooth = metasmoothness(world.training, world.found.questions, found)
    print(f"smooth: {smooth.about()}", flush=True)
    rough, shaken = rougher(world)
    scores = {
        UNROLLED: -config.rows * found.effects_QN,
        ROUGH: -config.rows * rough.effects_QN,
        **at_the_end(world, found.final.theta),
    }
    replays, result = world.replays(), {}
    plans = {share: Plan(config.rows, config.subsets, 1, "drop", round(share * config.rows)) for share in config.shares}
    for share, plan in plans.items():
        losses = banked(world, f"same-{share:g}", plan, replays, folder)
        result[f"{share:.0%} dropped, same run"] = judged(scores, plan.kept_MN, losses, found.measurements_Q)
    share = config.shares[len(config.shares) // 2]
    kept = plans[share].kept_MN
    closed = banked(world, "closed", Given(kept, (0,)), world.closing(), folder)
    result[f"{share:.0%} dropped, gaps closed"] = judged(scores, kept, closed, found.measurements_Q)
    for seed in config.seeds:
        losses = banked(world, f"seed-{seed}", Given(kept, (seed,)), replays, folder)
        whole = replays.losses(np.ones((1, config.rows), dtype=bool), [seed])[0]
        result[f"{share:.0%} dropped, seed {seed}"] = judged(scores, kept, losses, whole)
    return {
        "banks": result,
        "found": found,
        "smooth": smooth,
        "shaken": shaken,
        "parameters": int(world.training.origin_P.numel()),
    }


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    found: Metagradients = result["found"]
    smooth: Smoothness = result["smooth"]
    shaken: Smoothness = result["shaken"]
    banks, names = result["banks"], (UNROLLED, ROUGH, *OTHERS)
    header = ["bank", *(f"`{name}`" for name in names), "measured / foretold"]
    cells = {
        bank: [f"{each['lds'][n][0]:.3f} ({each['lds'][n][1]:.3f} to {each['lds'][n][2]:.3f})" for n in names]
        for bank, each in banks.items()
    }
    rows = [[bank, *cells[bank], f"{banks[bank]['slope']:.2f}"] for bank in banks]
    same = {bank: each["lds"][UNROLLED][0] for bank, each in banks.items() if "same run" in bank}
    met = min(same.values()) >= BAR
    other = [each["lds"][UNROLLED][0] for bank, each in banks.items() if "seed" in bank]
    cost = (found.seconds[0] + found.seconds[1]) / found.seconds[0]
    text = f"""# The exact metagradient against retraining (C11)

{(__doc__ or "").split("DATA/wikitext2")[1].strip()}

{_page.table(header, rows)}

LDS with 95 % intervals over subsets and questions; {config.subsets} subsets a bank, {config.questions} questions. The
last column is the slope of measured on foretold changes in nats, for `{UNROLLED}`.

Bar: same-run LDS at least {BAR}: **{"met" if met else "missed"}** ({", ".join(f"{v:.3f}" for v in same.values())}). On
other seeds it is {np.mean(other):.3f} in the mean: a metagradient is about one run, order included. Retraining in the
usual way, with the gaps closed, moves every later row to another step: that is another run too.

Cost: {found.tree.steps} steps with at most {found.tree.states} optimiser states in memory ({result["parameters"]:,}
parameters each, three numbers a parameter), {found.tree.forward} steps forward and {found.tree.steps} back for all
{config.questions} questions together; {found.seconds[0]:.1f} s forward and {found.seconds[1]:.1f} s back,
{cost:.1f} times the training alone. The repeated run ends {found.again:g} from the first (0 = bit for bit).

Smoothness, told without any bank: signs of successive changes agree to {smooth.parameters:+.3f} of 1 (half of the rows
weigh 1.1 and 1.2), measured changes are {smooth.slope:.2f} times those foretold, and {smooth.left_slope:.2f} times
without the strongest row.

`{ROUGH}` is the same with {config.rough:g} instead of {config.root:g} inside Adam's square root, the square of Adam's
own epsilon. The run hardly differs, its derivative does. The likely reason: parameters that hardly ever have a gradient
are moved by full steps, so a derivative by the rows behind them holds only for tiny changes. The checks without a bank
{"tell the two apart" if not shaken.usable else "do not tell the two apart here"}: for the rough one agreement is
{shaken.parameters:+.3f}, measured {shaken.slope:.2f} times the change foretold, and {shaken.left_slope:.3f} times
without the strongest row.

How rough it is, is chance: the first version of this study (a base trained on slightly other passages, 16 questions, 32
subsets) had only the rough one and missed the bar, with 0.688, 0.699 and 0.427 for 1, 3 and 5 %. The number inside the
root was then chosen on four questions of those banks. The bar is judged here on another base and other questions.
"""
    x = list(range(1, len(banks) + 1))
    lines = [
        _page.Line(
            name,
            x,
            [each["lds"][name][0] for each in banks.values()],
            [(each["lds"][name][2] - each["lds"][name][1]) / 2 for each in banks.values()],
        )
        for name in names
    ]
    places = {n: bank.replace(" dropped, ", "\n") for n, bank in zip(x, banks, strict=True)}
    record = plain(
        {
            "about": about,
            "banks": banks,
            "bar": {"same_run": same, "met": met},
            "smoothness": smooth.about(),
            "smoothness_rough": shaken.about(),
            "tree": found.tree.about(),
            "again": found.again,
            "seconds": found.seconds,
        }
    )
    axes = _page.Axes("bank", "LDS", {n: name.replace("\n", " ") for n, name in places.items()})
    _page.write(folder, "unrolled", text=text, lines=lines, axes=axes, record=record)
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", subsets=Config.subsets, bank="")
    torch.set_num_threads(1)
    config = replace(Config(), subsets=given.subsets)
    started = time.perf_counter()
    result = run(config, given.data, Path(given.bank) if given.bank else None)
    page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print((given.docs / "unrolled.md").read_text())


if __name__ == "__main__":
    main()
