"""Webdataset shards: splits, labels, random access, damage; our tar index against `tarfile`."""

import io
import json
import os
import pickle
import tarfile
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt.data import BadImage, eval_transform, load_data, load_split, make_loader, select
from cvt.data.shards import MOST_NAME, TarDamage, expand_braces, shard_splits
from cvt.data.shards import tar_members as members_of
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

EVAL = eval_transform(Preprocessing(input_size=(3, 16, 16)))

# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def drawn(level, kind="PNG"):
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
        yield f"{number:04}.png", drawn(number)
        yield f"{number:04}.cls", str(number % classes).encode()


@pytest.fixture
def shards(tmp_path):
    """Two shards of ten training images, one of four for validation."""
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


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a-{0..99999999999}.tar", "more than 100,000 shards"),
        ("a-{0.." + "9" * 5000 + "}.tar", "letters, expected at most 4,096"),
        ("a-{0.." + "9" * 2000 + "}.tar", "more than 100,000 shards"),
        ("{a,b}" * 40 + ".tar", "more than 100,000 shards"),
        ("{a,b}" * 400 + ".tar", "more than 100,000 shards"),
        ("{0..999}" * 3, "more than 100,000 shards"),
        ("{" * 2000 + "a,b" + "}" * 2000, "no shard a"),
        ("a-{3..1}.tar", "from 3 down to 1"),
        ("a\0b.tar", "no shard"),
    ],
)
def test_patterns_without_end(pattern, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        load_data(f"wds/{pattern}")
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("folder", ["set{a}", "set{0..3}", "set{1,2}/{x}", "set[0]*?"])
def test_braces_in_the_name_of_a_folder(tmp_path, folder):
    for number in range(2):
        write(tmp_path / folder / f"train-{number:03}.tar", numbered(4 * number, 4 * number + 4))
    for name in (f"{folder}/train-{{000..001}}.tar", folder):
        data = load_data(f"wds/{name}", data_dir=tmp_path)
        assert len(data.train) + len(data.val) == 8
    write(tmp_path / folder / "b{0..1}.tar", numbered(0, 6))
    assert len(shard_splits(tmp_path / folder / "b{0..1}.tar")["train"]) == 6


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


def test_archives_that_are_not_used_are_named(tmp_path):
    write(tmp_path / "train/000.tar", numbered(0, 4))
    write(tmp_path / "loose.tar", numbered(4, 6))
    (tmp_path / "more.tar.gz").touch()
    (note,) = shard_splits(tmp_path)["train"].notes
    assert "2 archives in" in note
    assert "loose.tar, more.tar.gz" in note


def test_only_validation(tmp_path):
    write(tmp_path / "val.tar", numbered(0, 4))
    with pytest.raises(UserError, match="shards of val but none of train"):
        shard_splits(tmp_path)
    assert levels(shard_splits(tmp_path, for_training=False)["val"]) == [0, 1, 2, 3]


def test_timms_info_file(tmp_path):
    """As in the sets that timm publishes: labels in JSON, under a name of the split's choice."""
    for name, start in (("a-0.tar", 0), ("a-1.tar", 3), ("b-0.tar", 6)):
        samples = []
        for number in range(start, start + 3):
            facts = {"label": 9, "class": number % 2, "filename": f"{number}.JPEG"}
            samples += [(f"{number}.jpg", drawn(number, "JPEG"))]
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
    with pytest.raises(UserError, match=r"no JSON in .*_info\.json"):
        shard_splits(tmp_path)


@pytest.mark.parametrize("where", ["absolute", "..", "link", "zero", "long", "folder"])
def test_names_in_an_info_file_stay_in_its_folder(shards, tmp_path, where):
    write(tmp_path / "out.tar", numbered(0, 4))
    name = {"absolute": str(tmp_path / "out.tar"), "..": "../out.tar", "link": "link.tar"}.get(
        where, {"zero": "a\0.tar", "long": "a" * 5000, "folder": "."}.get(where)
    )
    (shards / "link.tar").symlink_to(tmp_path / "out.tar")
    info = {"splits": {"train": {"filenames": ["train-000.tar", name]}}}
    (shards / "_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"leads out of|which cannot be|which is no file"):
        shard_splits(shards)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.sampled_from(["", "splits", "classes", "train", "filenames", "alt_label"]))
def test_an_info_file_of_any_kind_is_read_or_refused(value, place):
    """Never a traceback, and never an answer from what is none."""
    split = {"filenames": ["train.tar"], "alt_label": "label", "num_samples": 4}
    info = {"splits": {"train": split}, "classes": ["cat", "dog"], "version": None}
    for each in (info, info["splits"], split):
        if place in each:
            each[place] = value
            break
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "train.tar", numbered(0, 4))
        (Path(folder) / "_info.json").write_text(json.dumps(info if place else value))
        try:
            train = shard_splits(Path(folder))["train"]
        except UserError:
            return
    assert len(train) == 4


