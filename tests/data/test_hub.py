"""Sets that the `datasets` library reads, from local files."""

import io
import sys

import pytest
from PIL import Image

from cvt.data import BadImage, load_data, load_split, select
from cvt.errors import UserError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def pngs(count):
    for level in range(count):
        file = io.BytesIO()
        Image.new("L", (4, 4), level).save(file, "PNG")
        yield file.getvalue()


def rows(labels, names=("cat", "dog")):
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
    )
    cells = [{"bytes": content, "path": None} for content in pngs(len(labels))]
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


def table(folder, labels, paths=()):
    """A folder with a parquet file, any labels in it, and paths in place of its last images."""
    folder.mkdir(exist_ok=True)
    cells = [{"bytes": content, "path": None} for content in pngs(len(labels) - len(paths))]
    cells += [{"bytes": None, "path": path} for path in paths]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"picture": pa.array(cells, struct), "kind": pa.array(labels, pa.int64())}
    metadata = rows([0]).features.arrow_schema.metadata
    schema = pa.schema([("picture", struct), ("kind", pa.int64())], metadata)
    pq.write_table(pa.table(columns, schema=schema), folder / "train.parquet")
    return folder


def test_rows_without_a_class_are_named(tmp_path):
    table(tmp_path / "pets", [0, -1, 1, 2**40, 7, None])
    train = load_split(f"hfds/{tmp_path}/pets", "all", data_dir=tmp_path / "cache")
    assert train.labels.tolist() == [0, -1, 1, -1, -1, -1]
    for row, why in (
        (1, "has no label"),
        (3, "1099511627776"),
        (4, "the label 7"),
        (5, "no label"),
    ):
        with pytest.raises(BadImage, match=f"pets train row {row} .*{why}"):
            train.image(row)
    rows([-1, -1]).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"Not one image of the train split .* has no label"):
        load_data(f"hfds/{tmp_path}/none")


def test_splits_number_their_classes_for_themselves(tmp_path):
    test = rows([0, 1, 2, -1], names=("owl", "dog", "cat"))
    datasets.DatasetDict(train=rows([0, 1] * 2), test=test).save_to_disk(str(tmp_path / "pets"))
    data = load_data(f"hfds/{tmp_path}/pets")
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [-1, 1, 0, -1]


def test_other_splits_are_named(tmp_path):
    splits = datasets.DatasetDict(train=rows([0, 1] * 2), extra=rows([0, 1]))
    splits.save_to_disk(str(tmp_path / "pets"))
    notes = select(f"hfds/{tmp_path}/pets", "train").notes
    assert any("are not used: extra." in note for note in notes)
    splits = datasets.DatasetDict(train=rows([0, 1] * 2), val=rows([0]), valid=rows([1]))
    splits.save_to_disk(str(tmp_path / "both"))
    with pytest.raises(UserError, match="has several val splits"):
        load_data(f"hfds/{tmp_path}/both")


def test_a_test_split_without_labels(tmp_path):
    splits = datasets.DatasetDict(train=rows([0, 1] * 2), test=rows([-1, -1]))
    splits.save_to_disk(str(tmp_path / "pets"))
    data = load_data(f"hfds/{tmp_path}/pets")
    assert data.test is None
    assert any("The test split of" in note for note in data.notes)


def test_rows_name_no_file_outside_of_the_data_set(tmp_path):
    Image.new("L", (4, 4), 99).save(tmp_path / "out.png")
    folder = tmp_path / "pets"
    folder.mkdir()
    Image.new("L", (4, 4), 77).save(folder / "in.png")
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    strange = [str(tmp_path / "out.png"), "../out.png", "link.png", str(folder / "link.png")]
    table(folder, [0, 1] * 4, ["in.png", *strange])
    train = load_split(f"hfds/{folder}", "all", data_dir=tmp_path / "cache")
    assert train.image(3).getpixel((0, 0)) == (77, 77, 77)
    for row in range(4, 8):
        with pytest.raises(BadImage, match="none of the data set's own"):
            train.image(row)


def test_a_folder_that_exists_wins_and_is_named(tmp_path, monkeypatch):
    rows([0, 1] * 5).save_to_disk(str(tmp_path / "owner/pets"))
    monkeypatch.chdir(tmp_path)
    data = load_data("hfds/owner/pets")
    assert data.notes == (
        f"Read the folder {tmp_path}/owner/pets: it exists, and a data set of the hub called "
        "owner/pets is not looked for.",
    )
    assert load_data(f"hfds/{tmp_path}/owner/pets").notes == ()


@pytest.mark.parametrize("name", ["./pets", "/pets", "a/b/c", "~/pets", "a b", "../x/y", "a\0b"])
def test_a_path_is_not_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", None)  # calling it would be another error
    with pytest.raises(UserError, match=r"There is no folder .* to load as a data set"):
        load_data(f"hfds/{name}")


def test_no_code_of_a_data_set_is_run(tmp_path, monkeypatch):
    """Versions up to 3 are told so; later ones have dropped scripts."""
    seen = []

    def load_dataset(path, *, cache_dir, trust_remote_code=None):
        seen.append(trust_remote_code)
        return datasets.DatasetDict(train=rows([0, 1] * 5))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_data("hfds/owner/pets")
    assert seen == [False]
    monkeypatch.undo()
    script = tmp_path / "pets" / "pets.py"
    script.parent.mkdir()
    script.write_text(f"open({str(tmp_path / 'alarm')!r}, 'w')\n")
    with pytest.raises(UserError, match="Cannot load the data set"):
        load_data(f"hfds/{tmp_path}/pets", data_dir=tmp_path / "cache")
    assert not (tmp_path / "alarm").exists()


@pytest.mark.parametrize("content", ["null", "[]", "{", '{"features": {"kind": [1]}}', "9" * 5000])
@pytest.mark.parametrize("file", ["state.json", "dataset_info.json"])
def test_a_saved_data_set_that_is_damaged(tmp_path, file, content):
    rows([0, 1] * 5).save_to_disk(str(tmp_path / "pets"))
    (tmp_path / "pets" / file).write_text(content)
    with pytest.raises(UserError, match=r"Cannot load the data set|does not say|has the columns"):
        load_data(f"hfds/{tmp_path}/pets")


def test_without_a_train_split(tmp_path):
    datasets.DatasetDict(test=rows([0, 1])).save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(UserError, match="has no train split"):
        load_data(f"hfds/{tmp_path}/pets")
    chosen = select(f"hfds/{tmp_path}/pets")
    assert (chosen.split, len(chosen.images), chosen.num_found) == ("test", 2, 2)


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
