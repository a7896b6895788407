"""Parquet in the `datasets` layout: what is read, what is cut, and what is refused."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from cvt.data.image import BadImage
from cvt.data.load import load_data, load_split
from cvt.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(level=0):
    file = io.BytesIO()
    Image.new("L", (4, 4), level).save(file, "PNG")
    return file.getvalue()


def cells(count):
    return [{"bytes": png(level), "path": None} for level in range(count)]


def write(path, labels, *, names=None, images=None, columns=("image", "label")):
    images = cells(len(labels)) if images is None else images
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({columns[0]: pa.array(images, struct), columns[1]: labels})
    if names:
        features = {columns[1]: {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
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


@pytest.mark.parametrize("cell", [None, {"bytes": b"", "path": None}, {"bytes": b"x" * 50}])
def test_a_broken_picture_is_named_when_asked_for(tmp_path, cell):
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
    refused(path, "expected a struct of bytes and path")
    write(path, [[0], [1]])
    refused(path, "expected whole numbers or strings")


@pytest.mark.parametrize("label", [2, -1, None])
def test_a_label_outside_of_the_classes(tmp_path, label):
    write(tmp_path / "train.parquet", [0, 1, 0, 1], names=["cat", "dog"])
    write(tmp_path / "test.parquet", [1, label], names=["cat", "dog"])
    refused(tmp_path, rf"test\.parquet row 1 has the label {label}")


def test_a_class_that_train_lacks(tmp_path):
    write(tmp_path / "train.parquet", ["cat", "dog"] * 2)
    write(tmp_path / "test.parquet", ["owl"])
    refused(tmp_path, r"row 0 has the label 'owl'")


def test_a_missing_shard(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1])
    refused(tmp_path, "holds 1 of the 2 shards of train")


def test_no_train_file(tmp_path):
    write(tmp_path / "part-0.parquet", [0, 1, 0, 1])
    refused(tmp_path, "none called train")


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "train.parquet", [0, 1, 0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, r"pip install 'cvt\[parquet\]'")


def test_labels_are_int64(tmp_path):
    path = write(tmp_path / "train.parquet", ["a", "b", "a", "b"])
    assert load_data(str(path)).train.labels.dtype == np.int64
