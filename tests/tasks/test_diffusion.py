"""Noise prediction by hand; images of every kind; models and schedules from folders; the command line."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import peft
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import whence as library
from cli.conftest import Said
from cli.conftest import whence as whence
from reference.task_models import alphas, awake, encoded, transformer, unet
from tasks.conftest import row
from whence.errors import ModelError, TaskError
from whence.loading import load_model
from whence.tasks.base import RowProblem, Setup
from whence.tasks.diffusion import Diffusion
from whence.tasks.images import THUMBNAIL, read_image, thumbnail
from whence.tasks.rows import read_rows, row_view

Call = Callable[..., Said]
SHAPE = (1, 8, 8)


def pixels(seed: int, *, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, channels)).astype(np.uint8)


def png(array: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(out, kind)
    return out.getvalue()


def small(place: Path) -> Path:
    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    model.save_pretrained(place)
    DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2").save_pretrained(place)
    return place


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_the_loss_by_hand(target: Any) -> None:
    model, task, examples, _ = unet()
    task = Diffusion(task.alphas, task.shape, target, times=3)
    schedule = DDPMScheduler(num_train_timesteps=40, prediction_type=target)
    for example in examples:
        batch = task.collate([example])
        clean = torch.from_numpy(example.inputs["image"]).double()
        times = batch.inputs["timestep"]
        assert [int(t) * 3 // 40 for t in times] == [0, 1, 2], "one time from each third of the schedule"
        alpha = torch.tensor(alphas())[times][:, None, None, None]
        noise = (batch.inputs["sample"] - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        torch.testing.assert_close(
            schedule.add_noise(clean.expand_as(noise), noise, times), batch.inputs["sample"], rtol=1e-5, atol=1e-5
        )
        velocity = schedule.get_velocity(clean.expand_as(noise), noise, times)
        wanted = {"epsilon": noise, "v_prediction": velocity, "sample": clean.expand_as(noise)}[target]
        torch.testing.assert_close(batch.labels[0], wanted, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            total = sum(
                0.5 * float((model(batch.inputs["sample"][k : k + 1], t).sample - batch.labels[:, k]).square().sum())
                for k, t in enumerate(times)
            )
            found = task.losses(task.outputs(model, batch), batch)
        assert float(found) == pytest.approx(total / 3, rel=1e-9)


def test_times_and_noise_belong_to_the_row_and_the_seed() -> None:
    _, task, examples, _ = unet()
    whole, turned = task.collate(examples), task.collate(examples[::-1])
    assert torch.equal(whole.labels, turned.labels.flip(0))
    assert not torch.equal(whole.labels[0], whole.labels[1])
    other = Diffusion(task.alphas, task.shape, times=3, seed=1).collate(examples)
    assert not torch.equal(whole.labels, other.labels)
    drawn = task.sample(torch.zeros_like(whole.labels), whole, 0).labels
    assert float((drawn / 3**0.5 - whole.labels).abs().max()) > 0.1, "drawn targets are not the noise to be found"


def test_what_the_model_is_told() -> None:
    _, task, _, _ = transformer()
    image = {"image": pixels(0)[:4, :4].tolist()}
    assert int(task.encode(row(**image, label="3")).inputs["class_labels"]) == 3
    with pytest.raises(RowProblem, match="has no label"):
        task.encode(row(**image))
    named = Diffusion(alphas(), (1, 4, 4), condition="class", names={"square": 2})
    assert int(named.encode(row(**image, label="square")).inputs["class_labels"]) == 2
    with pytest.raises(RowProblem, match="square=2"):
        named.encode(row(**image, label="ring"))
    mute = Diffusion(alphas(), (1, 4, 4), condition="caption")
    assert mute.encode(row(**image, embedding=[[1.0, 2.0]])).inputs["encoder_hidden_states"].shape == (1, 2)
    with pytest.raises(TaskError, match="no text encoder"):
        mute.encode(row(**image, text="a square"))
    with pytest.raises(TaskError, match="noise schedule"):
        Diffusion.of(Setup(torch.nn.Linear(1, 1)))


def test_images_of_every_kind_are_the_same_numbers() -> None:
    for channels in (1, 3):
        array = pixels(1, channels=channels)
        wanted = array.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1
        kinds: list[Any] = [
            {"bytes": png(array), "path": "a.png"},
            array.tolist(), array.transpose(2, 0, 1).tolist(), (array / 255.0).tolist(),
        ]  # fmt: skip
        kinds += [array[..., 0].tolist()] if channels == 1 else []
        for kind in kinds:
            found, resized = read_image(kind, (channels, 8, 8))
            np.testing.assert_array_equal(found, wanted)
            assert not resized
    wide = np.zeros((8, 16, 1), np.uint8)
    wide[:, 2:14] = 255  # a margin: scaling blurs the edge
    found, resized = read_image({"bytes": png(wide)}, (1, 4, 4))
    assert resized and found.min() == 1.0, "scaled to cover, then cut in the middle"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"path": "/etc/passwd"}, "no_image"), ({"bytes": b"not an image"}, "bad_image"), ({"bytes": b""}, "bad_image"),
        ({"bytes": png(pixels(0), "GIF")}, "bad_image"), ({"bytes": png(pixels(0))[:40]}, "bad_image"),
        ([[1, 2], [3]], "bad_image"), ([[300]], "bad_image"), ([[-1.0]], "bad_image"), ([[float("nan")]], "bad_image"),
        ([["x"]], "bad_image"), ([], "bad_image"), ([[[1, 2], [3, 4]], [[1, 2], [3, 4]]], "bad_image"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_said(value: Any, code: str) -> None:
    with pytest.raises(RowProblem) as caught:
        read_image(value, SHAPE)
    assert caught.value.code == code


def test_a_small_picture_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the size wanted, the same pixels where they fit, nothing of the file beside them, and never an error."""
    secret = PngInfo()
    secret.add_text("note", "private")
    file = io.BytesIO()
    Image.fromarray(pixels(0)[..., 0]).save(file, "PNG", pnginfo=secret)
    small_one = thumbnail({"image": {"bytes": file.getvalue()}})
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(small_one)).convert("L")), pixels(0)[..., 0])
    assert b"private" in file.getvalue() and b"private" not in small_one
    wide = np.random.default_rng(0).integers(0, 256, (300, 100, 3), dtype=np.uint8)
    drawn = Image.open(io.BytesIO(thumbnail({"image": wide})))
    assert drawn.size == (THUMBNAIL // 3, THUMBNAIL)
    for none in ({}, {"image": "words"}, {"image": {"path": "/etc/passwd"}}, {"image": {"bytes": b"x"}}, {"image": []}):
        assert thumbnail(none) == b""
    monkeypatch.setattr("whence.tasks.images.MOST_PIXELS", 63)
    assert thumbnail({"image": {"bytes": png(pixels(0))}}) == b""


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whence.tasks.images.MOST_PIXELS", 63)
    with pytest.raises(RowProblem, match="8 x 8 pixels"):
        read_image({"bytes": png(pixels(0))}, SHAPE)


def picture_folder(place: Path) -> Path:
    for n in range(6):
        path = place / ("ring" if n % 2 else "square") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(n)))
    (place / "notes.txt").write_text("no image")
    (place / "linked.png").symlink_to(place / "ring" / "1.png")
    lines = [{"file_name": "ring/1.png", "text": "a ring <b>"}]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return place


