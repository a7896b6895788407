import json
import resource

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cvt import Backbone
from cvt.errors import UserError
from cvt.weights import checkpoint
from cvt.weights.checkpoint import load_checkpoint, save_checkpoint
from cvt.weights.fit import load_strict


@pytest.fixture
def saved(tmp_path, tiny_model, tiny_record):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, tiny_model.state_dict(), tiny_record)
    return path


def test_the_file_alone_rebuilds_the_model(saved, tiny_model, tiny_record, same):
    state_dict, record = load_checkpoint(saved)
    assert record == tiny_record
    assert same(state_dict, tiny_model.state_dict())
    model = Backbone(record.spec).eval()
    load_strict(model, state_dict, source=str(saved))
    image = torch.randn(1, 3, 57, 40)
    with torch.no_grad():
        assert torch.equal(model(image), tiny_model(image))


def test_metadata_is_what_others_expect(saved):
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["cvt"])["model"] == "cvt_13"


def test_transposed_views_are_saved_contiguous(tmp_path, tiny_record, same):
    view = torch.arange(12.0).reshape(3, 4).T
    save_checkpoint(tmp_path / "m.safetensors", {"a": view, "b": view[1:2].clone()}, tiny_record)
    state_dict, _ = load_checkpoint(tmp_path / "m.safetensors")
    assert same(state_dict, {"a": view, "b": view[1:2]})
    assert all(tensor.is_contiguous() for tensor in state_dict.values())


def test_a_loaded_file_can_be_written_over_itself(saved, same, tiny_model):
    state_dict, record = load_checkpoint(saved)
    save_checkpoint(saved, state_dict, record)
    assert same(load_checkpoint(saved)[0], tiny_model.state_dict())


def test_full_disk_keeps_the_old_checkpoint(saved, tiny_record, full_disk, same, tiny_model):
    full_disk()
    with pytest.raises(UserError, match="disk is full"):
        save_checkpoint(saved, {"a": torch.zeros(3)}, tiny_record)
    assert same(load_checkpoint(saved)[0], tiny_model.state_dict())
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]


def test_full_disk_within_safetensors_keeps_the_old_checkpoint(saved, tiny_record, monkeypatch):
    """safetensors writes in Rust and raises an error of its own, half a file written."""

    def save(_tensors, path, **_):
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", save)
    with pytest.raises(UserError, match="disk is full"):
        save_checkpoint(saved, {"a": torch.zeros(3)}, tiny_record)
    assert saved.read_bytes() == before
    assert [each.name for each in saved.parent.iterdir()] == [saved.name]


def test_what_safetensors_really_says_is_understood(saved, tiny_record):
    """A limit on file sizes is the full disk that a test can have."""
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*m\.safetensors: File too large"):
            save_checkpoint(saved, {"a": torch.zeros(10_000)}, tiny_record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 64, b"{}", bytes(8)])
def test_what_is_no_safetensors_is_a_sentence(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"truncated or no safetensors|no record"):
        load_checkpoint(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9999))
def test_truncated_anywhere_is_a_sentence(saved, share):
    whole = saved.read_bytes()
    cut = saved.with_name("cut.safetensors")
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        load_checkpoint(cut)


def test_missing_file_names_the_nearest(saved):
    with pytest.raises(UserError, match=r"Did you mean 'm\.safetensors'"):
        load_checkpoint(saved.with_name("n.safetensors"))


def test_safetensors_of_others_say_what_is_missing(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="no record of its model"):
        load_checkpoint(path)
    save_file({"a": torch.zeros(3)}, path, metadata={"cvt": "{"})
    with pytest.raises(UserError, match="no JSON"):
        load_checkpoint(path)
