"""What each of two processes does in ``test_sharding``: started by torchrun, it leaves its numbers in a folder.

torchrun --nproc-per-node 2 tests/loading/two_ranks.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import conftest
from folders import word_tokenizer
from whence.cli.main import run
from whence.curvature.base import Factors, get_method
from whence.curvature.fit import FitOptions, fit
from whence.errors import LayerError, OptionError
from whence.gradients.layers import find_layers
from whence.gradients.products import Products
from whence.gradients.ranks import Ranks
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.linalg.operators import Blocks
from whence.loading.sharding import join_ranks, spread
from whence.options import TraceOptions
from whence.pipeline import open_subject
from whence.scores.relative import Movement
from whence.scores.score import Pairwise, SelfInfluence, Together, collect, prepare_queries
from whence.scores.sinks import AllScores, TopK
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.watch import Silent

MODELS = {
    "llama": lambda: conftest.llama().float(),
    "tied": lambda: conftest.llama(tied=True, bias=True).float(),
    "conv1d": lambda: conftest.gpt2().float(),
    "experts": lambda: conftest.mixtral().float(),
}


def source(name: str, ranks: Ranks | None) -> LiveGradients:
    """The rows on the model, which is spread over the ranks if there are any; an odd number of batches.

    Experts see few tokens of each row: with more rows their covariances have full rank, and so one eigenbasis.
    """
    rows = 62 if name == "experts" else 13
    model = MODELS[name]()
    layers = find_layers(model, ("*",) if name == "tied" else ())
    examples = conftest.examples(rows)
    plan = plan_batches([e.length for e in examples], token_budget=24)
    model = model if ranks is None else spread(model, ranks)
    return LiveGradients(model, CausalLM(), examples, plan, layers, ranks=ranks)


def numbers(name: str, ranks: Ranks | None) -> dict[str, torch.Tensor]:
    """Factors, whole and from a stopped fit, scores of all kinds, and the strongest."""
    live = source(name, ranks)
    assert live.n_batches % 2 == 1 and live.n_batches > 2
    asked = live.only(["row-0", "row-5", "row-12"])
    probe = collect(asked).grads
    found: dict[str, torch.Tensor] = {}
    for rows in ("all", "auto"):
        found |= flat(f"kfac {rows}", fit(live, get_method("kfac"), FitOptions(rows=rows, agreement=0.5), probe=probe))
    factors = fit(live, get_method("ekfac"))
    found |= flat("ekfac", factors)
    operator = get_method("ekfac").operator(factors, None)  # type: ignore[arg-type]
    assert isinstance(operator, Blocks)
    inverse = operator.power(-1, relative(0.1))
    queries = prepare_queries(asked, inverse)
    every, best = AllScores.empty(3, live.ids, len(live.layers)), TopK({i: n for n, i in enumerate(live.ids)}, 4, 3)
    self_influence, movement = SelfInfluence(inverse), Movement(inverse)
    live.visit(Together([Pairwise(queries, every, keep_layers=True), self_influence, movement]))
    pairwise = Pairwise(queries, best)
    for half in (range(2), range(2, live.n_batches)):  # a sink that is shared twice counts nothing twice
        live.visit(pairwise, batches=half)
    values, columns = best.finish()
    assert every.per_layer is not None
    found |= {"scores": torch.from_numpy(every.values), "layers": torch.from_numpy(every.per_layer)}
    found |= {"top": torch.from_numpy(values), "columns": torch.from_numpy(columns)}
    for key, one in (("self", self_influence.values), ("moved", movement.values), ("losses", pairwise.losses)):
        found[key] = torch.tensor([one[id_] for id_ in live.ids], dtype=torch.float64)
    return found


def flat(name: str, factors: Factors) -> dict[str, torch.Tensor]:
    """Each kind of factor as one vector over all layers (no eigenvectors: their signs are anyone's)."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for own in factors.tensors.values():
        for kind, tensor in own.items():
            kinds.setdefault(kind, []).append(tensor.flatten())
    return {f"{name} {kind}": torch.cat(parts) for kind, parts in kinds.items() if not kind.startswith("Q")}


def refusals(ranks: Ranks) -> None:
    """What a model in pieces cannot do is said."""
    live = source("llama", ranks)
    for error, attempt in (
        (LayerError, lambda: Products(live).apply(torch.zeros(1, live.layers.parameters))),
        (OptionError, lambda: open_subject((live.model, word_tokenizer()), TraceOptions(), Silent())),
    ):
        try:
            attempt()
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")


def collectives(ranks: Ranks) -> None:
    """Sums in the order of the ranks, entries of all ranks, missing names as zeros."""
    mine = torch.tensor([1e8, 1.0, -1e8]) * (ranks.rank + 1) + ranks.rank
    parts = [torch.tensor([1e8, 1.0, -1e8]) * (r + 1) + r for r in range(ranks.world)]
    assert torch.equal(ranks.total(mine), sum(parts[1:], parts[0]))
    assert float(ranks.total(torch.tensor(2.0))) == 2.0 * ranks.world
    assert ranks.everyone({"rank": ranks.rank, "x": [0.1, None]}) == [{"rank": r, "x": [0.1, None]} for r in (0, 1)]
    lacking: dict[str, Any] = {"b": torch.ones(2, dtype=torch.float64)} if ranks.rank else {"a": torch.ones(3)}
    totals = ranks.totals(lacking)
    assert list(totals) == ["a", "b"] and totals["b"].tolist() == [1, 1] and totals["a"].tolist() == [1, 1, 1]
    sent = torch.full((2,), float(ranks.rank))
    assert ranks.from_rank(1, sent).tolist() == [1, 1] and sent.tolist() == [ranks.rank] * 2
    odd = {
        "n": torch.tensor([[1, 2]], dtype=torch.uint16),
        "h": torch.ones(3, dtype=torch.bfloat16),
        "e": torch.ones(0, 2),
    }
    got = dict(ranks.handed(1, odd if ranks.rank else {"other": torch.ones(1)}))
    assert list(got) == list(odd) and all(torch.equal(got[k], t) and got[k].dtype == t.dtype for k, t in odd.items())
    assert ranks.first(ranks.rank) == 0
    numbers = ([3, 4, 5], [])[ranks.rank]  # the other rank takes part without a batch of its own
    wanted = [(n, True, n) for n in numbers] if not ranks.rank else [(0, False, n) for n in (3, 4, 5)]
    assert [(t.number, t.counts, t.rows) for t in ranks.abreast(numbers, int)] == wanted
    wanted = ([(3, True, 7), (5, True, 5)], [(4, True, 7), (5, False, 5)])[ranks.rank]
    assert [(t.number, t.counts, t.rows) for t in ranks.turns([3, 4, 5], int)] == wanted


def main(place: Path) -> int:
    torch.set_num_threads(1)
    ranks = join_ranks("cpu")
    assert ranks.world == 2
    collectives(ranks)
    for name in MODELS:
        found = {key: tensor.contiguous() for key, tensor in numbers(name, ranks).items()}
        save_file(found, place / f"{name}.{ranks.rank}.safetensors")
    refusals(ranks)
    given = ["--model", str(place / "model"), "--data", str(place / "rows.jsonl"), "--query", str(place / "ask.jsonl")]
    options = ["--batch-tokens", "32", "--fit-rows", "all", "--self-influence", "--fsdp", "--device", "cpu"]
    return run(["trace", *given, *options, "-o", str(place / "run")])


if __name__ == "__main__":
    np.seterr(all="raise")
    sys.exit(main(Path(sys.argv[1])))
