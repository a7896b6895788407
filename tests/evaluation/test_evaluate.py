"""Outputs are found by the names of classes, never by the place of a folder among others."""

import dataclasses
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvt import create_model, load
from cvt.data import ArraySet
from cvt.errors import UserError
from cvt.evaluation import class_names_of, evaluate, imagenet_synsets, matched_labels
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record, RunData

CLASSES = ("blue", "green", "red")


@pytest.fixture
def colours(tmp_path):
    """A folder of noisy images of three colours, eight of each."""
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

    def save(class_names=CLASSES, **more):
        path = tmp_path / "run" / "best.safetensors"
        kept = dataclasses.replace(record, class_names=class_names, **more)
        save_checkpoint(path, model.state_dict(), kept)
        return path

    return save


def test_measures_every_image_once(checkpoint, colours):
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


def test_a_class_may_be_missing_or_have_one_image(checkpoint, colours):
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


def test_broken_images_are_left_out_and_named(checkpoint, colours):
    (colours / "red" / "0.png").write_bytes(b"")
    evaluation = evaluate(checkpoint(), str(colours), split="all")
    assert evaluation.num_images == 23
    assert len(evaluation.bad) == 1
    assert "red/0.png is empty" in evaluation.bad[0]


def assert_held_out(result):
    assert (result.num_images, result.split, result.num_found, result.split_was_cut) == (
        (12, "val", 24, True)
    )


def test_of_its_runs_data_the_validation_split_is_measured(checkpoint, colours, tmp_path):
    path = checkpoint()
    assert evaluate(path, str(colours)).num_images == 24
    own = RunData(name=str(colours), seed=3, val_fraction=0.5)
    path = checkpoint(trained_on=own)
    moved = shutil.copy(path, tmp_path / "elsewhere.safetensors")
    for model in (path, path.parent, moved, load(path)):
        found = evaluate(model, str(colours))
        assert_held_out(found)
    other = evaluate(checkpoint(trained_on=dataclasses.replace(own, seed=4)), str(colours))
    assert other.loss != found.loss
    copied = shutil.copytree(colours, colours.with_name("copied"))
    assert evaluate(path, str(copied)).num_images == 24
    path = checkpoint(trained_on=dataclasses.replace(own, digests={"training": (12, "other")}))
    (note,) = evaluate(path, str(colours)).notes
    assert "no longer what the run learned from" in note


def test_weights_that_do_not_say_what_they_learned_from_are_asked_by_their_run(checkpoint, colours):
    """Before their records did, the run's folder alone knew."""
    path = checkpoint()
    config = path.parent / "config.yaml"
    config.write_text(f"data: {colours}\nval_fraction: 0.5\nseed: 3\nepochs: 9\n")
    for each in (path, path.parent):
        assert_held_out(evaluate(each, str(colours)))
    state = path.parent / "checkpoints" / "000001" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"facts": {"identity": {"data": {"training": [12, "other"]}}}}')
    (note,) = evaluate(path, str(colours)).notes
    assert "no longer what the run learned from" in note
    state.write_text("half of i")
    assert_held_out(evaluate(path, str(colours)))
    config.write_text("model:\n  name: of somebody else's program\n")
    assert evaluate(path, str(colours)).num_images == 24


def test_a_model_may_be_given_as_it_is(colours):
    model = create_model("cvt_nano_32", num_classes=3, depth=1)
    assert evaluate(model, str(colours), split="all").num_images == 24


def test_classes_that_may_hold_together_are_not_measured_as_one(oracle):
    model = oracle(num_classes=3)
    model.record = dataclasses.replace(model.record, multi_label=True)
    with pytest.raises(UserError, match=r"classes may hold together \(multi_label\)"):
        class_names_of(model)


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=9,
                 unique_by=lambda name: unicodedata.normalize("NFC", name))  # fmt: skip


def data(*classes, labels=None):
    labels = range(len(classes)) if labels is None else labels
    return ArraySet(np.zeros((len(labels), 1, 1), np.uint8), list(labels), classes, "letters")


def outputs(of, model, num_outputs=None):
    return matched_labels(of, model, num_outputs or len(model))[0].tolist()


@given(names=names, seed=st.integers(0, 99))
def test_any_order_any_form_and_any_part_of_the_classes(names, seed):
    order = np.random.default_rng(seed).permutation(len(names))[: 1 + seed % len(names)]
    for form in ("NFC", "NFD"):
        given = [unicodedata.normalize(form, names[index]) for index in order]
        assert outputs(data(*given), names) == order.tolist()


def test_case_does_not_matter_where_it_leaves_no_choice():
    assert outputs(data("apple", "Banana"), ("Apple", "banana")) == [0, 1]
    assert outputs(data("banana", "APPLE"), ("Apple", "banana")) == [1, 0]
    assert outputs(data("A", "a"), ("a", "A")) == [1, 0]
    with pytest.raises(UserError, match="the model does not have: 'AB'"):
        outputs(data("AB", "c"), ("ab", "Ab", "c"))


def test_numbers_are_numbers_whatever_their_order():
    numbers = sorted(map(str, range(12)))
    assert numbers[2] == "10"
    assert outputs(data(*numbers), tuple(map(str, range(12)))) == [int(each) for each in numbers]
    found, told = matched_labels(data(*numbers), [f"word {each}" for each in range(12)], 12)
    assert found.tolist() == [int(each) for each in numbers]
    assert "taken for the outputs'" in told[0]
    assert outputs(data(*numbers), None, 12) == [int(each) for each in numbers]


def test_numbers_from_one_are_not_shifted_in_silence():
    with pytest.raises(UserError, match="does not have: '3'"):
        outputs(data("1", "2", "3"), ("ant", "bee", "cow"))


def test_words_are_taken_by_place_only_where_the_model_has_none():
    found, told = matched_labels(data("ant", "bee"), None, 2)
    assert found.tolist() == [0, 1]
    assert "does not name its classes" in told[0]
    with pytest.raises(UserError, match="the model of 3 outputs names none"):
        outputs(data("ant", "bee"), None, 3)
    with pytest.raises(UserError, match=r"2 of 2 classes .* 'ant', 'bee' \(2 images\).* has 'x1'"):
        outputs(data("ant", "bee"), ("x1", "x2"))


def test_classes_without_images_need_not_be_known():
    assert outputs(data("ant", "cow", "bee", labels=[0, 2]), ("bee", "ant")) == [1, -1, 0]
    with pytest.raises(UserError, match=r"1 of 3 classes .*: 'cow' \(2 images\)"):
        outputs(data("ant", "cow", "bee", labels=[0, 1, 1]), ("bee", "ant"))


def test_imagenet_is_known_by_words_and_by_numbers():
    from timm.data import ImageNetInfo

    synsets = imagenet_synsets()
    words = ImageNetInfo("imagenet-1k").label_descriptions()
    some = [synsets[index] for index in (7, 999, 0)]
    assert outputs(data(*some), words) == [7, 999, 0]
    assert outputs(data(*some), None, 1000) == [7, 999, 0]
    assert outputs(data(*words), synsets) == list(range(1000))
