"""Sets that the `datasets` library reads, from local files."""

import io
import sys

import pytest
from PIL import Image

from cvt.data.load import load_data
from cvt.errors import UserError

datasets = pytest.importorskip("datasets")


def rows(labels, names=("cat", "dog")):
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
    )
    cells = []
    for level in range(len(labels)):
        file = io.BytesIO()
        Image.new("L", (4, 4), level).save(file, "PNG")
        cells.append({"bytes": file.getvalue(), "path": None})
    return datasets.Dataset.from_dict({"picture": cells, "kind": labels}, features=features)


def test_saved_to_disk(tmp_path):
    splits = datasets.DatasetDict(train=rows([0, 1] * 5), validation=rows([1, 0, 1]))
    splits.save_to_disk(str(tmp_path / "pets"))
    data = load_data(f"hfds/{tmp_path}/pets")
    assert data.classes == ("cat", "dog")
    assert data.val.labels.tolist() == [1, 0, 1]
    assert data.train.image(7).getpixel((0, 0)) == (7, 7, 7)
    assert data.train.name(7).endswith("pets train row 7")


def test_a_local_image_folder(class_folder, tmp_path):
    root = class_folder({"cat": 4, "dog": 4}, "pets")
    data = load_data(f"hfds/{root}", data_dir=tmp_path / "cache")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), data.val_was_cut) == (6, 2, True)
    assert data.train.image(0).size == (10, 8)


def test_without_an_image_column(tmp_path):
    table = rows([0, 1]).remove_columns("picture")
    table.save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(UserError, match="has the columns kind, expected one of type Image"):
        load_data(f"hfds/{tmp_path}/pets")


def test_rows_without_a_class(tmp_path):
    rows([0, -1, 1]).save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(UserError, match="row 1 has the label -1, expected 0 to 1"):
        load_data(f"hfds/{tmp_path}/pets")


def test_without_a_train_split(tmp_path):
    datasets.DatasetDict(test=rows([0, 1])).save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(UserError, match="has no train split"):
        load_data(f"hfds/{tmp_path}/pets")


def test_offline(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="Cannot load the data set nobody/nothing"):
        load_data("hfds/nobody/nothing")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'cvt\[hf\]'"):
        load_data("hfds/nobody/nothing")
