"""What a name stands for, and which split is evaluated."""

import pytest

from cvt.data.load import eval_split, load_data, load_split
from cvt.errors import UserError


def test_digits():
    data = load_data("digits")
    assert data.name == "digits"
    assert len(data.classes) == 10
    assert eval_split(data) is data.test
    assert eval_split(data, "train") is data.train
    assert len(load_split("digits", "all")) == 1797
    assert len(load_split("digits")) == 359


def test_without_a_test_split_val_is_evaluated(class_folder):
    data = load_data(str(class_folder({"cat": 5, "dog": 5})))
    assert eval_split(data) is data.val
    with pytest.raises(UserError, match="has no test split"):
        eval_split(data, "test")


def test_an_unknown_split():
    with pytest.raises(UserError, match=r"Unknown split 'tset'.* Did you mean 'test'"):
        load_split("digits", "tset")


def test_a_relative_path_is_relative_to_data_dir(class_folder, tmp_path):
    class_folder({"cat": 5, "dog": 5}, "pets")
    assert load_data("pets", data_dir=tmp_path).classes == ("cat", "dog")


def test_a_near_miss_of_a_name():
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        load_data("digit")


def test_a_file_that_is_no_data(tmp_path):
    path = tmp_path / "a.zip"
    path.touch()
    with pytest.raises(UserError, match=r"a folder of class folders or a \.parquet file"):
        load_data(str(path))
