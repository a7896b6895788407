"""Parquet in the `datasets` layout: what is read, what is cut, and what is refused."""

import io
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt.data import BadImage, load_data, load_split, select
from cvt.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(level=0):
    file = io.BytesIO()
    Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def cells(count):
    return [{"bytes": png(level), "path": None} for level in range(count)]


def write(path, labels, *, names=None, images=None, columns=("image", "label"), metadata=None):
    images = cells(len(labels)) if images is None else images
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(images, struct), columns[1]: labels})
    if names:
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path, row_group_size=3)
    return path


def levels(images):
    return [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]


def test_a_single_file_is_cut(tmp_path):
    path = write(tmp_path / "all.parquet", [0, 1] * 10, names=["cat", "dog"])
    data = load_data(str(path), val_fraction=0.2)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.test) == (16, 4, None)
    assert sorted(levels(data.train) + levels(data.val)) == list(range(20))
    everything = load_split(str(path), "all")
    assert levels(everything) == list(range(20))
    assert everything.name(12) == "all.parquet row 12"


def test_to_be_measured_a_file_is_whole_and_train_need_not_be_there(tmp_path):
    file = write(tmp_path / "test-00000-of-00001.parquet", ["cow", "ant"] * 5)
    chosen = select(str(file))
    assert (len(chosen.images), chosen.split, chosen.num_found) == (10, "all", 10)
    write(tmp_path / "val.parquet", ["ant", "bee", "bee"])
    chosen = select(str(tmp_path))
    assert (len(chosen.images), chosen.split, chosen.num_found) == (10, "test", 13)
    assert chosen.images.classes == ("ant", "bee", "cow")
    with pytest.raises(UserError, match="has no train split"):
        select(str(tmp_path), "train")


def test_a_folder_with_shards(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1], names=["cat", "dog"])
    write(tmp_path / "train-00001-of-00002.parquet", [1, 1], names=["cat", "dog"])
    write(tmp_path / "validation.parquet", [1], names=["cat", "dog"])
    write(tmp_path / "test-00000-of-00001.parquet", [0, 1], names=["cat", "dog"])
    data = load_data(str(tmp_path))
    assert data.train.labels.tolist() == [0, 1, 0, 1, 1, 1]
    assert levels(data.train) == [0, 1, 2, 3, 0, 1]
    assert data.train.name(5) == "train-00001-of-00002.parquet row 1"
    assert (data.val.labels.tolist(), data.test.labels.tolist()) == ([1], [0, 1])
    assert not data.val_was_cut


def test_without_validation_it_is_cut_from_train_and_test_is_kept(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    write(tmp_path / "test.parquet", [1, 0, 1])
    data = load_data(str(tmp_path))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 3)
    assert data.val_was_cut
    assert load_split(str(tmp_path)).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_labels_as_any_text(tmp_path, kind):
    labels = pa.array(["02134", "10115", None, "02134", "10115"])
    if kind == "dictionary":
        labels = labels.dictionary_encode()
    elif hasattr(pa, kind):
        labels = labels.cast(getattr(pa, kind)())
    data = load_split(str(write(tmp_path / "a.parquet", labels)), "all")
    assert data.classes == ("02134", "10115")
    assert data.labels.tolist() == [0, 1, -1, 0, 1]
    assert data.image(1).size == (4, 4)


