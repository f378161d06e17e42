"""Two stages of training in one command: models on disk, heads that differ, an adapter, ids and words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from folders import animal_rows, model_folder, tiny_llama, word_tokenizer, write_rows
from whence import attribute, load
from whence.cli.main import run
from whence.errors import OptionError
from whence.options import TraceOptions
from whence.pipeline import open_rows, open_subject
from whence.scores.score import collect
from whence.stages import learning_rates
from whence.watch import Silent

QUERY = [{"prompt": "where did the cat go", "completion": "the cat sat under the mat ."}]
OPTIONS = {"dtype": "float64", "fit_rows": "all", "lexical": False}


def nudged(place: Path, *, seed: int = 0) -> Path:
    """A fine-tuned copy: the base's weights, moved a little."""
    model = tiny_llama(seed=seed)
    with torch.no_grad():
        for n, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(n)
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("stages")
    rows = animal_rows(14)
    return {
        "base": model_folder(place / "base"),
        "tuned": nudged(place / "tuned"),
        "pre": write_rows(place / "pre.jsonl", rows[:8]),
        "tune": write_rows(place / "tune.jsonl", rows[8:]),
        "query": write_rows(place / "query.jsonl", QUERY),
        "place": place,
    }


def gradients(model: Path, rows, what: str) -> torch.Tensor:
    """Rows x parameters of the default layers."""
    subject = open_subject(str(model), TraceOptions(dtype="float64"), Silent())
    found = collect(open_rows(subject, rows, what=what).source, "true")
    return torch.cat([g.full().flatten(1) for g in found.grads.values()], dim=1)


def stages(world, **options):
    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 0.5}
    given = {**OPTIONS, "train": str(world["tune"]), "query": QUERY, "pretraining": before, **options}
    return attribute(str(world["tuned"]), **given)


def test_without_curvature_it_is_alpha_times_the_gradient_product(world):
    scores = stages(world, method="identity")
    query = gradients(world["tuned"], QUERY, "query")
    tune = (query @ gradients(world["tuned"], str(world["tune"]), "train").T / 6).numpy()
    pre = (0.5 * query @ gradients(world["base"], str(world["pre"]), "train").T / 8).numpy()
    assert scores.n_train == 14 and scores.values.shape == (1, 14)
    np.testing.assert_allclose(scores.removal_effect(0), np.concatenate([tune, pre], axis=1)[0], rtol=1e-6)
    sources = [scores.train_rows[i].source for i in scores.train_ids]
    assert all(s.startswith("fine-tuning") for s in sources[:6])
    assert all(s.startswith("pre-training") for s in sources[6:])


def test_a_strong_pull_is_one_stage_on_the_pretrained_rows(world):
    """Alpha -> infinity and tuned = base: ordinary EK-FAC influence of the pre-training rows."""
    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 1e9}
    both = attribute(str(world["base"]), train=str(world["tune"]), query=QUERY, pretraining=before, **OPTIONS)
    alone = attribute(str(world["base"]), train=str(world["pre"]), query=QUERY, **OPTIONS)
    np.testing.assert_allclose(both.removal_effect(0)[6:], alone.removal_effect(0), rtol=1e-5)


def test_whole_matrix_methods_pass_through_both_stages_too(world):
    """``exact`` couples layers; under a huge alpha and on the base itself it is one stage again."""
    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 1e9}
    layers = {"layers": ("*self_attn*",), "method": "exact", "damping": "relative:0.1"}
    both = attribute(str(world["base"]), train=str(world["tune"]), query=QUERY, pretraining=before, **layers, **OPTIONS)
    alone = attribute(str(world["base"]), train=str(world["pre"]), query=QUERY, **layers, **OPTIONS)
    np.testing.assert_allclose(both.removal_effect(0)[6:], alone.removal_effect(0), rtol=1e-5)


def test_ids_that_both_stages_have_are_told_apart(world):
    rows = [{"id": f"row{n}", **row} for n, row in enumerate(animal_rows(6))]
    before = {"model": str(world["base"]), "data": rows, "alpha": 0.5}
    scores = stages(world, train=rows[:4], pretraining=before, method="identity", top_k=3)
    assert len(set(scores.train_ids)) == 10
    assert scores.train_ids[4] == "pre-training/row0" and scores.train_ids[-1] == "row5"
    assert scores.values.shape == (1, 6) and scores.proponents(0, 1)


