"""Evaluations that retrain: ``lds``, ``loo`` and ``removal`` of the user's model and rows. Plain data out.

::

    from whence import retraining

    how = retraining.Retraining(base="base-model", bank="bank/")
    found = retraining.lds(None, train="train.jsonl", query="questions.jsonl", how=how, subsets=64)

Every training starts from ``base`` and follows one recipe, or is the user's own command. The model that is scored is
the one given, or, when none is, the base trained on all rows with seed 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whence.curvature.ekfac_cg import UNMEASURED
from whence.curvature.implied import implied_damping
from whence.errors import DataError, OptionError
from whence.evaluate.bank import Bank, Design, Plan, open_bank, parse_subsets, train_members
from whence.evaluate.command import CommandTrainer
from whence.evaluate.contenders import EVERYONE, IMPLIED, contenders, parse_contender
from whence.evaluate.lds import board, lds_outcome
from whence.evaluate.loo import changes, left_out, loo_outcome
from whence.evaluate.outcome import Outcome
from whence.evaluate.removal import plan_removals, removal_outcome, rises
from whence.evaluate.trainers import BatchedTrainer, FunctionTrainer, Recipe, Trainer, from_checkpoint
from whence.evaluating import Opened, Terms, open_both
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.loading import load_model
from whence.options import read_config
from whence.pipeline import Material
from whence.watch import Silent, Watcher

# the quality mode with few steps, for the sake of time, and with the damping that the training itself implies
QUALITY = "ekfac_cg:steps=3@"
LDS = ("ekfac", "kfac", *(name for name in EVERYONE if name != "ekfac"))
LOO = ("ekfac", "dot", "cosine", "bm25", "random")
REMOVAL = ("ekfac", "relative:ekfac", "dot", "bm25", "activation", "random")
RELATIVE_SIZE = ("identity", "projected", "trackstar", "trak")  # methods whose scores are in no unit of their own
REFERENCE = "ekfac"  # what other methods are compared with


@dataclass(frozen=True)
class Retraining:
    """How members are trained.

    Attributes:
        base: the checkpoint that training starts from, as any model of ``whence.attribute``.
        recipe: of the built-in training.
        command: the user's own training command instead (see ``evaluate.command``).
        function: or any function of (ids of the rows kept, seed) that trains and returns query id -> nats.
        about: what decides the function's outcome besides; kept with the bank.
        bank: folder that keeps the members; None = nothing is kept.
        seeds: trainings of every subset.
        at_once: models trained together.
        terms: who takes part, and how scores are computed.
    """

    base: Any = None
    recipe: Recipe = field(default_factory=Recipe)
    command: str = ""
    function: Callable[[Sequence[str], int], Mapping[str, float]] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    bank: str | Path | None = None
    seeds: int = 2
    at_once: int = 8
    terms: Terms = field(default_factory=Terms)


@dataclass(frozen=True)
class Ready:
    """Everything at hand: the model to be scored with its rows and questions, and who retrains."""

    opened: Opened
    trainer: Trainer
    how: Retraining
    watch: Watcher

    def trained(self, design: Design) -> Bank:
        """The bank with every member of the design."""
        sources = self.opened.train.source, self.opened.asked.source
        bank = open_bank(
            self.how.bank, design, self.trainer, train_ids=sources[0].ids, query_ids=sources[1].ids
        )  # fmt: skip
        have, total = len(design.kept_MN) * len(design.seeds) - len(bank.missing()), len(design.kept_MN)
        said = f"bank      {total} sets of rows x {len(design.seeds)} seeds; {have} models are there already"
        self.watch.note("bank", said, members=total * len(design.seeds), there=have)
        if self.how.bank is None:
            self.watch.note("keep", "keep      nothing: with a bank folder, a run that is stopped goes on where it was")
        train_members(bank, self.trainer, lambda done, of: self.watch.step("retrain", done, of))
        return bank

    def scores(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Everybody's scores at the model.

        Raises:
            OptionError: ``@implied`` without a base.
        """
        contest, source = self.opened.contest, self.opened.train.source
        if isinstance(self.trainer, BatchedTrainer) and any(parse_contender(name).measured for name in names):
            contest = replace(contest, implied=implied_damping(source, self.trainer.start(0)))
        return contenders(names, source, self.opened.asked.source, contest)

    def about(self, model: Any) -> dict[str, Any]:
        """Settings, versions and machine, with the training's own."""
        bank = None if self.how.bank is None else str(self.how.bank)
        return {**self.opened.about(model), "training": dict(self.trainer.fingerprint()), "bank": bank}


