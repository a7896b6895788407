"""What a name stands for, and which split is evaluated; the real images beside the checkout."""

import numpy as np
import pytest

from cvt.data import (
    ArraySet,
    check_labels,
    eval_transform,
    load_data,
    load_split,
    make_loader,
    open_image,
    select,
)
from cvt.errors import UserError
from cvt.weights.record import Preprocessing, RunData


def test_digits():
    data = load_data("digits")
    assert data.name == "digits"
    assert len(data.classes) == 10
    test = select("digits")
    assert (len(test.images), test.split, test.num_found) == (359, "test", 1797)
    assert not test.was_cut
    assert len(load_split("digits", "all")) == 1797
    assert len(load_split("digits", "train")) == len(data.train)


def test_data_without_splits_is_measured_whole(class_folder):
    root = class_folder({"cat": 5, "dog": 15})
    chosen = select(str(root))
    assert (len(chosen.images), chosen.split, chosen.num_found) == (20, "all", 20)
    val = select(str(root), "val")
    assert (len(val.images), val.was_cut) == (3, True)
    with pytest.raises(UserError, match="has no test split"):
        select(str(root), "test")


def test_a_folder_of_one_class_and_of_one_image_can_be_measured(class_folder):
    assert len(select(str(class_folder({"cat": 1}))).images) == 1


@pytest.mark.parametrize(("present", "chosen"), [("val", "val"), ("test", "test")])
def test_splits_without_train_can_be_measured(class_folder, present, chosen):
    root = class_folder({"cat": 5, "dog": 2}, present).parent
    assert select(str(root)).split == chosen
    assert len(select(str(root)).images) == 7


def of_run(root, **changes):
    data = load_data(str(root), seed=3, val_fraction=0.25)
    digests = {
        "training": (len(data.train), data.train.fingerprint()),
        "validation": (len(data.val), data.val.fingerprint()),
    }
    known = {"name": str(root), "seed": 3, "val_fraction": 0.25, "digests": digests, **changes}
    return RunData(**known), data


def test_of_what_a_run_learned_from_only_its_own_cut_is_measured(class_folder, monkeypatch):
    root = class_folder({"cat": 8, "dog": 8}, "pets")
    run, data = of_run(root)
    for name in (str(root), f"{root}/", f"{root.parent}/../{root.parent.name}/pets"):
        chosen = select(name, run=run)
        assert (chosen.split, chosen.was_cut, chosen.num_found) == ("val", True, 16)
        assert chosen.images.fingerprint() == data.val.fingerprint()
    assert select(str(root), "train", run=run).images.fingerprint() == data.train.fingerprint()
    assert len(select(str(root), "all", run=run).images) == 16
    monkeypatch.chdir(root.parent)
    assert select("pets", run=run).was_cut
    assert select("pets", data_dir=root.parent, run=of_run(root, digests={})[0]).was_cut


def test_other_data_than_the_runs_is_measured_whole(class_folder):
    run, _ = of_run(class_folder({"cat": 8, "dog": 8}, "pets"))
    other = select(str(class_folder({"cat": 9, "dog": 8}, "others")), run=run)
    assert (other.split, len(other.images), other.notes) == ("all", 17, ())


def test_changed_or_moved_data_of_the_run_is_measured_whole_and_said(class_folder):
    root = class_folder({"cat": 8, "dog": 8}, "pets")
    run, data = of_run(root)
    moved = root.rename(root.with_name("moved"))
    chosen = select(str(moved), run=run)
    assert chosen.split == "all"
    assert "ask for the split val" in chosen.notes[0]
    held_out = select(str(moved), "val", run=run).images
    assert held_out.fingerprint() == data.val.fingerprint()
    chosen = select(str(class_folder({"cat": 9, "dog": 8}, "pets")), run=run)
    assert (chosen.split, len(chosen.images)) == ("all", 17)
    assert "no longer what the run learned from" in chosen.notes[0]


def test_an_unknown_split():
    with pytest.raises(UserError, match=r"Unknown split 'tset'.* Did you mean 'test'"):
        load_split("digits", "tset")


@pytest.mark.parametrize("label", [3, -2, 2**40])
def test_a_label_beyond_the_classes_is_named(label):
    images = ArraySet(np.zeros((2, 4, 4), np.uint8), [0, label], "abc", "letters")
    with pytest.raises(UserError, match=rf"letters image 1 has the label {label}, .* 0 to 2"):
        check_labels(images)


def test_a_relative_path_is_relative_to_data_dir(class_folder, tmp_path):
    class_folder({"cat": 5, "dog": 5}, "pets")
    assert load_data("pets", data_dir=tmp_path).classes == ("cat", "dog")


def test_a_near_miss_of_a_name():
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        load_data("digit")


def test_nothing_is_streamed_from_the_hub():
    with pytest.raises(UserError, match=r"Got hfids/a/b, .*write hfds/a/b .* or .* wds/PATH"):
        load_data("hfids/a/b")


def test_a_file_that_is_no_data(tmp_path):
    path = tmp_path / "a.zip"
    path.touch()
    with pytest.raises(UserError, match=r"a folder of class folders or a \.parquet file"):
        load_data(str(path))


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 3000, "~no-such-user/x", "a\0b", "\udce9"])
def test_a_path_that_cannot_be_is_one_sentence(name, tmp_path):
    for read in (load_data, select):
        with pytest.raises(UserError, match="There is no data at"):
            read(name)
        with pytest.raises(UserError, match="There is no data at"):
            read("pets", data_dir=name)


@pytest.mark.data
def test_cifar10(shared_data):
    pytest.importorskip("pyarrow")
    data = load_data(str(shared_data / "cifar10"))
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.val_was_cut
    assert set(np.bincount(data.val.labels)) == {500}
    transform = eval_transform(Preprocessing(input_size=(3, 32, 32), crop_pct=1.0))
    batch = next(iter(make_loader(data.test, transform, batch_size=64, shuffle=False)))
    assert batch.images.shape == (64, 3, 32, 32)
    assert not batch.bad


@pytest.mark.data
def test_photos(shared_data):
    photos = sorted((shared_data / "photos").glob("*.JPEG"))
    transform = eval_transform(Preprocessing())
    for photo in photos[:10]:
        image = open_image(photo)
        assert image.mode == "RGB"
        assert transform(image).shape == (3, 224, 224)
