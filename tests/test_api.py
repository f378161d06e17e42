"""Ten lines of Python: what may be given, what comes back, and that the pipeline adds nothing to the floors below."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import whence
from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence.curvature.base import Problem, get_method
from whence.curvature.fit import FitOptions, fit
from whence.curvature.implied import implied_damping
from whence.errors import DataError, OptionError, StoreError
from whence.gradients.layers import find_layers
from whence.gradients.source import LiveGradients
from whence.linalg.damping import relative
from whence.scores.score import pairwise, prepare_queries
from whence.tasks.batches import plan_batches
from whence.tasks.causal_lm import CausalLM
from whence.tasks.rows import ReadOptions, read_rows

QUESTION = {"prompt": "the cat sat on", "completion": " the mat ."}


def live() -> tuple[Any, Any]:
    return tiny_llama().double(), word_tokenizer()


def test_ten_lines(tmp_path: Path) -> None:
    scores = whence.attribute(live(), train=animal_rows(), query=QUESTION)
    assert scores.values.shape == (1, 12)
    best = scores.proponents(0, k=3)
    assert best[0].score > 0
    assert best[0].removal_effect == pytest.approx(best[0].score / 12)
    assert scores.train_rows[best[0].train_id].text
    assert len(scores.to_pandas()) == 12
    assert scores.report(tmp_path / "report.html").is_file()
    assert np.array_equal(whence.load(scores.save(tmp_path / "run")).values, scores.values)


def test_the_pipeline_is_the_floors_below() -> None:
    """Assembled by hand from its parts, the result is the same to the bit."""
    found = whence.attribute(live(), train=animal_rows(), query=QUESTION, fit_rows="all", damping=relative(0.3))
    model, tokenizer = live()
    task = CausalLM(tokenizer, max_length=32)
    layers = find_layers(model.eval())

    def source(rows: list[dict[str, str]]) -> LiveGradients:
        made = [task.encode(row) for row in read_rows(rows, options=ReadOptions(source="train")).rows]
        plan = plan_batches([e.length for e in made], token_budget=4096)
        return LiveGradients(model, task, made, plan, layers)

    train = source(animal_rows())
    method = get_method("ekfac")
    factors = fit(train, method, FitOptions(rows="all"))
    inverse = method.operator(factors, Problem(train)).power(-1, relative(0.3))
    wanted = pairwise(train, prepare_queries(source([QUESTION]), inverse))
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "query",
    [
        QUESTION,
        [QUESTION],
        {"prompt": "the cat sat on", "response": " the mat ."},
        {"mine": [QUESTION]},
        datasets.Dataset.from_list([QUESTION]),
    ],
    ids=["dict", "list", "response", "named", "dataset"],
)
def test_ways_to_ask(query: Any) -> None:
    wanted = whence.attribute(live(), train=animal_rows(), query=QUESTION)
    np.testing.assert_array_equal(whence.attribute(live(), train=animal_rows(), query=query).values, wanted.values)


def test_ways_to_give_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", animal_rows())
    # labels are drawn by row id, and ids hold the source's name: with the data's own labels the name cannot matter
    given = {"query": QUESTION, "fisher": "empirical"}
    wanted = whence.attribute(live(), train=animal_rows(), **given)
    for train in (path, str(path), [path], {"mine": path}, datasets.Dataset.from_list(animal_rows())):
        np.testing.assert_array_equal(whence.attribute(live(), train=train, **given).values, wanted.values)


def test_options_three_ways() -> None:
    given = {"method": "kfac", "damping": "absolute:0.01"}
    one = whence.attribute(live(), train=animal_rows(), query=QUESTION, **given)
    two = whence.attribute(live(), train=animal_rows(), query=QUESTION, options=given)
    three = whence.attribute(live(), train=animal_rows(), query=QUESTION, options=whence.TraceOptions(**given))
    four = whence.attribute(
        live(), train=animal_rows(), query=QUESTION, method=get_method("kfac"), damping=whence.absolute(0.01)
    )
    for other in (two, three, four):
        np.testing.assert_array_equal(one.values, other.values)
        assert other.about["method"] == "kfac"
        assert other.about["damping"] == "absolute:0.01"


def test_a_task_object() -> None:
    task = CausalLM(word_tokenizer(), max_length=7)
    one = whence.attribute(live(), train=animal_rows(), query=QUESTION, task=task)
    two = whence.attribute(live(), train=animal_rows(), query=QUESTION, max_length=7)
    np.testing.assert_array_equal(one.values, two.values)
    assert one.about["rows"]["truncated"] > 0
    assert {view.status for view in one.train_rows.values()} == {"scored", "truncated"}


def test_per_layer_adds_up() -> None:
    scores = whence.attribute(live(), train=animal_rows(), query=QUESTION, per_layer=True)
    assert scores.per_layer is not None
    np.testing.assert_allclose(scores.per_layer.sum(-1), scores.values, rtol=1e-5, atol=1e-5)


def test_self_influence_both_ways() -> None:
    scores = whence.attribute(live(), train=animal_rows(), query=QUESTION, self_influence=True, fit_rows="all")
    alone = whence.self_influence(live(), train=animal_rows(), fit_rows="all")
    assert scores.self_influence is not None
    np.testing.assert_allclose(list(alone.values()), scores.self_influence, rtol=1e-12)
    assert tuple(alone) == scores.train_ids
    assert (scores.self_influence > 0).all()
    rows = [animal_rows()[3]]
    own = whence.attribute(live(), train=animal_rows(), query=rows, fit_rows="all")
    assert own.values[0, 3] == pytest.approx(scores.self_influence[3])


def test_the_order_of_rows_only_permutes() -> None:
    rows = [{**row, "id": f"r{n}"} for n, row in enumerate(animal_rows())]
    one = whence.attribute(live(), train=rows, query=QUESTION, fit_rows="all")
    two = whence.attribute(live(), train=rows[::-1], query=QUESTION, fit_rows="all")
    assert two.train_ids == one.train_ids[::-1]
    np.testing.assert_allclose(two.values[:, ::-1], one.values, rtol=1e-7)


def test_batch_size_changes_nothing() -> None:
    one = whence.attribute(live(), train=animal_rows(), query=QUESTION, fit_rows="all")
    two = whence.attribute(live(), train=animal_rows(), query=QUESTION, fit_rows="all", batch_tokens=1)
    np.testing.assert_allclose(two.values, one.values, rtol=1e-7)


def test_a_row_whose_gradient_is_not_finite_is_left_out() -> None:
    model, tokenizer = live()

    def poison(_module: Any, args: tuple[Any, ...], output: Any) -> Any:
        bird = (args[0] == tokenizer.convert_tokens_to_ids("bird")).any(1)
        return _poisoned(output, bird)

    model.model.embed_tokens.register_forward_hook(poison)
    scores = whence.attribute((model, tokenizer), train=animal_rows(), query=QUESTION)
    birds = np.array(["bird" in row["text"] for row in animal_rows()])
    assert np.isnan(scores.values[0, birds]).all()
    assert np.isfinite(scores.values[0, ~birds]).all()
    statuses = [scores.train_rows[i].status for i in scores.train_ids]
    assert [status == "quarantined:nonfinite" for status in statuses] == birds.tolist()
    assert len(scores.about["quarantine"]) == birds.sum()


def _poisoned(output: Any, rows: Any) -> Any:
    output = output.clone()
    output[rows] = float("nan")
    return output


def test_a_question_that_is_not_finite() -> None:
    model, tokenizer = live()
    model.model.embed_tokens.register_forward_hook(lambda m, a, out: out * float("nan"))
    with pytest.raises(DataError, match=r"question .* not finite"):
        whence.attribute((model, tokenizer), train=animal_rows(), query=QUESTION)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown option 'metod'"):
        whence.attribute(live(), train=animal_rows(), query=QUESTION, metod="kfac")
    with pytest.raises(DataError):
        whence.attribute(live(), train=[], query=QUESTION)
    with pytest.raises(DataError):
        whence.attribute(live(), train=animal_rows(), query=[])
    with pytest.raises(StoreError, match="no folder"):
        whence.load(tmp_path / "nowhere")


def test_a_damping_of_zero_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.pipeline.load_model", lambda *a, **k: pytest.fail("loaded"))
    for wrong in ({"damping": 0}, {"method": "ekfak"}, {"top_k": 0}):
        with pytest.raises(OptionError):
            whence.attribute("somewhere", train="x", query="y", **wrong)


def test_a_claimed_folder_is_noticed_before_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.pipeline.load_model", lambda *a, **k: pytest.fail("loaded"))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(StoreError):
        whence.attribute("somewhere", train="x", query="y", out=tmp_path)


def test_the_watcher_hears_everything(tmp_path: Path) -> None:
    heard: list[str] = []
    steps: dict[str, list[tuple[int, int]]] = {}

    class Listener:
        def note(self, kind: str, text: str, **facts: Any) -> None:
            heard.append(kind)

        def step(self, stage: str, done: int, total: int) -> None:
            steps.setdefault(stage, []).append((done, total))

    model = model_folder(tmp_path / "model")
    whence.attribute(str(model), train=animal_rows(), query=QUESTION, watch=Listener(), out=tmp_path / "run")
    assert heard == ["model", "layers", "train", "query", "fit", "fit", "out"]
    for stage, counts in steps.items():
        assert counts[0][0] == 0
        assert counts[-1][0] == counts[-1][1], stage
        assert counts == sorted(counts)


class Meddler:
    """Changes the training file while the run is on."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def note(self, *_said: Any, **_more: Any) -> None:
        pass

    def step(self, *_said: Any) -> None:
        self.place.write_text('{"text": "something else"}\n')


