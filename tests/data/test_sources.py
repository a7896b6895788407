"""Folders of class folders, and torchvision's sets, read without the network."""

import hashlib
import os
import pickle
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from cvt.data import SUFFIXES, class_positions, folder_splits, load_data, load_split, select
from cvt.data.sources import TORCHVISION_SETS, split_of
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
    assert {".jpg", ".jpeg", ".png", ".webp", ".tiff", ".bmp", ".gif", ".avif"} <= SUFFIXES
    assert not {".pdf", ".txt", ".py", ""} & SUFFIXES


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "Testing"),
        ("training_set", "validation-set", "test_set"),
        ("trainset", "Val", "test data"),
        ("train2017", "val2017", "test2017"),
        ("TRAIN", "validation", "TEST_IMAGES"),
    ],
)
def test_published_splits_are_used(class_folder, train, val, test):
    class_folder({"cat": 3, "dog": 3}, train)
    class_folder({"cat": 1, "dog": 2}, val)
    root = class_folder({"dog": 1}, test).parent
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
    root = class_folder({"cat": 3, "dog": 3, "owl": 0})
    refused(root, r"class folder .*owl holds no images")
    chosen = select(str(root))
    assert (len(chosen.images), chosen.notes) == (6, ("Class folders without images: owl.",))


def test_a_class_too_small_to_split_is_named(class_folder):
    root = class_folder({"cat": 3, "dog": 1})
    refused(root, r"Class 'dog' of .* too few images")
    assert len(load_split(str(root), "all")) == 4


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_unseen_class_is_named(class_folder, split):
    class_folder({"cat": 3, "dog": 3}, "train")
    root = class_folder({"cat": 3, "owl": 3}, split).parent
    refused(root, rf"{split} holds a class 'owl' that the train folder lacks")
    everything = select(str(root)).images  # to be measured, it need not be known to another folder
    assert everything.classes == ("cat", "dog", "owl")
    assert np.bincount(everything.labels).tolist() == [3, 0, 3]


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


@pytest.mark.parametrize(
    "name", ["trainer", "trains", "my_train", "train_station", "testament", "val d'or", "train 1"]
)
def test_other_names_are_those_of_classes(name):
    assert split_of(name) is None


@pytest.mark.parametrize("split", ["train", "val", "test_set"])
def test_a_split_beside_classes_is_refused_by_name(class_folder, split):
    class_folder({"steam": 3, "electric": 3}, split)
    root = class_folder({"bus": 3, "car": 3})
    refused(root, rf"holds the folder {split}, .* beside bus, car, which cannot be one")


def test_a_class_called_train_is_used_and_said(class_folder):
    root = class_folder({"bus": 3, "car": 3, "train": 3})
    data = load_data(str(root))
    assert data.classes == ("bus", "car", "train")
    assert data.notes == (f"{root}/train is taken for a class, as its images lie loose in it.",)


@pytest.mark.parametrize("split", ["val", "test"])
def test_unlabelled_images_beside_classes_are_no_class(class_folder, split):
    refused(class_folder({"cat": 3, "dog": 3, split: 5}), "beside cat, dog")


def test_other_folders_beside_several_splits_are_not_used_and_said(class_folder):
    for split in ("train", "val"):
        class_folder({"cat": 3, "dog": 3}, split)
    class_folder({"x": 2}, "extra")
    root = class_folder({"empty": 0}, "docs").parent
    Image.new("RGB", (2, 2)).save(root / "loose.png")
    data = load_data(str(root))
    assert (len(data.train), len(data.val)) == (6, 6)
    assert data.notes == (
        f"Not used, being called like no split: docs, extra in {root}.",
        f"1 file in {root} is not used: 1 image outside the class folders (loose.png).",
    )


