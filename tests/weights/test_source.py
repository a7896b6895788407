import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt import Backbone
from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.hugging_face import write_hugging_face
from cvt.weights.layouts import to_hugging_face, to_microsoft
from cvt.weights.published import AT_224, AT_384
from cvt.weights.record import Preprocessing
from cvt.weights.source import open_weights


@pytest.fixture(scope="module")
def state_13():
    return Backbone(ROWS["cvt_13"]).state_dict()


@pytest.fixture
def run_folder(tmp_path, tiny_model, tiny_record):
    save_checkpoint(tmp_path / "run" / "best.safetensors", tiny_model.state_dict(), tiny_record)
    return tmp_path / "run"


def test_a_run_s_folder_and_its_file_are_the_same(run_folder, tiny_model, tiny_record, same):
    for source in (run_folder, run_folder / "best.safetensors", str(run_folder)):
        state_dict, record = open_weights(source)
        assert record == tiny_record
        assert same(state_dict, tiny_model.state_dict())


def test_the_last_checkpoint_where_there_is_no_best(run_folder, tiny_record):
    (run_folder / "best.safetensors").rename(run_folder / "last.safetensors")
    assert open_weights(run_folder)[1] == tiny_record


@pytest.mark.parametrize(
    ("file_name", "preprocessing", "top1"),
    [
        ("CvT-13-224x224-IN-1k.pth", AT_224, 81.6),
        ("cvt-13-384x384-in-1k.pth", AT_384, 83.0),
        ("CvT-13-384x384-IN-22k.pth", AT_384, 83.3),
        ("CvT-21-384x384-IN-1k.pth", AT_224, None),
        ("mine.pth", AT_224, None),
    ],
)
def test_microsoft_s_file_names_bring_their_preprocessing(
    tmp_path, state_13, same, file_name, preprocessing, top1
):
    torch.save({"epoch": 300, "state_dict": to_microsoft(state_13)}, tmp_path / file_name)
    state_dict, record = open_weights(tmp_path / file_name)
    assert same(state_dict, state_13)
    assert (record.model, record.spec) == ("cvt_13", ROWS["cvt_13"])
    assert record.preprocessing == preprocessing
    assert record.metrics.get("top1") == top1
    assert (record.class_names is None) == (top1 is None)


@pytest.mark.parametrize("rename", [lambda s: s, to_microsoft, to_hugging_face])
def test_bare_safetensors_are_recognised_by_names_and_shapes(tmp_path, state_13, same, rename):
    save_file(rename(state_13), tmp_path / "m.safetensors")
    state_dict, record = open_weights(tmp_path / "m.safetensors")
    assert same(state_dict, state_13)
    assert record.spec == ROWS["cvt_13"]


def test_bare_small_rows_get_their_own_size(tmp_path, make_model):
    spec = ROWS["cvt_nano_32"].change(num_classes=4)
    torch.save(make_model(spec).state_dict(), tmp_path / "m.pt")
    _, record = open_weights(tmp_path / "m.pt")
    assert (record.model, record.spec) == ("cvt_nano_32", spec)
    assert record.preprocessing == Preprocessing(input_size=(3, 32, 32), crop_pct=1.0)


def test_a_weights_file_beside_its_config_is_read_with_it(tmp_path, tiny_model, tiny_record):
    write_hugging_face(tmp_path, tiny_model.state_dict(), tiny_record)
    _, record = open_weights(tmp_path / "model.safetensors")
    assert record.class_names == tiny_record.class_names
    assert record.spec == tiny_record.spec


def test_a_folder_without_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint in the folder"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("cvt_13.msft_in1", "Did you mean 'cvt_13.msft_in1k'"),
        ("nowhere.safetensors", "no file nowhere.safetensors"),
        ("folder/bost.safetensors", r"Did you mean 'best\.safetensors'"),
        ("folder/more", "no file folder/more"),
        ("a/b/c", "no file a/b/c"),
        ("./a", "There are no weights 'a'"),
        ("", "There is no checkpoint in the folder"),
    ],
)
def test_nothing_there_is_a_sentence_without_asking_the_hub(
    tmp_path, monkeypatch, run_folder, source, says
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cvt.weights.source.fetch", lambda _: pytest.fail("asked the hub"))
    shutil.copytree(run_folder, Path("folder"))
    with pytest.raises(UserError, match=says):
        open_weights(source)


def test_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="is no checkpoint of a known network"):
        open_weights(tmp_path / "resnet.pth")


def test_a_picture_is_refused(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(UserError, match="truncated or no PyTorch file"):
        open_weights(tmp_path / "cat.jpg")