def test_a_file_that_changes_meanwhile_costs_nothing_but_is_told(tmp_path: Path) -> None:
    place = write_rows(tmp_path / "rows.jsonl", animal_rows())
    found = whence.attribute(live(), train=str(place), query=QUESTION, watch=Meddler(Path(place)))
    assert np.isfinite(found.values).all()
    assert any("changed while the run" in said for said in found.about["warnings"])
    untouched = whence.attribute(live(), train=animal_rows(), query=QUESTION)
    assert not any("changed" in said for said in untouched.about["warnings"])


def test_the_damping_that_training_implies(tmp_path: Path) -> None:
    """Measured from the starting model's folder; the same as handing in what was measured; kept with the run."""
    start, tokenizer = live()
    base = model_folder(tmp_path / "base")
    model = copy.deepcopy(start)
    tuned = torch.optim.SGD(model.parameters(), lr=0.05)
    encode = CausalLM(tokenizer, max_length=32).encode
    rows = [encode(row) for row in read_rows(animal_rows(), options=ReadOptions(source="train")).rows]
    task = CausalLM(tokenizer, max_length=32)
    for _ in range(5):
        tuned.zero_grad()
        batch = task.collate(rows)
        task.losses(task.outputs(model, batch), batch).mean().backward()
        tuned.step()
    given = {"train": animal_rows(), "query": QUESTION, "method": "ekfac_cg:steps=4"}
    found = whence.attribute((model, tokenizer), damping=f"implied:{base}", out=tmp_path / "run", **given)
    source = LiveGradients(
        model, task, rows, plan_batches([e.length for e in rows], token_budget=4096), find_layers(model)
    )
    measured = implied_damping(source, start)
    assert measured.value > 0
    again = whence.attribute((model, tokenizer), damping=measured, **given)
    np.testing.assert_allclose(found.values, again.values, rtol=1e-6)
    fit_record = json.loads((tmp_path / "run" / "run.json").read_text())["fit"]
    amounts = fit_record["solves"][0]["damping_per_layer"]
    assert amounts == pytest.approx({name: max(a, amounts[name]) for name, a in measured.layers}, rel=1e-5)
    other = whence.attribute((model, tokenizer), **given)
    assert other.about["damping"] == "relative:10"  # for want of evidence
    assert whence.attribute((model, tokenizer), damping=0.1, **given).about["damping"] == "relative:0.1"
    with pytest.raises(OptionError, match="over checkpoints"):
        whence.attribute((model, tokenizer), damping=f"implied:{base}", checkpoints=str(tmp_path), **given)
