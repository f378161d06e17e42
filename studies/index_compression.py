"""How few bytes can a row of an index have? Whitened gradients in several codes, and the indexes that others ship.

    python studies/index_compression.py --data DATA        # DATA/stories260K (tokenizer), DATA/wikitext2

The model, rows and questions are those of lds_board.py: a Llama of 2 layers and width 64 fine-tuned on 512 passages. A
row's gradient is rotated into the EK-FAC eigenbasis and divided by the root of eigenvalue + damping, so that a plain
dot product with a question's is the EK-FAC score; then it is compressed, the question stays dense. Compared with full
EK-FAC: the rank correlation over rows, and how many of its first ten come back. With --bank (a finished bank of
lds_board.py) also the linear datamodelling score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _page
import lds_board
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import OptionError
from whence.evaluate.bank import Plan, open_bank
from whence.evaluate.lds import lds_per_query
from whence.evaluate.statistics import spearman
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.gradients.transforms import TransformedGradients, whitened
from whence.linalg import draws
from whence.linalg.codes.base import Layout, encoded
from whence.linalg.codes.choose import choose
from whence.linalg.codes.sparse import Sparse, sparse
from whence.linalg.damping import relative
from whence.linalg.operators import Blocks
from whence.linalg.projection import random_projection
from whence.scores.score import collect
from whence.store.atomic import plain
from whence.tasks.batches import plan_batches

KB = 1000
BAR_BYTES, BAR_RANK, BAR_RECALL, BAR_LDS = 10 * KB, 0.80, 0.80, 0.08
UNROUNDED = "sparse, before rounding"
ON_THE_PLOT = ("sparse", "low rank", "coordinates, 8 bit", "LoGra", "TrackStar", "whitened, two-sided random")


@dataclass(frozen=True)
class Config:
    budgets: tuple[int, ...] = (1, 2, 4, 10, 20, 40, 64)  # KB a row
    sides: tuple[int, ...] = (6, 8, 11, 16, 19, 27)  # of two-sided projections, per layer
    coordinates: tuple[int, ...] = (2, 4, 10, 20, 40)
    pca: tuple[int, ...] = (64, 128, 256)
    damping: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Rows:
    """Whitened gradients of rows (N x D) and questions (Q x D)."""

    train_ND: Tensor
    query_QD: Tensor
    layout: Layout


@dataclass(frozen=True)
class Entry:
    """One way to keep a row, its bytes, and the scores it gives (Q x N)."""

    name: str
    bytes: float
    scores: np.ndarray
    rows: np.ndarray | None = None  # rows that count (those a basis was not made of); all by default


@dataclass(frozen=True)
class Setting:
    """The gradients of the model fine-tuned on all rows."""

    train: LiveGradients
    query: LiveGradients

    def whitened(self, method: str, damping: float, seed: int) -> Rows:
        """Rows and questions in the coordinates of a method's damped inverse."""
        found = get_method(method)
        factors = fit(self.train, found, FitOptions(rows="all", seed=seed))
        inverse = found.operator(factors, Problem(self.train)).power(-1, relative(damping))
        assert isinstance(inverse, Blocks)
        transform = whitened(inverse, self.train.layers.sizes)
        layout = Layout(TransformedGradients(self.train, (transform,)).layers.sizes)
        train, query = (
            collect(TransformedGradients(side, (transform,)), "true").grads for side in (self.train, self.query)
        )
        flat = [layout.flat({n: g.full().float() for n, g in grads.items()}) for grads in (train, query)]
        return Rows(flat[0], flat[1], layout)


def setting(data: Path, config: lds_board.Config) -> tuple[Setting, lds_board.BatchedTrainer]:
    """Train as lds_board does."""
    found = lds_board.passages(config, data, AutoTokenizer.from_pretrained(data / "stories260K"))
    trainer = lds_board.trainer_of(config, data, found)
    model = trainer.models(np.ones((1, config.rows), dtype=bool), [0])[0]
    layers = find_layers(model)
    sides = [
        LiveGradients(
            model, trainer.task, examples, plan_batches([e.length for e in examples], token_budget=4096), layers
        )
        for examples in (found.rows, found.questions)
    ]
    return Setting(*sides), trainer


def dots(query: Tensor, train: Tensor) -> np.ndarray:
    return (query @ train.T).double().numpy()


def codes(config: Config, rows: Rows) -> Iterator[Entry]:
    """The schemes of an index, at every budget that they fit."""
    names = {"sparse": "sparse", "low_rank": "low rank", "int8": "all, 8 bit", "fp16": "all, 16 bit"}
    for scheme, name in names.items():
        seen = set()
        for budget in (*config.budgets, 128, 256) if scheme in ("int8", "fp16") else config.budgets:
            try:
                code = choose(rows.layout, budget * KB, scheme)
            except OptionError:
                continue
            if code.bytes_per_row not in seen:
                seen.add(code.bytes_per_row)
                scores = torch.cat([code.dot(encoded(code, part), rows.query_QD) for part in rows.train_ND.split(64)])
                yield Entry(name, code.bytes_per_row, scores.T.double().numpy())
                if isinstance(code, Sparse):
                    yield Entry(UNROUNDED, code.bytes_per_row, dots(rows.query_QD, _unrounded(code, rows.train_ND)))


