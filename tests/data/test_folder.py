"""Folders of class folders: what is found, in which order, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cvt.data.folder import folder_splits, image_suffixes
from cvt.data.load import load_data, load_split
from cvt.errors import UserError


def test_a_plain_folder_is_sorted(class_folder):
    root = class_folder({"dog": 3, "cat": 2, "Ape": 1})
    train = folder_splits(root)["train"]
    assert train.classes == ("Ape", "cat", "dog")
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert train.name(1) == str(root / "cat" / "000.png")
    assert train.image(1).getpixel((0, 0)) == (60, 0, 100)


def test_hidden_and_foreign_files_do_not_count(class_folder):
    root = class_folder({"cat": 2, "dog": 2})
    for name in ("cat/.hidden.png", "cat/notes.txt", "cat/Thumbs.db", ".DS_Store"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "cat" / ".cache").mkdir()
    Image.new("RGB", (2, 2)).save(root / "cat" / ".cache" / "a.png")
    assert len(folder_splits(root)["train"]) == 4


def test_deeper_files_and_upper_case_suffixes_count(class_folder):
    root = class_folder({"cat": 1, "dog": 1})
    (root / "cat" / "2019").mkdir()
    Image.new("RGB", (2, 2)).save(root / "cat" / "2019" / "A.JPG")
    assert np.bincount(folder_splits(root)["train"].labels).tolist() == [2, 1]


def test_suffixes():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tiff", ".bmp", ".gif", ".avif"} <= image_suffixes()
    assert not {".pdf", ".txt", ".py", ""} & image_suffixes()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_published_splits_are_used(class_folder, val):
    class_folder({"cat": 3, "dog": 3}, "train")
    class_folder({"cat": 1, "dog": 2}, val)
    root = class_folder({"dog": 1}, "test").parent
    data = load_data(str(root))
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 3, 1]
    assert data.test.labels.tolist() == [1]  # numbered by the train folder
    assert not data.val_was_cut


def test_without_val_one_is_cut_and_test_is_kept(class_folder):
    class_folder({"cat": 10, "dog": 20}, "train")
    root = class_folder({"cat": 4, "dog": 4}, "test").parent
    data = load_data(str(root), val_fraction=0.2)
    assert np.bincount(data.val.labels).tolist() == [2, 4]
    assert (len(data.train), len(data.test)) == (24, 8)
    assert data.val_was_cut


def test_the_automatic_split_follows_the_seed(class_folder):
    root = str(class_folder({"cat": 10, "dog": 10}))
    names = [
        {data.val.name(index) for index in range(len(data.val))}
        for data in (load_data(root, seed=seed) for seed in (0, 0, 1, 2))
    ]
    assert names[0] == names[1]
    assert names[0] != names[2] or names[0] != names[3]


def refused(root, match):
    with pytest.raises(UserError, match=match) as caught:
        load_data(str(root))
    assert "\n" not in str(caught.value)


def test_no_such_path(tmp_path):
    refused(tmp_path / "gone", r"There is no data at .*gone")


def test_no_images(tmp_path):
    refused(tmp_path, "holds no images")


def test_one_class(class_folder):
    root = class_folder({"cat": 3})
    refused(root, "has the single class 'cat'")
    assert len(load_split(str(root), "all")) == 3


def test_an_empty_class_is_named(class_folder):
    refused(class_folder({"cat": 3, "dog": 3, "owl": 0}), r"class folder .*owl holds no images")


def test_a_class_too_small_to_split_is_named(class_folder):
    root = class_folder({"cat": 3, "dog": 1})
    refused(root, r"Class 'dog' of .* too few images")
    assert len(load_split(str(root), "all")) == 4


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_unseen_class_is_named(class_folder, split):
    class_folder({"cat": 3, "dog": 3}, "train")
    root = class_folder({"cat": 3, "owl": 3}, split).parent
    refused(root, rf"{split} holds a class 'owl' that the train folder lacks")


def test_loose_images(class_folder):
    refused(class_folder({"cat": 3}) / "cat", "holds 3 loose images but no class folders")


def test_val_without_train(class_folder):
    class_folder({"cat": 3, "dog": 3}, "val")
    refused(class_folder({"cat": 3}, "test").parent, "holds val but no train folder")


def test_two_folders_for_one_split(class_folder):
    class_folder({"cat": 3, "dog": 3}, "train")
    class_folder({"cat": 3, "dog": 3}, "val")
    refused(class_folder({"cat": 3}, "valid").parent, "both val and valid")


def test_an_empty_train_folder(tmp_path):
    (tmp_path / "train").mkdir()
    refused(tmp_path, r"train holds no images")
