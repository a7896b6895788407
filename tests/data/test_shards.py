"""Webdataset shards: splits, labels, random access, and what is damaged in them."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.data import eval_transform, load_data, load_split, make_loader
from cvt.data.shards import expand_braces, shard_splits
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

EVAL = eval_transform(Preprocessing(input_size=(3, 16, 16)))

# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def picture(level, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(out, kind)
    return out.getvalue()


def write(path, samples):
    """`samples`: name of a file and its content, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def numbered(start, stop, classes=2):
    for number in range(start, stop):
        yield f"{number:04}.png", picture(number)
        yield f"{number:04}.cls", str(number % classes).encode()


@pytest.fixture
def shards(tmp_path):
    """Two shards of ten training pictures, one of four for validation."""
    for number in range(2):
        write(tmp_path / f"s/train-{number:03}.tar", numbered(10 * number, 10 * number + 10))
    write(tmp_path / "s/val-000.tar", numbered(20, 24))
    return tmp_path / "s"


def levels(images):
    return [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]


def test_a_folder_whose_shards_are_called_after_their_split(shards):
    data = load_data(f"wds/{shards}")
    assert data.classes == ("0", "1")
    assert levels(data.train) == list(range(20))
    assert data.train.labels.tolist() == [0, 1] * 10
    assert levels(data.val) == [20, 21, 22, 23]
    assert data.train.name(13) == f"{shards}/train-001.tar sample 0013"
    assert not data.val_was_cut
    assert len(load_split(f"wds/{shards}", "val")) == 4


def test_patterns(shards, tmp_path):
    data = load_data("wds/s/train-{000..001}.tar", data_dir=tmp_path)
    assert data.val_was_cut
    assert len(data.train) + len(data.val) == 20
    both = shard_splits(shards / "{train,val}-000.tar")
    assert {split: len(images) for split, images in both.items()} == {"train": 10, "val": 4}
    assert len(shard_splits(shards / "val-000.tar")["train"]) == 4


def test_a_missing_shard_of_a_pattern(shards):
    with pytest.raises(UserError, match=r"no shard .*train-002\.tar, 2 of 4 are missing"):
        shard_splits(shards / "train-{000..003}.tar")


def test_braces():
    assert expand_braces("a-{008..011}.tar") == [f"a-{n}.tar" for n in ("008", "009", "010", "011")]
    assert expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.parametrize("prefix", ["imagenet1k-", "", "my_set_"])
def test_split_words_anywhere_in_a_name(tmp_path, prefix):
    write(tmp_path / f"{prefix}train-0000.tar", numbered(0, 2))
    write(tmp_path / f"{prefix}validation-0000.tar", numbered(2, 4))
    assert sorted(shard_splits(tmp_path)) == ["train", "val"]


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train/000.tar", numbered(0, 4))
    write(tmp_path / "test/000.tar", numbered(4, 6))
    splits = shard_splits(tmp_path)
    assert {split: levels(images) for split, images in splits.items()} == {
        "train": [0, 1, 2, 3],
        "test": [4, 5],
    }


def test_without_any_word_all_is_train(tmp_path):
    write(tmp_path / "000.tar", numbered(0, 4))
    write(tmp_path / "001.tar", numbered(4, 6))
    assert levels(shard_splits(tmp_path)["train"]) == list(range(6))
    write(tmp_path / "val.tar", numbered(4, 6))
    with pytest.raises(UserError, match=r"000\.tar does not say its split, but others do"):
        shard_splits(tmp_path)


def test_only_validation(tmp_path):
    write(tmp_path / "val.tar", numbered(0, 4))
    with pytest.raises(UserError, match="shards of val but none of train"):
        shard_splits(tmp_path)


def test_timms_info_file(tmp_path):
    """As in the sets that timm publishes: labels in JSON, under a name of the split's choice."""
    for name, start in (("a-0.tar", 0), ("a-1.tar", 3), ("b-0.tar", 6)):
        samples = []
        for number in range(start, start + 3):
            facts = {"label": 9, "class": number % 2, "filename": f"{number}.JPEG"}
            samples += [(f"{number}.jpg", picture(number, "JPEG"))]
            samples += [(f"{number}.json", json.dumps(facts).encode())]
        write(tmp_path / name, samples)
    split = {"name": "x", "num_samples": 6, "shard_lengths": [3, 3], "alt_label": "class"}
    info = {"train": {**split, "filenames": ["a-0.tar", "a-1.tar"]}}
    info["validation"] = {**split, "filenames": ["b-0.tar"]}
    file = tmp_path / "_info.json"
    file.write_text(json.dumps({"name": "set", "splits": info, "classes": ["cat", "dog"]}))
    splits = shard_splits(tmp_path)
    assert splits["train"].labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert splits["val"].classes == ("cat", "dog")
    (tmp_path / "a-1.tar").unlink()
    with pytest.raises(UserError, match=r"lists 2 shards of train, of which 1 are missing.*a-1"):
        shard_splits(tmp_path)
    file.write_text("{")
    with pytest.raises(UserError, match="as JSON"):
        shard_splits(tmp_path)


