"""Where in the network does the influence sit: facts against other completions, by depth (Grosse et al. 2023, 5.3.2).

    python studies/layer_depth.py --data DATA     # DATA/stories260K, DATA/tinystories; --place: `whence demo`'s folder

The paper: over 50 questions and 500 rows each the influence is spread about evenly over the depth; memorised and
factual completions have more of it in the upper layers. A six-block Llama is trained on the Almanac, once per seed
(another book and another model). Asked are facts, habits (ways of writing), and plain sentences that the book does not
hold, their second half or the next word alone. Of the rows that matter most to a question the effects are summed block
by block, MLP layers only, as in the paper. One number per question sums it up: the centre of the influence, 0 = first
block, 1 = last. The same for story endings asked of stories260K, which knows no facts.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _language
import _page
import numpy as np
import sparsity
import torch

from whence.demo.book import Question
from whence.demo.habits import plain
from whence.demo.lexicon import question_draw
from whence.demo.train import Recipe, completes
from whence.evaluate.statistics import mean_interval
from whence.loading import load_model

FACTS, HABITS, PLAIN, WORD = "facts", "habits", "plain sentences", "plain, one word"
STORIES = "stories260K, endings"
MLP, ATTENTION = "mlp", "attention"


@dataclass(frozen=True)
class Config:
    recipe: Recipe = field(default_factory=lambda: Recipe(width=64, inner=160, layers=6, passes=12))
    seeds: tuple[int, ...] = (0, 1)
    facts: int = 64
    habits: int = 32
    plain: int = 32
    top: int = 100
    stories: int = 500
    endings: int = 24
    tokens: int = 128
    damping: float = 0.1


def plain_questions(count: int) -> dict[str, list[_language.Fields]]:
    """Sentences without a habit in words that no document uses, cut in the middle.

    ``plain, one word`` asks for the next word only, as facts and habits do: what a long completion alone changes.
    """
    draw = question_draw("depth")
    found: dict[str, list[_language.Fields]] = {PLAIN: [], WORD: []}
    for _ in range(count):
        words = plain(draw).split()
        middle = len(words) // 2
        prompt = " ".join(words[:middle])
        for kind, completion in ((PLAIN, words[middle:]), (WORD, words[middle : middle + 1])):
            found[kind].append({"prompt": prompt, "completion": " " + " ".join(completion)})
    return found


def shares(by_layer_QNL: np.ndarray, names: Sequence[str], top: int) -> dict[str, np.ndarray]:
    """``mlp`` and ``attention`` -> Q x blocks: sums over the ``top`` rows by total effect (of those layers), as shares.

    A block's part is negative where it speaks against these rows; the shares of a question add up to 1.
    """
    block = np.array([int(_block(name)) for name in names])
    found = {}
    for kind, wanted in {MLP: [".mlp." in n for n in names], ATTENTION: [".mlp." not in n for n in names]}.items():
        of_kind = by_layer_QNL[:, :, wanted].astype(np.float64)
        blocks_QNB = np.stack([of_kind[:, :, block[wanted] == b].sum(2) for b in np.unique(block)], axis=2)
        first = np.argsort(-blocks_QNB.sum(2), axis=1)[:, :top]
        summed_QB = np.take_along_axis(blocks_QNB, first[:, :, None], axis=1).sum(1)
        found[kind] = summed_QB / summed_QB.sum(1, keepdims=True)
    return found


def _block(name: str) -> str:
    found = re.search(r"layers\.(\d+)\.", name)
    assert found, name
    return found.group(1)


def centre(shares_QB: np.ndarray) -> np.ndarray:
    """Q centres of the influence: 0 = all in the first block, 1 = all in the last."""
    return shares_QB @ np.linspace(0, 1, shares_QB.shape[1])


def almanac_part(config: Config, place: Path, seed: int) -> dict[str, Any]:
    """Shares of every kind of question for one trained model, and how many facts it knows."""
    world, reader = _language.almanac_reader(place / f"depth-{seed}", config.recipe, seed)
    asked = [q for k, n in (("fact", config.facts), ("habit", config.habits)) for q in _of(world.asked, k, n)]
    questions: list[_language.Fields] = [{"prompt": q.prompt, "completion": q.completion} for q in asked]
    kinds = [{"fact": FACTS, "habit": HABITS}[q.kind] for q in asked]
    for kind, more in plain_questions(config.plain).items():
        questions += more
        kinds += [kind] * len(more)
    rows = [{"text": document.text} for document in world.book.documents]
    study = _language.Study.of(reader, rows, questions, damping=config.damping)
    found = shares(*study.by_layer(), config.top)
    facts = [q for q in asked if q.kind == "fact"]
    known = np.array([completes(reader.model, reader.tokenizer, q) for q in facts])
    return {
        "known": known,
        "shares": {
            name: {kind: of[np.array(kinds) == name] for kind, of in found.items()} for name in dict.fromkeys(kinds)
        },
    }


def _of(asked: Sequence[Question], kind: str, count: int) -> list[Question]:
    return [q for q in asked if q.kind == kind][:count]


def stories_part(config: Config, data: Path) -> dict[str, np.ndarray]:
    loaded = load_model(str(data / "stories260K"))
    reader = _language.Reader(loaded.model, loaded.tokenizer, config.tokens)
    with (data / "tinystories" / "stories_cased.jsonl").open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    asked = sparsity.endings(texts[config.stories :])[: config.endings]
    rows = [{"text": text} for text in texts[: config.stories]]
    return shares(*_language.Study.of(reader, rows, asked, damping=config.damping).by_layer(), config.top)


def run(config: Config, data: Path, place: Path) -> dict[str, Any]:
    return {
        "almanac": [almanac_part(config, place, seed) for seed in config.seeds],
        STORIES: stories_part(config, data),
    }


def gap(first_QB: np.ndarray, second_QB: np.ndarray, *, draws: int = 2000) -> list[float]:
    """Difference of the mean centres and its 95 % bootstrap interval (questions of either side drawn anew)."""
    rng, a, b = np.random.default_rng(0), centre(first_QB), centre(second_QB)
    drawn = [rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(draws)]
    return [float(a.mean() - b.mean()), *np.quantile(drawn, [0.025, 0.975]).tolist()]


def findings(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    """Per seed: facts above habits and plain sentences by how much; over everything: how even the spread is."""
    found: dict[str, Any] = {"gaps": {}, "attention_gaps": {}, "known": [], "centres": {}}
    for part in result["almanac"]:
        mlp = {name: each[MLP] for name, each in part["shares"].items()}
        found["known"].append(float(part["known"].mean()))
        for other in (HABITS, PLAIN, WORD):
            found["gaps"].setdefault(other, []).append(gap(mlp[FACTS], mlp[other]))
            sides = (part["shares"][name][ATTENTION] for name in (FACTS, other))
            found["attention_gaps"].setdefault(other, []).append(gap(*sides))
        if 0 < part["known"].sum() < len(part["known"]):
            known = part["known"]
            found.setdefault("known_gap", []).append(gap(mlp[FACTS][known], mlp[FACTS][~known]))
        for name, values in mlp.items():
            found["centres"].setdefault(name, []).append([*_three(centre(values))])
        everything = np.concatenate(list(mlp.values())).mean(0) * config.recipe.layers
        found.setdefault("largest_over_even", []).append(float(everything.max()))
    stories = result[STORIES][MLP]
    found["stories_over_even"] = float(stories.mean(0).max() * stories.shape[1])
    return found


def _three(values: np.ndarray) -> tuple[float, float, float]:
    found = mean_interval(values)
    return found.mean, found.low, found.high


def verdict(
    gaps: Sequence[Sequence[float]], paper: tuple[str, str] = (", as in the paper", ", against the paper")
) -> str:
    """Higher, lower or not to be told, over the seeds; and what that is beside the paper's finding."""
    if all(low > 0 for _, low, _ in gaps):
        return f"**higher in the network{paper[0]}**"
    if all(high < 0 for _, _, high in gaps):
        return f"**lower in the network{paper[1]}**"
    signs = {np.sign(mean) for mean, _, _ in gaps}
    return "**not clearly** higher or lower" + (", and seeds disagree" if len(signs) > 1 else "")