def test_rows_from_folders_parquet_and_datasets(tmp_path: Path) -> None:
    read = read_rows(str(picture_folder(tmp_path / "images")))
    assert (read.shape, [r.id for r in read.rows][:2]) == ("image", ["ring/1.png", "ring/3.png"])
    assert [r.fields["label"] for r in read.rows] == ["ring"] * 3 + ["square"] * 3
    assert row_view(read.rows[0]).text == "a ring <b> · ring/1.png"
    assert row_view(read.rows[1]).text == "label ring · ring/3.png"
    frame = pd.DataFrame([{"image": {"bytes": png(pixels(n)), "path": f"{n}.png"}, "label": n} for n in range(3)])
    frame.to_parquet(tmp_path / "rows.parquet")
    table = datasets.Dataset.from_pandas(frame).cast_column("image", datasets.Image())
    as_numbers = [{"image": pixels(n)[..., 0], "label": n} for n in range(3)]
    task = Diffusion(alphas(), SHAPE)
    images = [
        np.stack([task.encode(r).inputs["image"] for r in read_rows(spec).rows])
        for spec in (str(tmp_path / "rows.parquet"), table, as_numbers)
    ]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    assert read_rows(table).fingerprint == read_rows(table).fingerprint


def test_a_model_from_its_folder_and_with_an_adapter(tmp_path: Path) -> None:
    folder = small(tmp_path / "unet")
    loaded = load_model(folder)
    assert loaded.task == "diffusion"
    wanted = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    task = Diffusion.of(Setup(loaded.model, extra=loaded.extra), times=2)
    assert (task.shape, task.times, task.condition, task.target) == (SHAPE, 2, "none", "epsilon")
    np.testing.assert_allclose(task.alphas, wanted, rtol=1e-6)
    tuned = peft.get_peft_model(loaded.model, peft.LoraConfig(r=2, target_modules=["conv1"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../unet"}))
    again = load_model(tmp_path / "lora")
    assert (again.task, again.extra["shape"]) == ("diffusion", SHAPE)
    live = load_model((tuned, DDPMScheduler(num_train_timesteps=7)))
    assert (live.task, len(live.extra["alphas"])) == ("diffusion", 7)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError):
        load_model(folder)
    (folder / "config.json").write_text('{"_class_name": "os.system"}')
    with pytest.raises(ModelError, match="UNet2DModel"):
        load_model(folder)


def test_from_python_and_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whence: Call) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = small(tmp_path / "unet"), picture_folder(tmp_path / "images")
    words = ["--model", model, "--data", data, "--query", data, "--task", "diffusion:times=2"]
    said = whence("trace", *words, "--method", "datainf", "-o", "run")
    assert said.code == 0, said.err
    assert "shape image" in said.err
    loaded = library.load("run")
    scores = library.attribute(str(model), train=str(data), query=str(data), task="diffusion:times=2", method="datainf")
    np.testing.assert_array_equal(loaded.values, scores.values)
    assert np.isfinite(scores.values).all() and np.diag(scores.values).min() > 0
    page = Path("run/report.html").read_text()
    assert "a ring \\u003cb" in page and "a ring <b>" not in page
    assert base64.b64encode(thumbnail(read_rows(str(data)).rows[0].fields)).decode() in page
    assert loaded.train_rows == scores.train_rows and all(view.image for view in loaded.query_rows.values())
    assert whence("check", model, data).code == 0
    ekfac = library.attribute(str(model), train=str(data), query=str(data), task="diffusion:times=2")
    assert np.isfinite(ekfac.values).all()
    library.build_index(str(model), train=str(data), out="index", task="diffusion:times=2")
    answer = library.ask("index", query=str(data))
    assert {i: v.image for i, v in answer.train_rows.items()} == {i: v.image for i, v in scores.train_rows.items()}


def test_a_live_model_that_was_never_saved() -> None:
    model, _, _, _ = unet()
    rows = [{"image": np.random.default_rng(n).integers(0, 256, (4, 4, 2)), "id": f"i{n}"} for n in range(4)]
    scores = library.attribute((awake(model), DDPMScheduler(num_train_timesteps=20)), train=rows, query=rows[:1])
    assert np.isfinite(scores.values).all()
    assert encoded(Diffusion(alphas(), (2, 4, 4)), [{"image": rows[0]["image"].tolist()}])