@pytest.mark.parametrize("kind", ["large_binary", "binary_view"])
def test_images_as_any_bytes(tmp_path, kind):
    if not hasattr(pa, kind):
        pytest.skip("not in this version")
    struct = pa.struct([("bytes", getattr(pa, kind)()), ("path", pa.large_string())])
    table = pa.table({"image": pa.array(cells(9), struct), "label": [0, 1, 2] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    assert levels(load_split(str(tmp_path / "a.parquet"), "all")) == list(range(9))


def test_a_table_of_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    for labels in (["cat", "dog"] * 2, pandas.Categorical(["cat", "dog"] * 2)):
        frame = pandas.DataFrame({"image": cells(4), "label": labels})
        frame.to_parquet(tmp_path / "a.parquet")
        data = load_split(str(tmp_path / "a.parquet"), "all")
        assert data.classes == ("cat", "dog")
        assert levels(data) == list(range(4))


def test_labels_from_one(tmp_path):
    data = load_data(str(write(tmp_path / "a.parquet", [1, 2, 3] * 3)))
    assert data.classes == ("1", "2", "3")
    (note,) = data.notes
    assert "are 3 numbers from 1 to 3, not all those from 0 on" in note
    named = write(tmp_path / "a.parquet", [1, 2, 1, 2], names=["none", "cat", "dog"])
    everything = load_split(str(named), "all")
    assert everything.classes == ("none", "cat", "dog")
    assert everything.labels.tolist() == [1, 2, 1, 2]
    assert everything.notes == ()


def test_names_decide_not_places(tmp_path):
    """Each file numbers its own classes, in its own order and its own normal form."""
    write(tmp_path / "train.parquet", [0, 1, 0, 1], names=["café", "dog"])
    write(tmp_path / "test.parquet", [0, 1, 2], names=["owl", "Dog", "cafe\u0301"])
    data = load_data(str(tmp_path))
    assert data.classes == ("café", "dog")
    assert data.test.labels.tolist() == [-1, 1, 0]


def test_a_test_split_without_labels(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 0, 1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [-1, -1], names=["cat", "dog"])
    write(tmp_path / "extra.parquet", [0, 1])
    data = load_data(str(tmp_path))
    assert data.test is None
    assert "The test split of" in data.notes[0]
    assert "1 parquet files in" in data.notes[1]
    assert "extra.parquet" in data.notes[1]


def test_labels_as_strings(tmp_path):
    write(tmp_path / "train.parquet", ["dog", "cat", "dog", "cat"])
    write(tmp_path / "validation.parquet", ["dog"])
    data = load_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [1, 0, 1, 0]
    assert data.val.labels.tolist() == [1]


def test_numbers_without_names_name_themselves(tmp_path):
    write(tmp_path / "train.parquet", [2, 0, 2, 0, 1, 1])
    assert load_data(str(tmp_path)).classes == ("0", "1", "2")


def test_the_columns_of_cifar_on_the_hub(tmp_path):
    columns = ("img", "fine_label")
    write(tmp_path / "train.parquet", [0, 1, 0, 1], names=["a", "b"], columns=columns)
    assert load_data(str(tmp_path)).classes == ("a", "b")


def test_an_image_given_by_its_path(tmp_path):
    Image.new("L", (2, 2), 77).save(tmp_path / "a.png")
    images = [{"bytes": None, "path": "a.png"}] * 4
    write(tmp_path / "train.parquet", [0, 1, 0, 1], images=images)
    assert levels(load_data(str(tmp_path)).train) == [77, 77]


@pytest.mark.parametrize("path", ["absolute", "../out.png", "link.png", "a\0.png", "a" * 5000, "."])
def test_a_path_leads_to_no_other_folder(tmp_path, path):
    Image.new("L", (2, 2), 77).save(tmp_path / "out.png")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    path = str(tmp_path / "out.png") if path == "absolute" else path
    images = [*cells(3), {"bytes": None, "path": path}]
    everything = load_split(str(write(folder / "a.parquet", [0, 1, 0, 1], images=images)), "all")
    assert everything.image(2).size == (4, 4)
    with pytest.raises(BadImage, match=r"a\.parquet row 3 has no image of its own: Got the"):
        everything.image(3)


def test_bytes_that_are_text_are_no_path(tmp_path):
    Image.new("L", (2, 2), 77).save(tmp_path / "a.png")
    struct = pa.struct([("bytes", pa.string()), ("path", pa.string())])
    images = pa.array([{"bytes": str(tmp_path / "a.png"), "path": None}] * 4, struct)
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"expected a struct of bytes \(binary\)")


def test_one_large_image_in_every_row(tmp_path, monkeypatch):
    """It is stored once: the file has a few kB, and its rows 64 MB."""
    monkeypatch.setattr("cvt.data.parquet._MOST_IN_MEMORY", 2**23)
    monkeypatch.setattr("cvt.data.parquet._MOST_BATCH_BYTES", 2**22)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": bytes(2**20), "path": None}] * 64, struct)
    table, path = pa.table({"image": images, "label": [0, 1] * 32}), tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 2**16
    usual = pa.default_memory_pool()
    pa.set_memory_pool(watched := pa.proxy_memory_pool(usual))
    try:
        refused(path, "take more than a gibibyte and 16 times its size in memory")
    finally:
        pa.set_memory_pool(usual)
    assert 2**20 < watched.max_memory() < 2**25


def test_rows_that_the_file_has_no_room_for(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    nothing = pa.nulls(200_000, struct)
    table = pa.table({"image": nothing, "label": pa.nulls(200_000, pa.int64())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    refused(tmp_path / "a.parquet", "tells of 200,000 rows in [0-9,]+ bytes")


METADATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(METADATA, st.sampled_from(["", "info", "features", "label", "names"]))
def test_metadata_of_any_kind_are_read_or_refused(value, place):
    feature = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    levels = {"info": {"features": {"label": feature}}}
    for each in (levels, levels["info"], levels["info"]["features"], feature):
        if place in each:
            each[place] = value
            break
    content = json.dumps(levels if place else value)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.parquet", [0, 1], metadata=content)
        try:
            everything = load_split(str(path), "all")
        except UserError:
            return
    assert len(everything) == 2


@pytest.mark.parametrize("content", ["null", "[]", "1", "{", "[" * 100_000, "9" * 5000, "\ud800"])
def test_metadata_that_are_none(tmp_path, content):
    content = content.encode(errors="surrogatepass")
    refused(write(tmp_path / "a.parquet", [0, 1], metadata=content), "metadata 'huggingface'")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_file_is_read_or_refused(data):
    """Bytes overwritten anywhere, the description of the file included, or the end cut off."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.parquet", ["cat", "dog"] * 3)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, 40)) * -1 or None])
        try:
            everything = load_split(str(path), "all")
        except UserError:
            return
    for index in range(len(everything)):
        with suppress(BadImage):
            assert everything.image(index).mode == "RGB"


def test_two_columns_of_one_name(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parts = [pa.array(cells(2), struct)] * 2 + [pa.array([0, 1])]
    table = pa.Table.from_arrays(parts, names=["image", "image", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "has two columns called image")


def test_a_pipe_in_place_of_a_file(tmp_path):
    os.mkfifo(tmp_path / "train.parquet")
    refused(tmp_path, "as a parquet file, and it is none")
    refused(tmp_path / "train.parquet", "as a parquet file, and it is none")


@pytest.mark.parametrize("cell", [None, {"bytes": b"", "path": None}, {"bytes": b"x" * 50}])
def test_a_broken_image_is_named_when_asked_for(tmp_path, cell):
    images = [*cells(3), cell]
    everything = load_split(
        str(write(tmp_path / "train.parquet", [0, 1, 0, 1], images=images)), "all"
    )
    assert everything.image(2).size == (4, 4)
    with pytest.raises(BadImage, match=r"train\.parquet row 3 is"):
        everything.image(3)


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        load_data(str(path))
    assert "\n" not in str(caught.value)


def test_truncated(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1] * 10)
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, r"Cannot read .*train\.parquet as parquet")


def test_damaged_in_the_middle(tmp_path):
    path = write(tmp_path / "train.parquet", [0, 1] * 10)
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    refused(path, r"Cannot read .*train\.parquet as parquet")


@pytest.mark.parametrize("content", [b"", b"not parquet at all"])
def test_not_parquet(tmp_path, content):
    path = tmp_path / "train.parquet"
    path.write_bytes(content)
    refused(path, r"Cannot read .*train\.parquet as parquet")


@pytest.mark.parametrize("columns", [("picture", "label"), ("image", "kind")])
def test_missing_column(tmp_path, columns):
    path = write(tmp_path / "train.parquet", [0, 1, 0, 1], columns=columns)
    refused(path, f"has the columns {columns[0]}, {columns[1]}, expected one called")


def test_columns_of_another_type(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), path)
    refused(path, r"expected a struct of bytes \(binary\) and path \(text\)")
    write(path, [[0], [1]])
    refused(path, "expected whole numbers or strings")


@pytest.mark.parametrize(
    ("label", "why"),
    [
        *(
            (2, "has the label 2, none of the 2 classes"),
            (-1, "has no label"),
            (None, "has no label"),
        ),
        *((-7, "has the label -7, expected a number"), (2**40, "has the label 1099511627776")),
        (2**63 - 1, "has the label 9223372036854775807, expected a number from 0 to 999,999"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path, label, why):
    write(tmp_path / "train.parquet", [0, 1, 0, 1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [1, label], names=["cat", "dog"])
    test = load_data(str(tmp_path)).test
    assert test.labels.tolist() == [1, -1]
    with pytest.raises(BadImage, match=rf"test\.parquet row 1 {why}"):
        test.image(1)


@pytest.mark.parametrize("label", [2**40, 50_000_000, 2**63 - 1])
def test_a_number_beyond_reason_is_no_class(tmp_path, label):
    refused(
        write(tmp_path / "a.parquet", [0, 0, 0, label]),
        f"has the single class '0'.*the label {label}, exp",
    )
    refused(write(tmp_path / "a.parquet", [label, label]), f"row 0 has the label {label}")


def test_a_class_that_train_lacks(tmp_path):
    write(tmp_path / "train.parquet", ["cat", "dog"] * 2)
    write(tmp_path / "test.parquet", ["owl"])
    refused(tmp_path, r"Not one image of the test split .*row 0 has the label 'owl', none of")
    write(tmp_path / "test.parquet", ["owl", "dog"])
    assert load_data(str(tmp_path)).test.labels.tolist() == [-1, 1]


def test_a_missing_shard(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1])
    refused(tmp_path, "holds 1 of the 2 shards of train")


def test_no_train_file(tmp_path):
    write(tmp_path / "part-0.parquet", [0, 1, 0, 1])
    refused(tmp_path, "none called train")


@pytest.mark.parametrize(("name", "split"), [("test-0.parquet", "test"), ("part-0.parquet", "all")])
def test_to_be_measured_any_split_will_do(tmp_path, name, split):
    write(tmp_path / name, ["Cat", "dog", "owl"])
    chosen = select(str(tmp_path))
    assert (chosen.split, len(chosen.images), chosen.num_found) == (split, 3, 3)
    assert chosen.images.classes == ("Cat", "dog", "owl")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "train.parquet", [0, 1, 0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, r"pip install 'cvt\[parquet\]'")


def test_labels_are_int64(tmp_path):
    path = write(tmp_path / "train.parquet", ["a", "b", "a", "b"])
    assert load_data(str(path)).train.labels.dtype == np.int64