def each_seed(gaps: Sequence[Sequence[float]]) -> str:
    return "; ".join(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in gaps)


def remarks(found: dict[str, Any]) -> list[str]:
    """What the numbers say beside the paper's."""
    said = [
        f"- Facts against {other}: the centre of their influence is {verdict(gaps)} ({each_seed(gaps)}, one per seed). "
        f"In the attention layers, which the paper leaves out: {verdict(found['attention_gaps'][other], ('', ''))} "
        f"({each_seed(found['attention_gaps'][other])})."
        for other, gaps in found["gaps"].items()
    ]
    higher = {other: all(low > 0 for _, low, _ in gaps) for other, gaps in found["gaps"].items()}
    if higher[PLAIN] and higher[WORD] and not higher[HABITS]:
        said.append(
            "- So facts sit higher than words that can only be guessed, but not clearly higher than habits, which the "
            "book taught as well: half of the paper's finding comes out. It may be what was learned that sits higher, "
            "not facts as such."
        )
    if "known_gap" in found:
        gaps = found["known_gap"]
        said.append(
            f"- Facts that the model completes by itself against those that it does not: {verdict(gaps)} "
            f"({each_seed(gaps)})."
        )
    largest = max(found["largest_over_even"])
    said.append(
        f"- Spread over the depth, all kinds together: the heaviest block has {largest:.1f} times an even share on the "
        f"Almanac and {found['stories_over_even']:.1f} times on stories260K: "
        + ("about even, as in the paper." if max(largest, found["stories_over_even"]) < 1.5 else "**not** even, unlike "
           "in the paper.")
    )  # fmt: skip
    return said