def read_recipe(path: str | Path | None) -> Recipe:
    """A recipe from YAML lines such as ``rate: 0.001``; None = the default one.

    Raises:
        OptionError: no such file, an unknown line, or a value that cannot be.
    """
    given = {} if path is None else read_config(path)
    known = {f.name: f for f in fields(Recipe)}
    for name, value in given.items():
        if name not in known:
            raise OptionError(f"{name} in {path}", wanted=f"lines of a recipe: {', '.join(known)}")
        default = known[name].default
        if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
            raise OptionError(f"{name}: {value!r} in {path}", wanted="a number (write 0.001 for 1e-3)")
    betas = {"betas": tuple(given["betas"])} if "betas" in given else {}
    return Recipe(**{**given, **betas})


def ready(model: Any, *, train: Any, query: Any, how: Retraining, watch: Watcher) -> Ready:
    """Open the model (or train it) and the rows, and set up the trainer.

    Raises:
        OptionError: not just one of base, command and function; or one of the latter without a model.
        WhenceError: as ``whence.attribute``.
    """
    ways = [name for name, given in _ways(how).items() if given]
    if len(ways) != 1:
        raise OptionError(
            f"{' and '.join(ways) or 'no base model and no command'}",
            wanted="the checkpoint that training starts from, or your own training command",
            try_="--base ./base, or --command 'python train.py --data {rows} --seed {seed} --output {out}'",
        )
    if how.base is None:
        if model is None:
            raise OptionError(f"{ways[0]} without a model", wanted="the trained model to score", try_="--model ./model")
        opened = open_both(model, train, query, terms=how.terms, watch=watch)
        return Ready(opened, _own_trainer(opened, how), how, watch)
    started = open_both(how.base, train, query, terms=how.terms, watch=watch)
    trainer = built_in(started.train, started.asked, how)
    if model is not None:
        return Ready(open_both(model, train, query, terms=how.terms, watch=watch), trainer, how, watch)
    watch.note("train", "train     no --model: the base is trained on all rows, and scored")
    final = trainer.models(np.ones((1, len(trainer.rows)), dtype=bool), [0])[0]
    return Ready(at_model(started, final), trainer, how, watch)


def at_model(opened: Opened, model: torch.nn.Module) -> Opened:
    """The same rows and questions at another model of the same shape."""
    layers = find_layers(model, opened.subject.options.layers)

    def moved(side: Material) -> Material:
        return replace(side, source=replace(side.source, model=model, layers=layers))

    loaded = replace(opened.subject.loaded, model=model)
    subject = replace(opened.subject, loaded=loaded, layers=layers)
    return replace(opened, subject=subject, train=moved(opened.train), asked=moved(opened.asked))


def built_in(train: Material, asked: Material, how: Retraining) -> BatchedTrainer:
    """The trainer of small models, from the model that both sides were opened with, in float32 at least."""
    source = train.source
    model = source.model
    if any(p.is_floating_point() and p.element_size() < 4 for p in model.parameters()):
        model = model.float()
    if not any(p.requires_grad for p in model.parameters()):  # an adapter loaded for inference: what is followed moves
        for layer in source.layers:
            for module in layer.modules:
                module.requires_grad_(True)
    queries = asked.source.examples
    return BatchedTrainer(
        from_checkpoint(model), source.task, source.examples, queries, how.recipe, at_once=how.at_once
    )  # fmt: skip


def _ways(how: Retraining) -> dict[str, bool]:
    return {
        "a base model": how.base is not None,
        "a command": bool(how.command),
        "a function": how.function is not None,
    }


def _own_trainer(opened: Opened, how: Retraining) -> Trainer:
    rows, asked = opened.train.by_id(), opened.asked.source
    if how.function is not None:
        function, ids = how.function, np.array(opened.train.source.ids)

        def train(kept_N: np.ndarray, seed: int) -> np.ndarray:
            found = function(ids[kept_N].tolist(), seed)
            return np.array([float(found[id_]) for id_ in asked.ids])

        contents = {"rows": opened.train.rows.fingerprint, "queries": opened.asked.rows.fingerprint}
        return FunctionTrainer(train, {**contents, **how.about})
    kept = [(id_, rows[id_].fields) for id_ in opened.train.source.ids]
    options = opened.subject.options

    def price(folder: Path) -> Mapping[str, float]:
        loaded = load_model(str(folder), dtype=options.dtype, device=options.device)
        moved = LiveGradients(loaded.model, asked.task, asked.examples, asked.plan, asked.layers)
        return moved.losses()

    return CommandTrainer(how.command, kept, asked.ids, price, {"queries": opened.asked.rows.fingerprint})


# --- the verbs -----------------------------------------------------------------------------------------------------


