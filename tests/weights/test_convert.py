from pathlib import Path

import pytest

from cvt import convert
from cvt.errors import UserError
from cvt.systems.cvt import ROWS
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
from cvt.weights.record import Record
from cvt.weights.source import open_weights


@pytest.fixture
def ours(tmp_path, tiny_model, tiny_record):
    path = tmp_path / "ours.safetensors"
    save_checkpoint(path, tiny_model.state_dict(), tiny_record)
    return path


@pytest.mark.parametrize("name", ["cvt_13", pytest.param("cvt_21", marks=pytest.mark.slow)])
def test_round_the_three_layouts_bit_for_bit(tmp_path, make_model, name, same):
    model = make_model(ROWS[name].change(num_classes=3))
    record = Record(model=name, spec=model.spec, class_names=("a", "b", "c"))
    save_checkpoint(tmp_path / "1.safetensors", model.state_dict(), record)
    convert(tmp_path / "1.safetensors", tmp_path / "2.pth")
    convert(tmp_path / "2.pth", tmp_path / "3")
    convert(tmp_path / "3", tmp_path / "4", to="timm")
    convert(tmp_path / "4", tmp_path / "5.pt")
    convert(tmp_path / "5.pt", tmp_path / "6.safetensors")
    for each in ("2.pth", "3", "4", "6.safetensors"):
        state_dict, read = open_weights(tmp_path / each)
        assert same(state_dict, model.state_dict())
        assert (read.model, read.spec) == (name, model.spec)


def test_all_is_kept_through_folders(tmp_path, ours, tiny_record, tiny_model, same):
    convert(ours, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "timm.folder", to="timm")
    assert convert(tmp_path / "timm.folder", tmp_path / "back.safetensors") == ""
    state_dict, record = load_checkpoint(tmp_path / "back.safetensors")
    assert same(state_dict, tiny_model.state_dict())
    assert record.spec == tiny_record.spec
    assert record.preprocessing == tiny_record.preprocessing
    assert record.class_names == tiny_record.class_names


def test_notes_say_what_the_other_side_lacks(tmp_path, ours):
    assert "GELU" in convert(ours, tmp_path / "hf")
    note = convert(ours, tmp_path / "m.pth")
    assert "tensors only" in note
    assert "(embed_dim, depth" in note
    assert convert(ours, tmp_path / "again.safetensors") == ""


def test_a_folder_that_is_there_is_written_into(tmp_path, ours):
    (tmp_path / "my.folder").mkdir()
    convert(ours, tmp_path / "my.folder")
    assert (tmp_path / "my.folder" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("out", "to", "says"),
    [
        ("m.safetensor", None, r"expected NAME\.safetensors"),
        ("m.onnx", None, "expected NAME"),
        ("m.safetensors", "microsoft", "for the microsoft layout"),
        ("m.pth", "hugging_face", "for the hugging_face layout"),
        ("m.pth", "timm", "for the timm layout"),
        ("m", "cvt", "for the cvt layout"),
        ("m", "huggingface", "Did you mean 'hugging_face'"),
        ("taken", None, "expected NAME"),
        ("taken", "timm", "expected NAME"),
    ],
)
def test_a_name_that_does_not_go_with_the_layout_is_a_sentence(tmp_path, ours, out, to, says):
    (tmp_path / "taken").write_text("a file")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=says):
        convert(ours, tmp_path / out, to=to)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", ["m.pth", "hf"])
def test_what_the_other_side_cannot_express_is_refused_and_nothing_written(
    tmp_path, tiny_spec, make_model, out
):
    spec = tiny_spec.change(pos_embed="table", img_size=(64, 64))
    record = Record(model="cvt_13", spec=spec)
    save_checkpoint(tmp_path / "m.safetensors", make_model(spec).state_dict(), record)
    with pytest.raises(UserError, match="pos_embed='table'"):
        convert(tmp_path / "m.safetensors", tmp_path / out)
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["m.safetensors", "m.pth", "hf/model.safetensors"])
def test_full_disk_keeps_what_was_there(tmp_path, ours, full_disk, out):
    path = tmp_path / out
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"old")
    if out.startswith("hf"):
        (path.parent / "config.json").write_text("{}")
    full_disk()
    with pytest.raises(UserError, match="disk is full"):
        convert(ours, path.parent if out.startswith("hf") else path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("source", "out", "to"),
    [
        ("m.safetensors", "m.safetensors", None),
        ("hf", "hf", "timm"),
        ("hf", "hf/model.safetensors", None),
        ("hf/model.safetensors", "hf", "timm"),
    ],
)
def test_what_is_read_is_not_written_over(tmp_path, ours, monkeypatch, source, out, to):
    monkeypatch.chdir(tmp_path)
    Path("m.safetensors").write_bytes(Path(ours).read_bytes())
    convert(ours, "hf", to="timm")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is read from; name another place"):
        convert(source, out, to=to)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_of_other_things_is_left_alone(tmp_path, ours):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="holds other things than a model"):
        convert(ours, tmp_path / "photos", to="timm")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    convert(ours, tmp_path / "model", to="timm")
    convert(ours, tmp_path / "model", to="timm")  # a model gives way to a model
