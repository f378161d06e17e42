"""What would be cheaper, and what it would cost in return: estimates from the plan itself, nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWER_ROWS = 256
WORTH = 0.05  # share of the whole below which a saving is not mentioned
PASSING, AUDITED = 0.05, 200  # of a funnel: rows let through, and those scored to see what it lost, at least
PROJECTED = 16  # numbers per side of a layer, as the method projected has by itself
FIT, WRITE = "fit: ", "write"


@dataclass(frozen=True)
class Alternative:
    """One change of the command.

    Attributes:
        flags: what to add to the command.
        seconds, disk_bytes, memory_bytes: what it would save, about.
        price: what is given up.
    """

    flags: str
    price: str
    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0

    def plain(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """As data: what it saves, and what the whole then costs."""
        saved = {"seconds": round(self.seconds, 1), "disk_bytes": self.disk_bytes, "memory_bytes": self.memory_bytes}
        whole = plan["seconds"] or 0.0, plan["disk"]["bytes"], plan["peak_bytes"] or 0
        left = {
            "seconds": round(max(0.0, whole[0] - self.seconds), 1),
            "disk_bytes": max(0, whole[1] - self.disk_bytes),
            "peak_bytes": max(0, whole[2] - self.memory_bytes),
        }
        return {"flags": self.flags, "price": self.price, "saves": saved, "costs": left}


def alternatives(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Changes worth at least a twentieth of the whole's time, disk or memory, the largest saving of time first.

    Each with what the whole would then cost; estimates, for nothing of it was run.

    Args:
        plan: the plan as data.
        settings: method, top_k, candidates, batch_tokens, budget, layers (name -> (O, I)), dtype, device.
    """
    found = [a for rule in RULES for a in rule(plan, settings)]
    whole = plan["seconds"] or float("inf"), plan["disk"]["bytes"] or 1, plan["peak_bytes"] or 1
    worth = [a for a in found if max(a.seconds / whole[0], a.disk_bytes / whole[1], a.memory_bytes / whole[2]) >= WORTH]
    return [a.plain(plan) for a in sorted(worth, key=lambda a: -a.seconds)]


def _steps(plan: Mapping[str, Any], *starts: str) -> list[Mapping[str, Any]]:
    return [step for step in plan["stages"] if step["name"].startswith(starts)]


def _seconds(steps: Sequence[Mapping[str, Any]]) -> float:
    return sum(step["seconds"] or 0.0 for step in steps)