def test_an_info_file_of_wrong_kinds_is_named(shards):
    for info, says in (
        ([1], r"_info\.json, expected keys with values"),
        ({"splits": [1]}, r"a list of 1|\[1\] for splits in .*_info\.json"),
        ({"splits": {"train": "train-000.tar"}}, "'train' in splits of .*, expected keys"),
        ({"splits": {"train": {"filenames": "train-000.tar"}}}, "for filenames"),
        ({"splits": {"train": {"filenames": [1]}}}, "Got 1 for filenames"),
        ({"classes": {"0": "cat"}}, "for classes"),
        ({"classes": [None, "cat"]}, "Got None for classes"),
        ({"classes": [["a"]] * 3}, "for classes"),
    ):
        (shards / "_info.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match=says):
            shard_splits(shards)
    (shards / "_info.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="lie more than"):
        shard_splits(shards)


def test_pipes_in_place_of_files(tmp_path):
    """Nothing waits for somebody who writes into them."""
    os.mkfifo(tmp_path / "train.tar")
    os.mkfifo(tmp_path / "_info.json")
    with pytest.raises(UserError, match="as a shard, expected a tar file"):
        shard_splits(tmp_path)


def test_class_names_beside_the_shards(shards):
    (shards / "classes.txt").write_text("cat\ndog\n")
    assert shard_splits(shards)["train"].classes == ("cat", "dog")


def test_labels_that_are_names(tmp_path):
    samples = [("a.png", drawn(1)), ("a.json", b'{"label": "dog"}')]
    samples += [("b.png", drawn(2)), ("b.cls.txt", b"cat\n")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [1, 0]


def test_keys_end_at_the_first_dot_of_the_file_name(tmp_path):
    samples = [("a.b/1.seg.png", drawn(1)), ("a.b/1.JPG", drawn(2, "JPEG"))]
    samples += [("a.b/1.cls", b"0"), ("a.b/1.webp", drawn(3)), (".hidden", b"")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert train.name(0).endswith("a.tar sample a.b/1")
    assert levels(train) == [2]


def test_bad_samples_are_named_and_skipped(tmp_path):
    samples = list(numbered(0, 3))
    samples += [("blank.png", b""), ("blank.cls", b"1")]
    samples += [("alone.cls", b"1"), ("mute.png", drawn(4)), ("odd.png", drawn(5))]
    samples += [("odd.json", b"{"), ("far.png", drawn(6)), ("far.cls", b"7")]
    samples += [("last.png", drawn(9)), ("last.cls", b"1")]
    write(tmp_path / "train.tar", samples)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    train = shard_splits(tmp_path)["train"]
    assert train.labels.tolist() == [0, 1, 0, 1, -1, -1, -1, -1, 1]
    (batch,) = make_loader(train, EVAL, batch_size=9, shuffle=False)
    assert batch.indices.tolist() == [0, 1, 2, 8]
    assert batch.labels.tolist() == [0, 1, 0, 1]
    says = {
        "blank": "is empty",
        "alone": "has the files .cls but no image",
        "mute": "has the files .png, of which none gives a label",
        "odd": "has a .json that is none",
        "far": "has the label '7', none of the 2 classes",
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
    assert f"(the rest) is lost, because {path} is cut short at byte {cut}; fetch" in sentence


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
    write(tmp_path / "train.tar", [("a.png", drawn(1)), ("a.txt", b"a cat")])
    with pytest.raises(
        UserError,
        match=r"Not one image of the train split of .*sample a has the files \.png, \.txt",
    ):
        shard_splits(tmp_path)


LABELS = {
    "a number beyond reason": (".json", b'{"label": 1099511627776}', "has the label 1099511627776"),
    "a number of 300 digits": (".json", b'{"label": %s}' % (b"9" * 300), "more than 20 digits"),
    "a number beyond Python": (".json", b'{"label": %s}' % (b"9" * 5000), "has a .json that is no"),
    "a negative number": (".json", b'{"label": -7}', "has the label -7, expected a number from 0"),
    "true": (".json", b'{"label": true}', "of the kind bool, expected a whole number or a name"),
    "a fraction": (".json", b'{"label": 1.0}', "of the kind float"),
    "a list": (".json", b'{"label": [1]}', "of the kind list"),
    "null": (".json", b'{"label": null}', "has a .json without a label as 'label'"),
    "half a letter": (".json", b'{"label": "\\ud800"}', "which is no text"),
    "no mapping": (".json", b"[1]", "has a .json without a label"),
    "nested": (".json", b"[" * 100_000, "has a .json that is none"),
    "a text of digits": (".cls", b"1" * 5000, "a label of 5,000 letters, expected at most 1000"),
    "a long file": (".cls", b"1" * 2_000_000, "has 2,000,000 bytes as .cls, expected at most"),
    "Latin-1": (".cls", b"caf\xe9", "has a .cls that is no UTF-8 text"),
    "blank": (".cls", b" \n", "has no label"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_that_is_none(tmp_path, kind):
    """It is named and skipped, and costs the others nothing."""
    suffix, content, why = LABELS[kind]
    odd = [("odd.png", drawn(9)), (f"odd{suffix}", content)]
    train = shard_splits(write(tmp_path / "train.tar", [*numbered(0, 4), *odd]))["train"]
    assert train.classes == ("0", "1")
    assert train.labels.tolist() == [0, 1, 0, 1, -1]
    with pytest.raises(BadImage, match=r"train\.tar sample odd ") as caught:
        train.image(4)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.text(max_size=10).map(str.encode), min_size=1))
def test_any_text_as_a_label(contents):
    """A name, or a sentence; never anything else."""
    with tempfile.TemporaryDirectory() as folder:
        samples = [("good.png", b"1"), ("good.cls", b"good")]
        for number, content in enumerate(contents):
            samples += [(f"{number}.png", b"1"), (f"{number}.cls", content)]
        train = shard_splits(write(Path(folder) / "train.tar", samples))["train"]
    assert len(train) == len(contents) + 1
    for label, content in zip(train.labels[1:], contents, strict=True):
        try:
            text = content.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            text = ""
        assert (label >= 0) == bool(text)
        if text:
            assert train.classes[label] == unicodedata.normalize("NFC", text)


def labelled(path, texts):
    samples = []
    for number, text in enumerate(texts):
        samples += [(f"{number:04}.png", drawn(number)), (f"{number:04}.cls", text.encode())]
    return shard_splits(write(path, samples))["train"]


def test_names_that_look_like_numbers(tmp_path):
    train = labelled(tmp_path / "a.tar", ["02134", "10115", "02134", "10115"])
    assert train.classes == ("02134", "10115")
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.notes == ()


def test_numbers_are_sorted_as_such_and_need_not_start_at_0(tmp_path):
    assert labelled(tmp_path / "a.tar", map(str, range(12))).classes == tuple(map(str, range(12)))
    train = labelled(tmp_path / "b.tar", ["1", "2", "10", "2"])
    assert train.classes == ("1", "2", "10")
    assert train.labels.tolist() == [0, 1, 2, 1]
    (note,) = train.notes
    assert "are 3 numbers from 1 to 10, not all those from 0 on" in note


def test_declared_names(tmp_path):
    """A number is a position among them, unless all texts are names."""
    (tmp_path / "classes.txt").write_bytes("\ufeff1\n2\n\n3\n".encode())
    assert labelled(tmp_path / "a.tar", ["0", "1", "2"]).labels.tolist() == [0, 1, 2]
    train = labelled(tmp_path / "b.tar", ["1", "2", "3"])
    assert train.labels.tolist() == [0, 1, 2]
    assert train.classes == ("1", "2", "3")
    assert train.notes == ()


def test_a_name_of_two_classes(tmp_path):
    """ImageNet has two cranes: numbers tell them apart, and the name alone does not."""
    (tmp_path / "classes.txt").write_text("crane\nowl\ncrane\n")
    train = labelled(tmp_path / "a.tar", ["0", "1", "2"])
    assert train.classes == ("crane", "owl", "crane")
    assert train.labels.tolist() == [0, 1, 2]
    assert labelled(tmp_path / "b.tar", ["owl", "crane"]).labels.tolist() == [1, -1]


def test_names_in_two_normal_forms_are_one(tmp_path):
    write(tmp_path / "train.tar", [("a.png", b"1"), ("a.cls", "café".encode())])
    write(tmp_path / "val.tar", [("a.png", b"1"), ("a.cls", "cafe\u0301".encode())])
    splits = shard_splits(tmp_path)
    assert splits["train"].classes == splits["val"].classes == ("café",)
    assert splits["val"].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9\ndog\n", "is no UTF-8 text"),
        (b"c" * 2000 + b"\ndog", "Class 0 in .* has a label of 2,000 letters"),
    ],
)
def test_class_names_that_are_none(shards, content, says):
    (shards / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        shard_splits(shards)


def test_more_class_names_than_any_data_has(shards, monkeypatch):
    monkeypatch.setattr("cvt.data.labels.MOST_CLASSES", 3)
    (shards / "classes.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(UserError, match=r"4 class names in .*classes\.txt, expected at most 3"):
        shard_splits(shards)
    monkeypatch.setattr("cvt.data.shards.MOST_TEXT", 3)
    with pytest.raises(UserError, match=r"more than 3 bytes in .*classes\.txt"):
        shard_splits(shards)


def test_a_split_without_labels_is_left_out_and_that_is_said(shards):
    write(shards / "test-000.tar", [("a.png", drawn(1)), ("b.png", drawn(2))])
    data = load_data(f"wds/{shards}")
    assert data.test is None
    assert any("The test split of" in note and "no labels" in note for note in data.notes)
    write(shards / "test-000.tar", [("a.png", drawn(1)), ("a.cls", b"owl")])
    with pytest.raises(UserError, match=r"Not one image of the test split .* the label 'owl'"):
        shard_splits(shards)


def test_to_be_measured_any_split_will_do(tmp_path):
    write(tmp_path / "val.tar", numbered(0, 4))
    chosen = select(f"wds/{tmp_path}")
    assert (chosen.split, len(chosen.images), chosen.num_found) == ("val", 4, 4)
    chosen = select(f"wds/{tmp_path}/val.tar")
    assert (chosen.split, len(chosen.images), chosen.num_found) == ("all", 4, 4)


def test_a_second_file_of_the_same_name_begins_another_sample(tmp_path):
    samples = [("a.png", drawn(1)), ("a.cls", b"0"), ("a.png", drawn(2)), ("a.cls", b"1")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert levels(train) == [1, 2]
    assert train.labels.tolist() == [0, 1]


def test_links_and_endless_names_are_named(tmp_path):
    path = write(tmp_path / "train.tar", [*numbered(0, 2), ("n" * 5000 + ".png", drawn(3))])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.LNKTYPE, "0000.png"
        tar.addfile(info)
        info = tarfile.TarInfo("link.cls")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"1"))
    train = shard_splits(path)["train"]
    (batch,) = make_loader(train, EVAL, batch_size=9, shuffle=False)
    assert batch.indices.tolist() == [1, 2]
    assert "a name of more than 4,096 letters" in batch.bad[0]
    assert "link has a link in place of an image" in batch.bad[1]
    assert all(len(sentence) < 300 for sentence in batch.bad)


def test_one_long_name_costs_the_others_nothing(tmp_path):
    samples = [("n" * 4000 + ".png", b"1"), *((f"{n}.png", b"1") for n in range(300))]
    samples += [("0.cls", b"0"), ("1.cls", b"1")]
    train = shard_splits(write(tmp_path / "train.tar", samples))["train"]
    assert len(train.keys) < 4000 + 300 * 4
    assert train.name(300).endswith("sample 299")


def test_names_that_are_no_utf_8_stay_apart(tmp_path):
    samples = [("caf\udce8.png", drawn(1)), ("caf\udce8.cls", b"0")]
    samples += [("caf\udce9.png", drawn(2)), ("caf\udce9.cls", b"1")]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    train = shard_splits(path)["train"]
    assert levels(train) == [1, 2]
    assert len(train.fingerprint()) == 64


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


def tar_members(content):
    return members_of(io.BytesIO(content))


FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
FOLDERS, NAMES = "shard/" * 16, "picture-with-a-long-name-" * 10


def archive(files, kind=tarfile.PAX_FORMAT, **facts):
    """`files`: name and content, in order; content None is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            for key, value in facts.items():
                setattr(info, key, value)
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def expected(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]


@pytest.mark.parametrize("kind", FORMATS)
def test_names_short_long_and_foreign(kind):
    files = [("a.jpg", b"1" * 512), ("b/c.cls", b""), ("e", None), ("ä/ö.jpg", b"2" * 513)]
    files += [(FOLDERS + "x.jpg", b"3"), (FOLDERS + "y" * 90, b"4")]
    if kind != tarfile.USTAR_FORMAT:
        files += [(NAMES + ".jpg", b"5" * 700), ("after.jpg", b"6")]
    content = archive(files, kind)
    members = [tuple(each[:3]) for each in tar_members(content)]
    assert members == expected(content)
    assert len(members) == len(files) - 1


def test_times_with_fractions_as_webdataset_writes_them():
    content = archive([("a.jpg", b"1"), ("b.jpg", b"22")], mtime=1700000000.25)
    assert b"mtime=1700000000.25" in content
    assert [tuple(each[:3]) for each in tar_members(content)] == expected(content)


def test_links_have_no_content_of_their_own():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "far/" * 40
        tar.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    members = [(each.name, each.is_file) for each in tar_members(out.getvalue())]
    assert members == [("link.jpg", False), ("a.jpg", True)]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_sizes_that_no_octal_field_holds(kind):
    """The content is not there: what matters is that the size is read, and missed."""
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 << 30
    header = info.tobuf(kind)
    with pytest.raises(TarDamage, match=f"cut short at byte {len(header)}"):
        list(tar_members(header))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("abc./é", min_size=1, max_size=120), st.binary(max_size=1500))))
def test_any_archive(files):
    files = [(f"x{name}x", content) for name, content in files]
    content = archive(files)
    assert [tuple(each[:3]) for each in tar_members(content)] == expected(content)


def until_damage(content):
    members, walk = [], tar_members(content)
    try:
        members.extend(iter(lambda: next(walk, None), None))
    except TarDamage as damage:
        return members, str(damage)
    return members, ""


def test_cut_short_anywhere():
    """What was whole before the cut is found; that something is missing is always noticed."""
    content = archive([(f"{number}.jpg", bytes([number]) * 600) for number in range(3)])
    ends = [each.start + each.size for each in tar_members(content)]
    for end in range(0, ends[-1] + 400, 128):
        got, damage = until_damage(content[:end])
        assert "at byte" in damage
        assert len(got) == sum(end >= each for each in ends)


def test_something_else_in_the_middle():
    content = archive([("a.jpg", b"1"), ("b.jpg", b"2")])
    damaged = content[:1024] + b"\x07" * 512 + content[1536:]
    members = tar_members(damaged)
    assert next(members).name == "a.jpg"
    with pytest.raises(TarDamage, match="no header at byte 1024"):
        next(members)


def test_a_header_whose_checksum_is_wrong():
    content = bytearray(archive([("a.jpg", b"1")], tarfile.USTAR_FORMAT))
    content[0] ^= 1
    with pytest.raises(TarDamage, match="no header at byte 0"):
        list(tar_members(bytes(content)))


def test_a_pax_record_that_is_none():
    content = bytearray(archive([("a.jpg", b"1")], mtime=1.5))
    content[512:515] = b"xx "
    with pytest.raises(TarDamage, match="unreadable pax record at byte 512"):
        list(tar_members(bytes(content)))


def header(name, size, kind=b"0"):
    """A ustar header whose size field is exactly these bytes, with the checksum that fits."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157], block[257:265], block[148:156] = kind, b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records):
    return header(b"pax", b"%011o\0" % len(records), b"x") + records + bytes(-len(records) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    "size",
    [
        *(b"-0000000001\0", b"+0000000001\0", b"0o000000001\0", b"0000_000001\0"),
        *(b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"\x81" + bytes(11), b"\xb2\xb9 1", b"9\0"),
    ],
)
def test_a_size_that_is_none(size):
    with pytest.raises(TarDamage, match="no header at byte 0"):
        list(tar_members(header(b"a.png", size) + archive([("b.png", b"1")])))


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"77777777777\0", b"00000010000\0"])
def test_a_size_beyond_the_end(size):
    with pytest.raises(TarDamage, match="cut short at byte"):
        list(tar_members(header(b"a.png", size) + END))


@pytest.mark.parametrize(
    "records",
    [
        *(b"14 size=-1536\n", b"12 size=abc\n", b"8 size=\n", b"14 size=1_000\n", b"8 path=a"),
        *(b"xx", b"3\n", b"0 size=1\n", b"99 a=b\n", b"-5 a=b\n", b"6 a=b\n\n"),
        *(b"9" * 5000 + b" a=b\n", b"5011 size=" + b"1" * 5000 + b"\n"),
        b"9 size=1\n14 size=-1536\n",
    ],
)
def test_pax_records_that_are_none(records):
    content = extended(records) + header(b"a.png", b"00000000000\0") + END
    with pytest.raises(TarDamage, match=r"pax record.*at byte 512"):
        list(tar_members(content))


def test_pax_records_without_end():
    with pytest.raises(TarDamage, match="pax records of over 1048576 bytes at byte 512"):
        list(tar_members(extended(b"5 a=\n" * 300_000) + END))


@pytest.mark.parametrize("kind", ["long name", "pax"])
def test_of_a_long_name_only_so_much_is_kept(kind):
    name = b"n" * 500_000 + b".png"
    if kind == "long name":
        before = header(b"@", b"%011o\0" % len(name), b"L") + name + bytes(-len(name) % 512)
    else:
        before = extended(b"500017 path=" + name + b"\n")
    first, second = tar_members(before + header(b"x", b"00000000000\0") + archive([("b", b"")]))
    assert len(first.name) == MOST_NAME + 1
    assert second.name == "b"


def test_archives_joined_to_one_file():
    content = archive([("a.jpg", b"1")]) + archive([("b.jpg", b"22")])
    assert [each.name for each in tar_members(content)] == ["a.jpg", "b.jpg"]
    with pytest.raises(TarDamage, match="no header at byte 1024"):
        list(tar_members(archive([("a.jpg", b"1")])[:1024] + b"<html>" * 200))


def test_zeros_without_end(tmp_path):
    """A file of holes takes no room on the disk, and looks a terabyte long."""
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("a.jpg", b"1")]))
    with open(path, "r+b") as file:
        file.truncate(2**40)
        members = members_of(file)
        assert next(members).name == "a.jpg"
        with pytest.raises(TarDamage, match="more than 1048576 zeros"):
            next(members)


def test_a_name_that_is_no_utf_8():
    names = [each.name for each in tar_members(header(b"caf\xe9.jpg", b"0") + END)]
    assert names == ["caf\udce9.jpg"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_headers_say_the_walk_goes_forward(data):
    """Fields of several kinds, each with a checksum that fits: it ends, inside of the file."""
    sizes = st.one_of(st.binary(max_size=12), st.integers(0, 3000).map(lambda n: b"%011o\0" % n))
    names = st.binary(max_size=20)
    kinds = st.sampled_from([b"0", b"5", b"2", b"L", b"K", b"x", b"g", b"S", b"V", b"\0"])
    blocks = st.one_of(
        st.builds(header, names, sizes, kinds),
        st.builds(extended, st.sampled_from([b"12 path=abc\n", b"9 size=7\n", b"10 size=-1\n"])),
        st.binary(min_size=512, max_size=512),
        st.just(bytes(512)),
    )
    content = b"".join(data.draw(st.lists(blocks, max_size=12)))
    members, _ = until_damage(content)
    place = 0
    for each in members:
        assert place < each.start <= each.start + each.size <= len(content)
        place = each.start + each.size
