"""Webdataset shards: splits, labels, random access, and what is damaged in them."""

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

from cvt.data import eval_transform, load_data, load_split, make_loader
from cvt.data.image import BadImage
from cvt.data.load import select
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
        ([1], r"_info\.json without keys"),
        ({"splits": [1]}, r"a list of 1|\[1\] for splits in .*_info\.json"),
        ({"splits": {"train": "train-000.tar"}}, "'train' in splits of .* without keys"),
        ({"splits": {"train": {"filenames": "train-000.tar"}}}, "for splits.filenames"),
        ({"splits": {"train": {"filenames": [1]}}}, "Got 1 for splits.filenames"),
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
    write(tmp_path / "train.tar", [("a.png", picture(1)), ("a.txt", b"a cat")])
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
    odd = [("odd.png", picture(9)), (f"odd{suffix}", content)]
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
        samples += [(f"{number:04}.png", picture(number)), (f"{number:04}.cls", text.encode())]
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
    write(shards / "test-000.tar", [("a.png", picture(1)), ("b.png", picture(2))])
    data = load_data(f"wds/{shards}")
    assert data.test is None
    assert any("The test split of" in note and "no labels" in note for note in data.notes)
    write(shards / "test-000.tar", [("a.png", picture(1)), ("a.cls", b"owl")])
    with pytest.raises(UserError, match=r"Not one image of the test split .* the label 'owl'"):
        shard_splits(shards)


def test_to_be_measured_any_split_will_do(tmp_path):
    write(tmp_path / "val.tar", numbered(0, 4))
    chosen = select(f"wds/{tmp_path}")
    assert (chosen.split, len(chosen.images), chosen.num_found) == ("val", 4, 4)
    chosen = select(f"wds/{tmp_path}/val.tar")
    assert (chosen.split, len(chosen.images), chosen.num_found) == ("all", 4, 4)


def test_a_second_file_of_the_same_name_begins_another_sample(tmp_path):
    samples = [("a.png", picture(1)), ("a.cls", b"0"), ("a.png", picture(2)), ("a.cls", b"1")]
    train = shard_splits(write(tmp_path / "a.tar", samples))["train"]
    assert levels(train) == [1, 2]
    assert train.labels.tolist() == [0, 1]


def test_links_and_endless_names_are_named(tmp_path):
    path = write(tmp_path / "train.tar", [*numbered(0, 2), ("n" * 5000 + ".png", picture(3))])
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
    samples = [("caf\udce8.png", picture(1)), ("caf\udce8.cls", b"0")]
    samples += [("caf\udce9.png", picture(2)), ("caf\udce9.cls", b"1")]
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