def test_tokens_of_both_stages_add_up_to_their_rows(world):
    scores = stages(world, tokens=2)
    told = {train_id for _, train_id in scores.token_tracks}
    own, before = ({i for i in told if scores.train_rows[i].source.startswith(s)} for s in ("fine", "pre-"))
    assert own and before and own | before == told
    for (query_id, train_id), tracks in scores.token_tracks.items():
        score = scores.row(query_id)[scores.train_ids.index(train_id)]
        assert tracks[0].total == pytest.approx(score, rel=1e-9)
        assert tracks[1].total == pytest.approx(score, rel=1e-5)
        assert scores.token_pairs[query_id, train_id].sum() == pytest.approx(score, rel=1e-5)
    given = sum(max(0.0, scores.row(0)[scores.train_ids.index(i)]) for i in told)
    assert scores.query_tracks[scores.query_ids[0]].total == pytest.approx(given, rel=1e-9)


def test_heads_may_differ(world):
    place = world["place"] / "classifier"
    model_folder(place, classes=2)
    rows = [{"text": row["text"], "label": ["calm", "lively"][n % 2]} for n, row in enumerate(animal_rows(6))]
    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 0.5}
    scores = attribute(str(place), train=rows, query=rows[:1], pretraining=before, **OPTIONS)
    assert np.isfinite(scores.values).all() and scores.values.shape == (1, 14)
    assert any("7 layers are shared" in said for said in scores.about["warnings"])


def test_an_adapter_is_merged_into_its_base(world):
    place = world["place"] / "adapter"
    base = tiny_llama(seed=0)
    torch.manual_seed(5)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(place)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(world["base"])}))
    heard = []

    class Ear(Silent):
        def note(self, kind, text, **facts):
            heard.append(kind)

    before = {"model": str(world["base"]), "data": str(world["pre"]), "alpha": 0.5}
    scores = attribute(
        str(place), train=str(world["tune"]), query=QUERY, pretraining=before, method="identity", watch=Ear(), **OPTIONS
    )
    merged = place.parent / "merged"
    adapted.merge_and_unload().save_pretrained(merged)
    word_tokenizer().save_pretrained(merged)
    wanted = attribute(
        str(merged), train=str(world["tune"]), query=QUERY, pretraining=before, method="identity", **OPTIONS
    )
    np.testing.assert_allclose(scores.values, wanted.values, rtol=1e-4, atol=1e-6)
    assert "adapter" in heard
    assert not any("lora" in name for name in scores.about["layers"])


def test_one_command(world, capsys):
    out = world["place"] / "run"
    words = ["trace", "--model", world["tuned"], "--data", world["tune"], "--pretrained", world["base"]]
    words += ["--pretrained-data", world["pre"], "--alpha", "0.5", "--query", world["query"], "-o", out, "--json"]
    assert run([str(word) for word in words]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shown = [r for r in records if r["type"] == "score"]
    assert {r["source"].split(":")[0] for r in shown} == {"fine-tuning", "pre-training"}
    scores = load(out)
    assert scores.about["alpha"] == 0.5 and "--pretrained" in scores.about["command"]
    assert "pre-training" in (out / "report.html").read_text(encoding="utf-8") or (out / "report.html").stat().st_size


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"normalise": "cosine"}, "no common metric"),
        ({"pretraining": {"model": "b", "data": "d", "alpha": "much"}}, "a number above 0"),
        ({"pretraining": {"model": "b", "data": "d"}}, "no trainer_state.json"),
        ({"pretraining": {"model": "b", "data": "d", "alpha": 0.0}}, "alpha = 0.0"),
    ],
)
def test_settings_that_cannot_work_are_explained(world, extra, said):
    if "pretraining" in extra:
        real = {"model": str(world["base"]), "data": str(world["pre"])}
        extra = {"pretraining": {**extra["pretraining"], **real}}
    with pytest.raises(OptionError, match=said):
        stages(world, method="identity", **extra)


def test_half_a_stage_is_refused(world):
    words = ["trace", "--model", world["tuned"], "--data", world["tune"], "--pretrained", world["base"]]
    assert run([*map(str, words), "--query", str(world["query"])]) == 2


def test_alpha_is_read_from_the_trainer(world):
    state = {"global_step": 10, "log_history": [{"step": 4, "learning_rate": 0.1}, {"step": 8, "learning_rate": 0.05}]}
    assert learning_rates(state) == [0.1] * 4 + [0.05] * 6
    (world["tuned"] / "trainer_state.json").write_text(json.dumps(state))
    before = {"model": str(world["base"]), "data": str(world["pre"])}
    scores = stages(world, method="identity", pretraining=before)
    about = scores.about["train"]
    assert scores.about["alpha"] == pytest.approx(about["loss_tokens"] / about["used"] / 0.7)
    (world["tuned"] / "trainer_state.json").unlink()