def test_an_unlabelled_test_folder_is_no_split(class_folder):
    class_folder({"cat": 3, "dog": 3}, "train")
    root = class_folder({"": 4}, "test").parent
    data = load_data(str(root))
    assert data.test is None
    assert data.notes == (
        f"There is no test split: {root}/test holds 4 loose images but no class folders.",
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unlabelled_train_or_val_folder_is_refused(class_folder, split):
    for each in {"train", "val", "test"} - {split}:
        class_folder({"cat": 3, "dog": 3}, each)
    refused(class_folder({"": 4}, split).parent, f"{split} holds 4 loose images")


def test_splits_inside_classes_are_refused(class_folder):
    class_folder({"train": 3}, "cat")
    root = class_folder({"val": 3}, "dog").parent
    refused(root, rf"cat holds train, .* the other way round, such as {root}/train/cat")


def test_an_archive_in_a_folder_of_its_own_is_pointed_at(class_folder):
    for split in ("train", "val"):
        class_folder({"cat": 3, "dog": 3}, f"unpacked/pets/{split}")
    root = class_folder({}, "unpacked")
    refused(root, rf"give the path of {root}/pets, if its folders are splits")


def test_subfolders_of_a_class_may_be_called_like_splits_among_others(class_folder):
    class_folder({"train": 2, "ball": 2}, "toys")
    root = class_folder({"pets": 3})
    assert np.bincount(folder_splits(root)["train"].labels).tolist() == [3, 4]


def test_splits_by_other_names_are_refused(class_folder):
    class_folder({"cat": 3, "dog": 3}, "seg_train")
    root = class_folder({"cat": 3, "dog": 3}, "seg_test").parent
    refused(root, "look like splits: seg_test, seg_train")
    assert folder_splits(class_folder({"train_station": 2, "test_tube": 2}, "things"))


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_the_forms_of_unicode_make_no_difference(class_folder, forms):
    first, second = (unicodedata.normalize(form, "Äpfel") for form in forms)
    class_folder({first: 3, "Birnen": 3}, "train")
    root = class_folder({second: 2, "birnen": 1}, "val").parent
    data = load_data(str(root))
    assert set(data.classes) == {unicodedata.normalize("NFC", "Äpfel"), "Birnen"}
    apples = data.classes.index(unicodedata.normalize("NFC", "Äpfel"))
    assert np.bincount(data.val.labels)[apples] == 2


def test_one_name_in_two_forms_is_refused(class_folder):
    both = {unicodedata.normalize(form, "Äpfel"): 3 for form in ("NFD", "NFC")}
    refused(class_folder(both), r"same name .*'A\\u0308pfel' and '\\xc4pfel'")


def test_a_class_folder_whose_name_is_no_text_is_refused_at_once(class_folder):
    root = class_folder({"cat": 3, "dog": 3})
    os.rename(root / "dog", os.fsencode(root) + b"/caf\xe9")
    refused(root, r"class folder .*caf\\xe9 is not in UTF-8")


def test_files_whose_names_are_no_text_are_images(class_folder):
    root = class_folder({"cat": 3, "dog": 3})
    os.rename(root / "dog/000.png", os.fsencode(root) + b"/dog/caf\xe9.png")
    data = load_data(str(root))
    assert len(data.train) + len(data.val) == 6
    assert len(data.train.fingerprint()) == 64


@pytest.mark.parametrize("name", ["02134", "1e3", "null", "$x$", "a{b}", "[c]", ":car:", "写真"])
def test_names_are_kept_as_they_are(class_folder, name):
    assert name in load_data(str(class_folder({name: 2, "other": 2}))).classes


def test_a_class_folder_that_links_to_another_is_refused(class_folder):
    root = class_folder({"cat": 3, "dog": 3})
    (root / "kitty").symlink_to("cat")
    refused(root, r"kitty is a link to .*cat, whose images are there already")


def test_a_class_folder_may_be_a_link_to_elsewhere(class_folder):
    elsewhere = class_folder({"dog": 3}, "store") / "dog"
    root = class_folder({"cat": 3}, "data")
    (root / "hound").symlink_to(elsewhere)
    assert np.bincount(folder_splits(root)["train"].labels).tolist() == [3, 3]


def test_no_image_is_on_both_sides_through_a_link(class_folder):
    class_folder({"cat": 3, "dog": 3}, "train")
    root = class_folder({"cat": 1, "dog": 1}, "val").parent
    (root / "val/cat/all").symlink_to("../../train/cat")
    data = load_data(str(root))
    assert (len(data.train), len(data.val)) == (6, 2)
    assert "1 link to what is found without it (val/cat/all)" in data.notes[0]


def test_unreadable_folders_are_told_or_refused(class_folder, monkeypatch):
    root = class_folder({"cat": 3, "dog": 3})
    (root / "cat/more").mkdir()
    scandir, closed = os.scandir, [str(root / "cat/more")]

    def refuse(path):
        if str(path) in closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert load_data(str(root)).unreadable == (
        f"Cannot read the folder {root}/cat/more: Permission denied.",
    )
    closed.append(str(root / "dog"))
    refused(root, r"Cannot read the folder .*(more|dog): Permission denied; make it readable")


def test_what_is_told_survives_the_cut(class_folder):
    root = class_folder({"cat": 8, "dog": 8})
    (root / "cat/list.csv").touch()
    data = load_data(str(root))
    assert data.val_was_cut
    assert data.notes == (f"1 file in {root} is not used: 1 .csv (cat/list.csv).",)


def test_classes_are_found_by_name():
    assert class_positions(["b", "x", "A"], ["a", "b"]) == [1, None, 0]
    assert class_positions(["Cat", "cat"], ["cat"]) == [None, 0]
    assert class_positions(["CAT"], ["cat", "Cat"]) == [None]
    assert class_positions(["crane"], ["crane", "crane"]) == [None]
    assert class_positions(["STRASSE"], ["straße"]) == [0]


def pixels(count):
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None], 3 * 32 * 32, axis=1)


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar(name, kind, tmp_path, monkeypatch):
    kind = getattr(datasets, kind)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"
    batch = {"data": pixels(10), key: [0, 1] * 5}
    for file, _ in kind.train_list + kind.test_list:
        (folder / file).write_bytes(pickle.dumps(batch))
    meta = {kind.meta["key"]: ["plane", "car"]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    for attribute in ("train_list", "test_list"):
        files = [[file, None] for file, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, files)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    data = load_data(f"torch/{name}", data_dir=tmp_path)
    assert data.classes == ("plane", "car")
    assert len(data.train) + len(data.val) == 10 * len(kind.train_list)
    assert data.test.labels.tolist() == [0, 1] * 5
    assert data.test.image(7).getpixel((31, 31)) == (7, 7, 7)


class _Alarm:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_pickle_is_opened_but_the_published_one(name, tmp_path, monkeypatch):
    """Each of the files in turn is somebody else's, and the sums of the others are right."""
    kind = getattr(datasets, name.upper())
    folder, alarm = tmp_path / kind.base_folder, tmp_path / "alarm"
    folder.mkdir()
    key = "labels" if name == "cifar10" else "fine_labels"
    good = pickle.dumps({"data": pixels(10), key: [0, 1] * 5, kind.meta["key"]: ["plane", "car"]})
    bad, md5 = pickle.dumps(_Alarm(alarm)), hashlib.md5(good).hexdigest()
    files = [file for file, _ in kind.train_list + kind.test_list] + [kind.meta["filename"]]
    for attribute in ("train_list", "test_list"):
        listed = [[file, md5] for file, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, listed)
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5})
    for file in files:
        (folder / file).write_bytes(good)
    assert len(load_data(f"torch/{name}", data_dir=tmp_path).test) == 10
    for file in files:
        (folder / file).write_bytes(bad)
        with pytest.raises(UserError, match=f"Found no complete torch/{name}"):
            load_data(f"torch/{name}", data_dir=tmp_path)
        (folder / file).write_bytes(good)
    assert not alarm.exists()