def lds(
    model: Any,
    *,
    train: Any,
    query: Any,
    how: Retraining,
    subsets: str | int = 64,
    watch: Watcher | None = None,
) -> Outcome:
    """Do summed scores predict the losses of models retrained on subsets of the rows?

    Args:
        model: the trained model, or None to train the base on all rows.
        train: the training rows.
        query: the questions.
        how: the training.
        subsets: how many halves; ``64xkeep:0.5`` or ``64xdrop:10`` for other subsets.
        watch: hears about progress.

    Raises:
        WhenceError: as ``whence.attribute``; a bank that does not match.
    """
    everything = ready(model, train=train, query=query, how=how, watch=watch or Silent())
    names = how.terms.contenders or (QUALITY + (UNMEASURED if how.base is None else IMPLIED), *LDS)
    return judged_lds(everything, subsets=subsets, names=names, model=model)


def judged_lds(everything: Ready, *, subsets: str | int, names: Sequence[str], model: Any = None) -> Outcome:
    """Train the bank, score, judge."""
    count, kind, amount = read_subsets(str(subsets))
    rows, seed = len(everything.opened.train.source.ids), everything.opened.subject.options.seed
    plan = Plan(rows, count, everything.how.seeds, kind, amount, seed)
    scores = everything.scores(names)
    found = board(scores, plan.kept_MN, everything.trained(plan).losses_MRQ, seed=seed)
    return lds_outcome(found, reference=REFERENCE, about=everything.about(model) | {"plan": plan.about()})


def read_subsets(text: str) -> tuple[int, Any, float]:
    """``64`` or ``64xdrop:10`` as (count, kind, amount).

    Raises:
        OptionError: not of that form.
    """
    count, _, rest = text.partition("x")
    if not count.isdecimal():
        raise OptionError(f"subsets {text!r}", wanted="a number of subsets", try_="64, or 64xdrop:10")
    return int(count), *parse_subsets(rest or "half")


def loo(
    model: Any,
    *,
    train: Any,
    query: Any,
    how: Retraining,
    count: int = 32,
    watch: Watcher | None = None,
) -> Outcome:
    """Does the score of a row predict what leaving it out does?

    Args:
        model: as ``lds``.
        train: the training rows.
        query: the questions.
        how: the training; with several seeds the outcome says how well these agree.
        count: rows left out, spread over all by the seed.
        watch: hears about progress.

    Raises:
        WhenceError: as ``whence.attribute``; a bank that does not match.
    """
    everything = ready(model, train=train, query=query, how=how, watch=watch or Silent())
    total = len(everything.opened.train.source.ids)
    if not 3 <= count <= total:
        raise OptionError(f"{count} rows left out of {total}", wanted=f"3 to {total}")
    chosen = np.sort(np.random.default_rng(how.terms.options.seed).permutation(total)[:count])
    scores = everything.scores(how.terms.contenders or everybody(LOO, how))
    bank = everything.trained(left_out(total, chosen.tolist(), range(how.seeds)))
    return loo_outcome(scores, chosen.tolist(), changes(_finite(bank)), about=everything.about(model))


def removal(
    model: Any,
    *,
    train: Any,
    query: Any,
    how: Retraining,
    counts: Sequence[int] = (),
    watch: Watcher | None = None,
) -> Outcome:
    """What does a query's loss do when the rows that a contender puts first are taken out?

    Args:
        model: as ``lds``.
        train: the training rows.
        query: the questions.
        how: the training.
        counts: rows to remove; by default one in twenty.
        watch: hears about progress.

    Raises:
        WhenceError: as ``whence.attribute``; a bank that does not match.
    """
    everything = ready(model, train=train, query=query, how=how, watch=watch or Silent())
    return judged_removal(everything, counts=counts, names=how.terms.contenders or everybody(REMOVAL, how), model=model)


def everybody(names: Sequence[str], how: Retraining) -> tuple[str, ...]:
    """The usual contenders, and EK-FAC at the damping that the training implies where its start is known."""
    return (*names, f"{REFERENCE}@{IMPLIED}") if how.base is not None else tuple(names)


def judged_removal(everything: Ready, *, counts: Sequence[int], names: Sequence[str], model: Any = None) -> Outcome:
    """Score, retrain without what was put first, judge."""
    scores = everything.scores(names)
    total = len(everything.opened.train.source.ids)
    plan = plan_removals(scores, counts or (math.ceil(total / 20),), range(everything.how.seeds))
    rise_CKQR = rises(plan, _finite(everything.trained(plan.design)))
    return removal_outcome(scores, plan, rise_CKQR, in_nats=in_nats(scores), about=everything.about(model))


def in_nats(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Contenders whose score / N is a change in nats: methods with a curvature, not divided by a length."""
    parsed = [parse_contender(name) for name in names]
    return [
        one.name
        for one in parsed
        if one.kind == "method" and one.normalise == "none" and one.method.split(":")[0] not in RELATIVE_SIZE
    ]


def _finite(bank: Bank) -> np.ndarray:
    losses = bank.losses_MRQ
    if not np.isfinite(losses).all():
        lost = int((~np.isfinite(losses).all((2,))).sum())
        raise DataError(f"{lost} trainings diverged", wanted="finite losses", try_="a smaller rate in the recipe")
    return losses