def _fewer_fit_rows(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    slow = [step for step in _steps(plan, FIT) if step["rows"] > FEWER_ROWS]
    saved = sum((step["seconds"] or 0.0) * (1 - FEWER_ROWS / step["rows"]) for step in slow)
    price = f"curvature from {FEWER_ROWS} rows: noisier where layers are wider than the tokens of those rows are many"
    return [Alternative(f"--fit-rows {FEWER_ROWS}", price, saved)] if slow else []


def _one_stage_less(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    if settings["method"].partition(":")[0] != "ekfac":
        return []
    price = "K-FAC's eigenvalues instead of measured ones: ranks worse (docs: choose a method)"
    return [Alternative("--method kfac", price, _seconds(_steps(plan, "fit: eigenvalues")))]


def _no_curvature(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    """Gradient dot products, whole or projected."""
    if settings["method"].partition(":")[0] in ("identity", "projected"):
        return []
    saved, held = _seconds(_steps(plan, FIT, "precondition")), plan["factor_bytes"] or 0
    sides = 4 * sum(PROJECTED * (outputs + inputs) for outputs, inputs in settings["layers"].values())
    numbers = sum(min(PROJECTED, o) * min(PROJECTED, i) for o, i in settings["layers"].values())
    whole = sum(outputs * inputs for outputs, inputs in settings["layers"].values())
    held_by_questions = 4 * plan["questions"] * (whole - numbers)
    plain = "gradient dot products, no curvature: ranks worse, loud rows first (docs: choose a method)"
    return [
        Alternative("--method identity", plain, saved, memory_bytes=held),
        Alternative(
            "--method projected", f"{plain}; at {PROJECTED} x {PROJECTED} numbers a layer", saved,
            memory_bytes=max(0, held + held_by_questions - sides),
        ),
    ]  # fmt: skip


def _funnel(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    rows = plan["rows"]["used"]
    scored = PASSING * rows * max(1, plan["questions"]) + max(AUDITED, PASSING * rows)
    if plan["job"] != "trace" or settings["candidates"] or scored >= rows:
        return []
    price = "rows that share no word with the question are not scored; what that loses is measured and told"
    return [
        Alternative(f"--candidates bm25:{PASSING:.0%}", price, _seconds(_steps(plan, "score")) * (1 - scored / rows))
    ]


def _fewer_layers(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    """Only the MLPs, or only the attention: whichever has less to multiply."""
    weights = {name: outputs * inputs for name, (outputs, inputs) in settings["layers"].items()}
    mlp = sum(n for name, n in weights.items() if ".mlp." in name)
    if not 0 < mlp < sum(weights.values()):
        return []
    rest = 1 - mlp / sum(weights.values())
    steps = _steps(plan, FIT, "score", "index", "precondition")
    price = "attention's share of the influence is out of sight"
    saved = 0.5 * rest * _seconds(steps)  # about half of such a pass is the model's own forward and backward
    return [Alternative("--layers '*.mlp.*'", price, saved, memory_bytes=round(rest * (plan["factor_bytes"] or 0)))]


def _no_tokens(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    saved = _seconds(_steps(plan, "tokens"))
    return [Alternative("--tokens 0", "no token scores in the report", saved)] if saved else []


def _only_the_strongest(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    rows, k = plan["rows"]["rows"], 100
    if plan["job"] != "trace" or settings["top_k"] or rows <= 4 * k:
        return []
    size = sum(n for name, n in plan["disk"]["files"].items() if name == "scores.parquet")
    price = "scores of the other rows are not kept"
    held = 8 * plan["questions"] * rows
    return [Alternative(f"--top-k {k}", price, 0.0, round(size * (1 - 2 * k / rows)), held)]


def _index_instead(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    if plan["job"] != "trace" or plan["questions"] < 2:
        return []
    score = _seconds(_steps(plan, "score"))
    price = "pays from the second batch of questions on: each then saves the fit and the pass over the rows"
    return [Alternative("whence index, then whence ask", price, score + _seconds(_steps(plan, FIT)))]


def _smaller_index(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    if plan["job"] != "index":
        return []
    price = "fewer numbers of each row: compare a few answers with those of trace (docs: index and ask)"
    return [
        Alternative(f"--budget {settings['budget'] / 2:g}", price, 0.0, plan["disk"]["files"].get("shards", 0) // 2)
    ]


def _smaller_batches(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    held = plan["batch_bytes"]
    if not held or settings["batch_tokens"] < 512:
        return []
    flags = f"--batch-tokens {settings['batch_tokens'] // 2}"
    return [Alternative(flags, "somewhat slower; scores agree to rounding", memory_bytes=held // 2)]


def _half_precision(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Alternative]:
    if settings["dtype"].removeprefix("torch.") != "float32":
        return []
    on_gpu = settings["device"].startswith("cuda")
    price = "gradients of 8 bits: scores agree to about 0.5 %" + ("" if on_gpu else "; on a CPU it may be slower")
    saved = 0.4 * _seconds(_steps(plan, FIT, "score", "index", "tokens")) if on_gpu else 0.0
    return [Alternative("--dtype bfloat16", price, saved, memory_bytes=plan["model_bytes"] // 2)]


Rule = Callable[[Mapping[str, Any], Mapping[str, Any]], list[Alternative]]
RULES: Sequence[Rule] = (
    _fewer_fit_rows, _one_stage_less, _no_curvature, _funnel, _fewer_layers, _no_tokens, _only_the_strongest,
    _index_instead, _smaller_index, _smaller_batches, _half_precision,
)  # fmt: skip