def test_flowers(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / "jpg" / f"image_{number:05}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [1, 2, 102, 1, 2, 3]})
    savemat(folder / "setid.mat", {"trnid": [1, 2, 3], "valid": [4, 5], "tstid": [5, 6]})
    files = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    data = load_data("torch/flowers102", data_dir=tmp_path)
    assert len(data.classes) == 102
    assert [part.labels.tolist() for part in (data.train, data.val, data.test)] == [
        [0, 1, 101],
        [0, 1],
        [1, 2],
    ]
    assert data.train.name(2).endswith("image_00003.jpg")
    assert data.train.image(2).size == (4, 4)


def test_pets(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    lines = [
        f"{name}_{i} {label} 1 1" for i in range(4) for name, label in (("Abys", 1), ("pug", 2))
    ]
    (folder / "annotations" / "trainval.txt").write_text("\n".join(lines))
    (folder / "annotations" / "test.txt").write_text("\n".join(lines[:2]))
    Image.new("RGB", (4, 4)).save(folder / "images" / "pug_0.jpg")
    data = load_data("torch/oxford_pets", data_dir=tmp_path)
    assert data.classes == ("Abys", "Pug")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    assert data.test.image(1).size == (4, 4)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        *(("../../../x_1 1 1 1", "leads out of"), ("/etc/x_1 1 1 1", "Found no complete")),
        *(("pug_1 99999 1 1", "a label outside of"), ("pug_1 -5 1 1", "a label outside of")),
        *(("pug_1 one 1 1", "Found no complete"), ("pug_1 1", "Found no complete")),
        ("\0 1 1 1", "which cannot be"),
    ],
)
def test_a_list_of_pets_that_is_none(tmp_path, line, says):
    folder = tmp_path / "in" / "oxford-iiit-pet"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    lines = "Abys_1 1 1 1\npug_1 2 1 1\n"
    (folder / "annotations" / "trainval.txt").write_text(lines + line)
    (folder / "annotations" / "test.txt").write_text(lines)
    with pytest.raises(UserError, match=says) as caught:
        load_data("torch/oxford_pets", data_dir=tmp_path / "in")
    assert "\n" not in str(caught.value)


def test_imagenet(tmp_path):
    names = {"n01": ("tench", "Tinca tinca"), "n02": ("goldfish",)}
    torch.save((names, []), tmp_path / "meta.bin")
    for split in ("train", "val"):
        for wnid in names:
            (tmp_path / split / wnid).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / wnid / "a.JPEG")
    data = load_data("torch/imagenet", data_dir=tmp_path)
    assert data.classes == ("tench, Tinca tinca", "goldfish")
    assert data.val.labels.tolist() == [0, 1]
    assert data.test is None
    (tmp_path / "meta.bin").write_bytes(pickle.dumps(_Alarm(tmp_path / "alarm")))
    with pytest.raises(UserError, match="Cannot read torch/imagenet"):
        load_data("torch/imagenet", data_dir=tmp_path)
    assert not (tmp_path / "alarm").exists()


@pytest.mark.parametrize("name", list(TORCHVISION_SETS))
def test_files_that_are_not_there(name, tmp_path):
    with pytest.raises(UserError, match=name) as caught:
        load_data(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"Cannot fetch torch/cifar10 .* check the connection"):
        load_data("torch/cifar10", data_dir=tmp_path, download=True)


def test_without_data_dir():
    with pytest.raises(UserError, match="torch/cifar10 needs the folder"):
        load_data("torch/cifar10")


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'torch/cifar100'"):
        load_data("torch/cifar1000", data_dir=tmp_path)
