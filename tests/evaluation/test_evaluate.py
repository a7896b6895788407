import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.errors import UserError
from cvt.evaluation import evaluate
from cvt.evaluation.answers import class_names_of
from cvt.training.config import TrainConfig, save_config
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record
from cvt.zoo.create import create_model

CLASSES = ("blue", "green", "red")


@pytest.fixture
def colours(tmp_path):
    """A folder of noisy pictures of three colours, eight of each."""
    random = np.random.default_rng(0)
    for channel, name in ((2, "blue"), (1, "green"), (0, "red")):
        folder = tmp_path / "colours" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = random.integers(0, 120, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += random.integers(40, 100, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "colours"


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint(class_names)`: weights whose outputs are the same whatever they are called."""
    torch.manual_seed(0)
    model = create_model("cvt_nano_32", num_classes=3, embed_dim=[8, 8, 16], num_heads=1, depth=1)
    record = Record(
        model="cvt_nano_32",
        spec=model.spec,
        preprocessing=Preprocessing(input_size=(3, 16, 16), crop_pct=1.0),
        class_names=CLASSES,
    )

    def save(class_names=CLASSES):
        path = tmp_path / "run" / "best.safetensors"
        kept = dataclasses.replace(record, class_names=class_names)
        save_checkpoint(path, model.state_dict(), kept)
        return path

    return save


def test_measures_every_picture_once(checkpoint, colours):
    sizes = []
    evaluation = evaluate(
        checkpoint(), str(colours), split="all", batch_size=10, on_batch=sizes.append
    )
    assert (evaluation.num_images, sizes) == (24, [10, 10, 4])
    assert [each.name for each in evaluation.per_class] == list(CLASSES)
    assert evaluation.top1 == pytest.approx(
        100 * np.trace(evaluation.confusion) / evaluation.confusion.sum()
    )


def test_classes_are_matched_by_name(checkpoint, colours):
    by_name = evaluate(checkpoint(), str(colours), split="all")
    swapped = evaluate(checkpoint(("red", "green", "blue")), str(colours), split="all")
    order = [2, 1, 0]
    assert (swapped.confusion == by_name.confusion[order]).all()


def test_a_class_may_be_missing_or_have_one_picture(checkpoint, colours):
    whole = evaluate(checkpoint(), str(colours))
    shutil.rmtree(colours / "blue")
    for number in range(1, 8):
        (colours / "red" / f"{number}.png").unlink()
    few = evaluate(checkpoint(), str(colours))
    assert [each.num_images for each in few.per_class] == [0, 8, 1]
    assert (few.confusion[1] == whole.confusion[1]).all()
    assert (few.num_images, few.split, few.num_found) == (9, "all", 9)


def test_a_class_that_the_model_does_not_have_is_named(checkpoint, colours):
    (colours / "blue").rename(colours / "mauve")
    with pytest.raises(UserError, match=r"1 of 3 classes .* 'mauve' \(8 images\)"):
        evaluate(checkpoint(), str(colours))


def test_what_is_not_used_is_told_and_what_cannot_be_read_is_bad(checkpoint, colours, monkeypatch):
    (colours / "red" / "list.csv").touch()
    closed = colours / "green" / "closed"
    closed.mkdir()
    scandir = os.scandir
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(
        os, "scandir", lambda path: scandir(path) if str(path) != str(closed) else raise_(error)
    )
    evaluation = evaluate(checkpoint(), str(colours))
    assert evaluation.notes == (f"1 file in {colours} is not used: 1 .csv (red/list.csv).",)
    assert evaluation.bad == (f"Cannot read the folder {closed}: Permission denied.",)
    assert evaluation.to_dict()["notes"] == list(evaluation.notes)


def raise_(error):
    raise error


def test_broken_pictures_are_left_out_and_named(checkpoint, colours):
    (colours / "red" / "0.png").write_bytes(b"")
    evaluation = evaluate(checkpoint(), str(colours), split="all")
    assert evaluation.num_images == 23
    assert len(evaluation.bad) == 1
    assert "red/0.png is empty" in evaluation.bad[0]


def test_of_its_runs_data_the_validation_split_is_measured(checkpoint, colours):
    path = checkpoint()
    assert evaluate(path, str(colours)).num_images == 24
    config = TrainConfig(data=str(colours), seed=3, val_fraction=0.5)
    save_config(path.parent / "config.yaml", config)
    for each in (path, path.parent):
        own = evaluate(each, str(colours))
        assert (own.num_images, own.split, own.num_found, own.split_was_cut) == (
            12,
            "val",
            24,
            True,
        )
    save_config(path.parent / "config.yaml", dataclasses.replace(config, seed=4))
    assert evaluate(path, str(colours)).loss != own.loss
    elsewhere = shutil.copytree(colours, colours.with_name("elsewhere"))
    assert evaluate(path, str(elsewhere)).num_images == 24


def test_a_model_may_be_given_as_it_is(colours):
    model = create_model("cvt_nano_32", num_classes=3, depth=1)
    assert evaluate(model, str(colours), split="all").num_images == 24


def test_classes_that_may_hold_together_are_not_measured_as_one(oracle):
    model = oracle(num_classes=3)
    model.record = dataclasses.replace(model.record, multi_label=True)
    with pytest.raises(UserError, match=r"classes may hold together \(multi_label\)"):
        class_names_of(model)
