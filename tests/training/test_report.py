import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cvt.errors import UserError
from cvt.training.report import (
    TrainResult,
    harder_by,
    report,
    save_comparison,
    save_curves,
    save_result,
)
from cvt.training.run_folder import EpochRow
from trained import config_of


def result(run, **changes):
    values = {
        "run": run, "data": "my photos", "best_epoch": 2, "best_top1": 90.0, "best_loss": 0.5,
        "test_top1": 89.5, "test_loss": 0.6, "seconds": 8040.0, "bad": ("a.png is empty",),
    }  # fmt: skip
    return TrainResult(**values | changes)


def test_the_result_is_kept_as_json(tmp_path):
    save_result(tmp_path, result(tmp_path))
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept == result(tmp_path).to_dict()
    assert kept["test_top1"] == 89.5
    save_result(tmp_path, result(tmp_path, test_top1=None, test_loss=None))
    assert "test_top1" not in json.loads((tmp_path / "result.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_end_names_figures_files_and_what_to_type_next(tmp_path):
    run = tmp_path / "my run"
    lines = report(result(run)).splitlines()
    assert lines[1].startswith("Done in 2 h 14 min. Best epoch 2: validation top-1 90.00 %")
    assert "Test top-1 89.50 %, loss 0.6000." in lines
    assert "1 images could not be read and were skipped." in lines
    for name in ("README.md", "best.safetensors", "metrics.csv", "tensorboard/", "config.yaml"):
        assert any(line.strip().startswith(name) for line in lines)
    for command in (
        f"cvt eval '{run}' 'my photos'",
        f"cvt predict '{run}' IMAGE",
        f"cvt export '{run}' 'my run.onnx'",
        f"cvt runs {tmp_path}",
        f"tensorboard --logdir '{run}'",
    ):
        assert f"  {command}" in lines


def test_images_are_named_where_there_are_any(tmp_path):
    assert not [name for name in IMAGES if name in report(result(tmp_path))]
    for name in IMAGES:
        (tmp_path / name).touch()
    assert all(name in report(result(tmp_path)) for name in IMAGES)
    assert "no answer was wrong" not in report(result(tmp_path))
    assert "no answer was wrong" in report(result(tmp_path, best_top1=100.0, test_top1=100.0))


IMAGES = ("batch.png", "mistakes.png", "mistakes.csv", "confusion.png")


def test_without_onnx_the_export_is_one_of_torch(tmp_path, monkeypatch):
    monkeypatch.setattr("cvt.training.report.find_spec", lambda name: None)
    assert f"cvt export {tmp_path} {tmp_path.name}.pt2" in report(result(tmp_path))


def test_what_was_not_measured_is_not_said(tmp_path):
    text = report(result(tmp_path, test_top1=None, test_loss=None, bad=()))
    assert "Test" not in text
    assert "skipped" not in text


RED = (0xD6, 0x27, 0x28)
BLUE, ORANGE, GREY = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0xC8, 0xC8, 0xC8)


def history(epochs, top=90.0):
    return [
        EpochRow(
            epoch=epoch, train_loss=2 / epoch, val_loss=2.5 / epoch, val_top1=top * (1 - 1 / epoch),
            lr=0.1 / epoch, images_per_s=100.0, seconds=9.0, data_wait=0.0, memory_mb=64.0,
        )
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


def count(path, colour):
    """How many pixels of a plot have a colour."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(axis=2) < 3).sum())


@pytest.mark.parametrize("epochs", [1, 40])
def test_curves_mark_the_best_epoch(tmp_path, epochs):
    save_curves(tmp_path / "curves.png", history(epochs), "a title", 500)
    assert count(tmp_path / "curves.png", RED) > 100
    assert (count(tmp_path / "curves.png", BLUE) > 300) == (epochs > 1)


def test_curves_say_how_sure_the_best_is_and_why_training_lies_above(tmp_path, monkeypatch):
    figures, saved = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **o: (figures.append(figure), saved(figure, *a, **o))
    )
    path = tmp_path / "curves.png"
    config = config_of(mix={"mixup": 0.2, "smoothing": 0.1}, augment={"crop": "none"})
    save_curves(path, history(4), "a title", 500, harder_by(config, drops_path=True))
    accuracy, losses, rate = figures[0].axes
    said = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert said[0] == "best: 67.50 % in epoch 4"
    assert said[1].startswith("95 % interval of 500 images: 63.")
    why = losses.get_legend().get_texts()[0].get_text()
    assert " ".join(why.split()) == "training, raised by mixing, label smoothing and drop path"
    assert rate.get_position().height < accuracy.get_position().height / 2
    plain = config_of(mix={"mixup": 0, "smoothing": 0}, augment={"crop": "none"})
    assert harder_by(plain, drops_path=False) == []


def test_comparison_gives_every_data_set_a_panel(tmp_path):
    sizes = {}
    for names in (("pets",), ("pets", "digits")):
        panels = {name: [("one", history(40)), ("two", history(9, 80.0))] for name in names}
        save_comparison(tmp_path / "runs.png", panels)
        assert min(count(tmp_path / "runs.png", colour) for colour in (BLUE, ORANGE)) > 60
        with Image.open(tmp_path / "runs.png") as image:
            sizes[len(names)] = image.size
    assert sizes[2][1] == pytest.approx(2 * sizes[1][1], abs=2)


def test_runs_past_the_tenth_are_grey(tmp_path):
    runs = [(f"run {number}", history(30, 90.0 - number)) for number in range(12)]
    save_comparison(tmp_path / "few.png", {"digits": runs[:10]})
    save_comparison(tmp_path / "many.png", {"digits": runs})
    assert count(tmp_path / "many.png", GREY) > count(tmp_path / "few.png", GREY) + 200


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        save_curves(tmp_path / "file" / "curves.png", history(2), "a title", 500)