def test_class_names_beside_the_shards(shards):
    (shards / "classes.txt").write_text("cat\ndog\n")
    assert shard_splits(shards)["train"].classes == ("cat", "dog")


def test_labels_that_are_names(tmp_path):
    samples = [("a.png", picture(1)), ("a.json", b'{"label": "dog"}')]
    samples += [("b.png", picture(2)), ("b.cls.txt", b"cat\n")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [1, 0]


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path):
    samples = [("a.b/1.seg.png", picture(1)), ("a.b/1.JPG", picture(2, "JPEG"))]
    samples += [("a.b/1.cls", b"0"), ("a.b/1.webp", picture(3)), (".hidden", b"")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert train.name(0).endswith("a.tar sample a.b/1")
    assert levels(train) == [2]


def test_bad_samples_are_named_and_skipped(tmp_path):
    samples = list(numbered(0, 3))
    samples += [("blank.png", b""), ("blank.cls", b"1")]
    samples += [("alone.cls", b"1"), ("mute.png", picture(4)), ("odd.png", picture(5))]
    samples += [("odd.json", b"{"), ("far.png", picture(6)), ("far.cls", b"7")]
    samples += [("last.png", picture(9)), ("last.cls", b"1")]
    write(tmp_path / "train.tar", samples)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    train = shard_splits(tmp_path)["train"]
    assert train.labels.tolist() == [0, 1, 0, 1, -1, -1, -1, -1, 1]
    (batch,) = make_loader(train, EVAL, batch_size=9, shuffle=False)
    assert batch.indices.tolist() == [0, 1, 2, 8]
    assert batch.labels.tolist() == [0, 1, 0, 1]
    says = {
        "blank": "is empty",
        "alone": "has the files .cls but no picture",
        "mute": "has the files .png, of which none gives a label",
        "odd": "has the files .png, .json, of which none gives a label",
        "far": "has the label 7, none of the 2 classes",
    }
    for sentence, (key, what) in zip(batch.bad, says.items(), strict=True):
        assert f"train.tar sample {key} {what}" in sentence


def test_a_shard_cut_short_gives_what_is_whole(tmp_path):
    path = write(tmp_path / "train.tar", numbered(0, 6))
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        cut = tar.getmember("0003.png").offset_data + 20
    path.write_bytes(content[:cut])
    train = shard_splits(tmp_path)["train"]
    (batch,) = make_loader(train, EVAL, batch_size=9, shuffle=False)
    assert batch.indices.tolist() == [0, 1, 2]
    (sentence,) = batch.bad
    assert f"{path} is cut short at byte {cut}: what follows is lost" in sentence


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100])
def test_no_archive_at_all(tmp_path, content):
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.tar .* at byte 0, expected an uncompressed tar"):
        shard_splits(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar shards"):
        shard_splits(tmp_path)
    with pytest.raises(UserError, match=r"no shard .*nowhere"):
        load_data(f"wds/{tmp_path}/nowhere")


def test_not_one_label(tmp_path):
    write(tmp_path / "train.tar", [("a.png", picture(1)), ("a.txt", b"a cat")])
    with pytest.raises(
        UserError, match=r"Not one sample of .*train\.tar has a label.*\.png, \.txt"
    ):
        shard_splits(tmp_path)


def test_a_label_beyond_reason(tmp_path):
    write(tmp_path / "train.tar", [("a.png", picture(1)), ("a.cls", b"99999999999")])
    with pytest.raises(UserError, match=r"label 99999999999.*classes\.txt"):
        shard_splits(tmp_path)


def test_a_shard_that_goes_away(shards):
    train = shard_splits(shards)["train"]
    (shards / "train-001.tar").unlink()
    (batch,) = make_loader(train, EVAL, batch_size=20, shuffle=False)
    assert batch.indices.tolist() == list(range(10))
    assert len(batch.bad) == 10
    assert "Cannot read" in batch.bad[0]
    assert "train-001.tar sample 0010" in batch.bad[0]


def test_order_workers_and_middle(shards):
    """What holds for folders holds for shards: they are the same kind of set."""
    train = pickle.loads(pickle.dumps(shard_splits(shards)["train"]))

    def batches(**options):
        loader = make_loader(train, EVAL, batch_size=4, shuffle=True, seed=3, **options)
        return [(batch.indices, batch.images) for batch in loader]

    whole = batches()
    assert sorted(torch.cat([indices for indices, _ in whole]).tolist()) == list(range(20))
    assert torch.cat([indices for indices, _ in whole]).tolist() != list(range(20))
    for other in (batches(num_workers=2), whole[:2] + batches(start_batch=2, num_workers=1)):
        for (indices, images), (others, other_images) in zip(whole, other, strict=True):
            assert torch.equal(indices, others)
            assert torch.equal(images, other_images)


def test_shards_that_webdataset_wrote(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (7, 6, 8, 3), dtype=np.uint8)
    pattern = str(tmp_path / "train-%02d.tar")
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as sink:
        for number, each in enumerate(pixels):
            sink.write({"__key__": f"n/{number:06}", "png": each, "cls": number % 3})
    train = shard_splits(tmp_path)["train"]
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for number, each in enumerate(pixels):
        assert np.array_equal(train.image(number), each)