def _unrounded(code: Sparse, train_ND: Tensor) -> Tensor:
    """The numbers that are kept, before they are put into nibbles."""
    return torch.cat([part * (code.restored(encoded(code, part)) != 0) for part in train_ND.split(64)])


def coordinates(config: Config, rows: Rows) -> Iterator[Entry]:
    """The same coordinates for every row: those with most energy, on linear scales of their own."""
    energy = rows.train_ND.square().mean(0)
    for bits, levels in ((8, 127), (4, 7)):
        for budget in config.coordinates:
            at = energy.topk(min(len(energy), budget * KB * 8 // bits)).indices
            part = rows.train_ND[:, at] / energy[at].sqrt()
            scale = part.abs().amax(1, keepdim=True) / levels
            kept = (part / scale).round() * scale * energy[at].sqrt()
            yield Entry(f"coordinates, {bits} bit", len(at) * bits / 8 + 4, dots(rows.query_QD[:, at], kept))


def pca(config: Config, rows: Rows) -> Iterator[Entry]:
    """Principal components of every other row, judged on the rows between; alone and with a sparse rest in 10 KB."""
    basis = torch.linalg.svd(rows.train_ND[::2], full_matrices=False)[2]
    held = np.arange(1, len(rows.train_ND), 2)
    for size in config.pca:
        parts_NK = rows.train_ND @ basis[:size].T
        shown = dots(rows.query_QD @ basis[:size].T, parts_NK)
        yield Entry("PCA (basis not counted)", 2 * size, shown, held)
        code = sparse(rows.layout, BAR_BYTES - 2 * size)
        rest = rows.train_ND - parts_NK @ basis[:size]
        tail = torch.cat([code.dot(encoded(code, part), rows.query_QD) for part in rest.split(64)]).T.double().numpy()
        yield Entry("PCA + sparse rest", code.bytes_per_row + 2 * size, shown + tail, held)


def projections(config: Config, rows: Rows, setting_: Setting) -> Iterator[Entry]:
    """Random projections of whitened rows: two-sided per layer, and one dense one; float16."""
    for side in config.sides:
        drawn = random_projection(rows.layout.sizes, size=side, seed=config.seed, small="keep")
        small = []
        for flat in (rows.train_ND, rows.query_QD):
            layers = {n: flat[:, span].view(-1, *rows.layout.sizes[n]) for n, span in rows.layout.spans.items()}
            sided = {
                n: _like(drawn.sides[n].left_PO, x) @ x @ _like(drawn.sides[n].right_RI, x).T for n, x in layers.items()
            }
            small.append(torch.cat([x.flatten(1) for x in sided.values()], 1).half().float())
        yield Entry("whitened, two-sided random", 2 * small[0].shape[1], dots(small[1], small[0]))
    size = BAR_BYTES // 2
    sketches = [torch.zeros(len(flat), size) for flat in (rows.train_ND, rows.query_QD)]
    for start in range(0, rows.layout.total, 4096):
        stop = min(start + 4096, rows.layout.total)
        signs = torch.from_numpy(draws.signs(stop - start, size, "study", config.seed, start)).float() / size**0.5
        for sketch, flat in zip(sketches, (rows.train_ND, rows.query_QD), strict=True):
            sketch += flat[:, start:stop] @ signs
    yield Entry("whitened, one dense random", 2 * size, dots(sketches[1].half().float(), sketches[0].half().float()))


def _like(side: Tensor | None, x: Tensor) -> Tensor:
    assert side is not None
    return side.to(x)


def peers(config: Config, setting_: Setting) -> Iterator[Entry]:
    """LoGra and TrackStar as their papers have them, at the bytes of their float16 stores."""
    for method, name in (("logra", "LoGra"), ("trackstar", "TrackStar")):
        for side in config.sides:
            rows = setting_.whitened(f"{method}:size={side}", config.damping, config.seed)
            scores = dots(rows.query_QD.half().float(), rows.train_ND.half().float())
            if name == "TrackStar":
                scores = scores / np.outer(rows.query_QD.norm(dim=1), rows.train_ND.norm(dim=1))
            yield Entry(name, 2 * rows.layout.total, scores)


def recall(truth_QN: np.ndarray, scores_QN: np.ndarray, k: int = 10) -> float:
    """Share of each question's first k that come back, on average."""
    pairs = zip(np.argsort(-truth_QN, 1)[:, :k], np.argsort(-scores_QN, 1)[:, :k], strict=True)
    return float(np.mean([len({*a} & {*b}) / k for a, b in pairs]))


def judged(entry: Entry, truth: np.ndarray, bank: Any | None) -> dict[str, Any]:
    at = slice(None) if entry.rows is None else entry.rows
    record = {
        "name": entry.name,
        "bytes": float(entry.bytes),
        "spearman": float(np.mean(spearman(truth[:, at], entry.scores[:, at]))),
        "recall": recall(truth[:, at], entry.scores[:, at]),
    }
    return record | ({} if bank is None else {"lds": float(np.nanmean(lds_per_query(entry.scores, *bank)))})


def bank_of(
    folder: str, setting_: Setting, trainer: Any, config: lds_board.Config
) -> tuple[np.ndarray, np.ndarray] | None:
    """Which rows each retrained model saw (M x N) and its losses, averaged over seeds (M x Q)."""
    if not folder:
        return None
    plan = Plan(config.rows, config.subsets, repeats=config.seeds, seed=config.seed)
    bank = open_bank(Path(folder), plan, trainer, train_ids=setting_.train.ids, query_ids=setting_.query.ids)
    losses_MQ = np.nanmean(bank.losses_MRQ, axis=1)
    there = np.isfinite(losses_MQ).all(1)
    return plan.kept_MN[there], losses_MQ[there]


def run(config: Config, data: Path, bank_folder: str = "", board: lds_board.Config | None = None) -> dict[str, Any]:
    """Everything on one model."""
    board = board or lds_board.Config()
    found, trainer = setting(data, board)
    bank = bank_of(bank_folder, found, trainer, board)
    rows = found.whitened("ekfac", config.damping, config.seed)
    full = Entry("full EK-FAC, 32 bit", 4 * rows.layout.total, dots(rows.query_QD, rows.train_ND))
    entries = [full, *codes(config, rows), *coordinates(config, rows), *pca(config, rows)]
    entries += [*projections(config, rows, found), *peers(config, found)]
    table = [judged(entry, full.scores, bank) for entry in entries]
    return {"parameters": rows.layout.total, "models": 0 if bank is None else len(bank[0]), "table": table}


def bar(table: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The best code within the bar's bytes, and whether it reaches it."""
    fits = [e for e in table if e["bytes"] <= BAR_BYTES and e["name"] in ("sparse", "low rank")]
    best = max(fits, key=lambda e: e["spearman"])
    reached = best["spearman"] >= BAR_RANK and best["recall"] >= BAR_RECALL
    loss = {"lds_lost": table[0]["lds"] - best["lds"]} if "lds" in best else {}
    return {**best, **loss, "reached": bool(reached and loss.get("lds_lost", 0) <= BAR_LDS)}


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    table, best = result["table"], bar(result["table"])
    header = ["kept per row", "KB", "Spearman to full", "recall of its top 10", *(["LDS"] if result["models"] else [])]
    lines = [
        [e["name"], f"{e['bytes'] / KB:.1f}", f"{e['spearman']:.3f}", f"{e['recall']:.3f}"]
        + ([f"{e['lds']:.3f}"] if "lds" in e else [])
        for e in table
    ]
    peer = max(
        (e for e in table if e["name"] in ("LoGra", "TrackStar") and e["bytes"] <= 15 * KB), key=lambda e: e["spearman"]
    )
    judged_by = (
        f" LDS: against {result['models']} halves of lds_board.py's bank, two seeds each." if result["models"] else ""
    )
    lost = f", and {best['lds_lost']:+.3f} of LDS lost" if "lds_lost" in best else ""
    text = (
        "# How few bytes a row of an index needs\n\n"
        f"{(__doc__ or '').split(chr(10) * 2)[2]} {result['parameters']:,} attributed parameters, 512 rows, 32 "
        f"questions.{judged_by}\n\n"
        + _page.table(header, lines)
        + f"\n\n**Bar (Spearman and recall at least 0.80 in 10 KB): {'reached' if best['reached'] else 'missed'}** by "
        f"`{best['name']}`: {best['spearman']:.3f} and {best['recall']:.3f} in {best['bytes'] / KB:.1f} KB{lost}. The "
        f"best shipped scheme up to 15 KB, {peer['name']}, has {peer['spearman']:.3f} and {peer['recall']:.3f}.\n\n"
        "Reading: whiten before compressing, then let every row keep its own strongest numbers. `sparse` spends one "
        "byte on the distance to the last number kept and half a byte on sign and size (three bits on a logarithmic "
        "scale; `before rounding` has the same numbers in 32 bits at the bytes of the rounded ones). "
        "`coordinates` keeps the same numbers for all rows. "
        "PCA is judged on rows that its basis was not made of; its basis (D numbers a component) is not counted. "
        "Random projections and the indexes built on them spend their bytes worst."
    )
    curves = [
        _page.Line(
            name,
            *zip(*sorted((round(e["bytes"] / KB, 1), e["spearman"]) for e in table if e["name"] == name), strict=True),
        )
        for name in ON_THE_PLOT
    ]
    record = plain({**result, "bar": best, "about": about})
    _page.write(
        folder, "index_compression", text=text, lines=curves, record=record,
        axes=("KB a row (places by rank)", "Spearman to full EK-FAC"),
    )  # fmt: skip
    return record


def main() -> None:
    given = _page.arguments(__doc__ or "", seed=Config.seed, bank="")
    torch.set_num_threads(1)
    config = Config(seed=given.seed)
    started = time.perf_counter()
    result = run(config, given.data, given.bank)
    page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print((given.docs / "index_compression.md").read_text())


if __name__ == "__main__":
    main()