def page(config: Config, result: dict[str, Any], about: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the page; returns the record."""
    found = findings(config, result)
    blocks = config.recipe.layers
    rows = [
        [f"{name}, seed {seed}, {kind}", *(f"{v:.3f}" for v in each[kind].mean(0)), f"{centre(each[kind]).mean():.3f}"]
        for seed, part in zip(config.seeds, result["almanac"], strict=True)
        for kind in (MLP, ATTENTION)
        for name, each in part["shares"].items()
    ]
    stories = result[STORIES]
    story_rows = [
        [kind, *(f"{v:.3f}" for v in each.mean(0)), f"{centre(each).mean():.3f}"] for kind, each in stories.items()
    ]
    known = ", ".join(f"{share:.0%}" for share in found["known"])
    said = remarks(found)
    text = f"""# Influence by depth

{(__doc__ or "").split("folder", 1)[1].strip()}

{chr(10).join(said)}

## The Almanac: shares of the influence by block

{blocks} blocks of width {config.recipe.width}; the models complete {known} of the facts asked, in a new wording. Sums
over the {config.top} rows that matter most to each question.

{_page.table(["questions", *(f"block {n + 1}" for n in range(blocks)), "centre"], rows)}

## stories260K

{config.endings} story endings, {config.stories} stories.

{_page.table(["layers", *(f"block {n + 1}" for n in range(stories[MLP].shape[1])), "centre"], story_rows)}

Different from the paper: six blocks in place of 64 and a model that reads one small book; facts that all stand in five
wordings, none of them memorised word for word; the {config.top} strongest of all rows in place of 500 of a scan. In a
network this shallow every block is close to both ends. The time below is without the training of the Almanac's models
where these were there from an earlier run.
"""
    x = list(range(1, blocks + 1))
    pooled = {
        name: np.concatenate([part["shares"][name][MLP] for part in result["almanac"]])
        for name in result["almanac"][0]["shares"]
    }
    lines = [
        _page.Line(name, x, each.mean(0).tolist(), (each.std(0, ddof=1) / len(each) ** 0.5).tolist())
        for name, each in pooled.items()
    ]
    record = {"about": about, "findings": found, "means": means(result)}
    _page.write(
        folder, "layer_depth", text=text, lines=lines, axes=("block", "share of the MLP influence"), record=record
    )
    return record


def means(result: dict[str, Any]) -> dict[str, Any]:
    """Mean shares by block, of every kind of question and layer."""
    almanac = [
        {name: {kind: of.mean(0).tolist() for kind, of in each.items()} for name, each in part["shares"].items()}
        for part in result["almanac"]
    ]
    return {"almanac": almanac, STORIES: {kind: of.mean(0).tolist() for kind, of in result[STORIES].items()}}


def main() -> None:
    given = _page.arguments((__doc__ or "").splitlines()[0], place=".demo", stories=Config.stories)
    torch.set_num_threads(1)
    config = replace(Config(), stories=given.stories)
    started = time.perf_counter()
    result = run(config, given.data, Path(given.place))
    record = page(config, result, _page.circumstances(config, time.perf_counter() - started), given.docs)
    print(json.dumps(record["findings"], indent=1))


if __name__ == "__main__":
    main()
