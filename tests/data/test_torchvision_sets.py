"""torchvision's sets, from files in their published layout and without the network."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from cvt.data.load import load_data
from cvt.data.sources import TORCHVISION_SETS
from cvt.errors import UserError


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
