import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvt.errors import UserError
from cvt.weights.pickles import read_pickle, unwrap, write_pickle

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


class _Code:
    """Would make a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class _Unknown:
    pass


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_state_dict_is_read_from_both_file_formats(tmp_path, same, zipped):
    path = tmp_path / "m.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    assert same(read_pickle(path), TENSORS)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"epoch": 3, "state_dict": t, "optimizer": {"lr": 0.1}},
        lambda t: {"epoch": 3, "model": "cls_cvt", "state_dict": t, "perf": 81.6},
        lambda t: {"model": t, "args": {"lr": 1}},
        lambda t: {"module": t, "step": 1},
        lambda t: {"model_state": t},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {"state_dict": {f"module.{name}": tensor for name, tensor in t.items()}},
        lambda t: {f"module._orig_mod.{name}": tensor for name, tensor in t.items()},
    ],
)
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, same, wrap):
    path = tmp_path / "m.pth"
    torch.save(wrap(TENSORS), path)
    assert same(read_pickle(path), TENSORS)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    made, path = tmp_path / "made", tmp_path / "m.pth"
    content = {"state_dict": TENSORS, "extra": _Code(made)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=rf"'{os.mkdir.__module__}\.mkdir' would have to be run"):
        read_pickle(path)
    assert not made.exists()


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    made, path = tmp_path / "made", tmp_path / "m.pth"
    path.write_bytes(pickle.dumps(_Code(made)))
    with pytest.raises(UserError, match=r"mkdir|no PyTorch file"):
        read_pickle(path)
    assert not made.exists()


def test_an_unknown_class_is_refused_by_name(tmp_path):
    path = tmp_path / "m.pth"
    torch.save({"state_dict": TENSORS, "config": _Unknown()}, path)
    with pytest.raises(UserError, match="_Unknown"):
        read_pickle(path)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"model": "cvt"}, {"a": TENSORS}, 7]
)
def test_a_file_without_state_dict_says_what_it_has(tmp_path, content):
    path = tmp_path / "m.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"holds no state dict: got .*, expected"):
        read_pickle(path)


def test_nesting_without_end_ends():
    endless: dict = {"epoch": 3}
    endless["model"] = endless
    with pytest.raises(UserError, match="holds no state dict"):
        unwrap(endless, source="x")


def test_missing_file_and_folder_are_sentences(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_pickle(tmp_path / "none.pth")
    with pytest.raises(UserError, match="Cannot read"):
        read_pickle(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_pickle_is_a_sentence(tmp_path, content):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or no PyTorch file"):
        read_pickle(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), zipped=st.booleans())
def test_truncated_anywhere_is_a_sentence(tmp_path, share, zipped):
    path = tmp_path / "m.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    # A legacy file cut within the name of a class looks like one that wants another class.
    with pytest.raises(UserError, match="truncated or no PyTorch file" if zipped else "m.pth is"):
        read_pickle(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_sentence(tmp_path, content):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_pickle(path)


def test_written_and_read_again(tmp_path, same):
    write_pickle(tmp_path / "m.pth", TENSORS)
    assert same(torch.load(tmp_path / "m.pth", weights_only=True), TENSORS)


def test_full_disk_keeps_the_old_file(tmp_path, full_disk):
    path = tmp_path / "m.pth"
    path.write_bytes(b"old")
    full_disk()
    with pytest.raises(UserError, match="disk is full"):
        write_pickle(path, TENSORS)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["m.pth"]
