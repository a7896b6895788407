"""Checkpoints: they come back as they were, and survive full disks and strangers."""

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem

from cvt.errors import UserError
from cvt.runtime import ALONE, World
from cvt.training.checkpoints import (
    Tensors,
    has_checkpoint,
    load_tensors,
    newest,
    read_facts,
    save_state,
)


@pytest.fixture
def save(tmp_path):
    """`save(side)`: saves a side x side linear layer after an update of it, keeping two."""

    def make(side: int) -> Tensors:
        tensors = made(side)
        tensors.model(torch.ones(2, side)).sum().backward()
        tensors.optimizer.step()
        save_state(tmp_path, {"side": side}, tensors, keep=2, world=World())
        return tensors

    return make


def made(side: int) -> Tensors:
    model, ema = nn.Linear(side, side), nn.Linear(side, side)
    return Tensors(model=model, ema=ema, optimizer=torch.optim.AdamW(model.parameters()))


def names(run) -> list[str]:
    return sorted(each.name for each in (run / "checkpoints").iterdir())


def test_comes_back_as_it_was(save, tmp_path):
    saved, fresh = save(4), made(4)
    checkpoint = newest(tmp_path)
    assert read_facts(checkpoint)["side"] == 4
    load_tensors(checkpoint, fresh)
    assert torch.equal(fresh.model.weight, saved.model.weight)
    assert torch.equal(fresh.ema.weight, saved.ema.weight)
    moments, expected = (each.optimizer.state_dict()["state"] for each in (fresh, saved))
    assert len(expected) == 2
    for key, values in expected.items():
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(moments[key][name], values[name])


def test_before_the_first_update_there_are_no_moments_to_store(tmp_path):
    untouched = made(4)
    save_state(tmp_path, {}, untouched, keep=1, world=World())
    assert untouched.optimizer.state == {}
    fresh = made(4)
    load_tensors(newest(tmp_path), fresh)
    assert fresh.optimizer.state == {}
    assert torch.equal(fresh.model.weight, untouched.model.weight)


def test_old_ones_make_room(save, tmp_path):
    assert not has_checkpoint(tmp_path)
    for side in (2, 3, 4):
        save(side)
    assert names(tmp_path) == ["000001", "000002"]
    assert read_facts(newest(tmp_path))["side"] == 4


def test_a_full_disk_keeps_the_old_state(save, tmp_path):
    save(4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*000001: "):
            save(500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["000000"]
    load_tensors(newest(tmp_path), made(4))


def test_what_an_interrupted_save_left_is_cleared(save, tmp_path):
    left = tmp_path / "checkpoints" / ".000007.tmp"
    left.mkdir(parents=True)
    save(4)
    assert not left.exists()


@pytest.mark.parametrize("harm", ["cut", "flipped", "missing", "no list"])
def test_a_damaged_one_is_passed_over(save, tmp_path, harm):
    save(3)
    save(4)
    last = tmp_path / "checkpoints" / "000001"
    [data] = last.glob("*.distcp")
    content = data.read_bytes()
    if harm == "cut":
        data.write_bytes(content[:-100])
    elif harm == "flipped":
        data.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    elif harm == "missing":
        data.unlink()
    else:
        (last / "state.json").unlink()
    assert newest(tmp_path).name == "000000"
    shutil.rmtree(tmp_path / "checkpoints" / "000000")
    with pytest.raises(UserError, match=r"its checkpoints are damaged \(.*000001 is half written"):
        newest(tmp_path)


def test_other_things_are_refused_in_one_sentence(save, tmp_path):
    with pytest.raises(UserError, match="there is no checkpoint in it; give the folder of a run"):
        newest(tmp_path)
    save(4)
    with pytest.raises(UserError, match="its tensors do not fit this model"):
        load_tensors(newest(tmp_path), made(5))


@pytest.mark.parametrize(
    ("beneath", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full: "),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "The disk is full: "),
        (OSError(errno.EIO, "Input/output error"), "Cannot write .*: Input/output error"),
    ],
)
def test_what_goes_wrong_beneath_torchs_format_is_told(save, tmp_path, beneath, told):
    save(4)
    with failing_after(4000, beneath), pytest.raises(UserError, match=told):
        save(40)
    assert names(tmp_path) == ["000000"]


def test_an_interruption_while_a_checkpoint_is_written_is_one(save, tmp_path):
    save(4)
    with failing_after(4000, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        save(40)
    assert newest(tmp_path).name == "000000"
    save(5)
    assert names(tmp_path) == ["000000", "000001"]


@contextmanager
def failing_after(count: int, error: BaseException):
    """Lets torch's streams take so many bytes, and then raises an error within its writer."""
    create = FileSystem.create_stream

    class Stream(io.FileIO):
        def write(self, content):
            if self.tell() > count:
                raise error
            return super().write(content)

    @contextmanager
    def limited(self, path, mode):
        if "b" in mode and "w" in mode:
            with Stream(path, "w") as stream:
                yield stream
        else:
            with create(self, path, mode) as stream:
                yield stream

    with patch.object(FileSystem, "create_stream", limited):
        yield


# --- A stranger's: whatever its list of contents says, no code runs, in one sentence.


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def small() -> Tensors:
    model = nn.Linear(4, 3)
    return Tensors(model=model, optimizer=torch.optim.AdamW(model.parameters()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save_state(run, {"said": 1}, small(), keep=1, world=ALONE)
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def stated(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "000000" / "state.json").read_text())


def seal(run: Path, state: dict, digests: bool = True) -> None:
    """Makes a state look untouched: whoever can write the folder can do that."""
    folder = run / "checkpoints" / "000000"
    state.pop("digest", None)
    if digests:
        state["digests"] = {
            each.name: hashlib.sha256(each.read_bytes()).hexdigest()
            for each in folder.glob("*.distcp")
        }
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps({**state, "digest": digest}))


def go_on(run: Path) -> None:
    checkpoint = newest(run)
    read_facts(checkpoint)
    load_tensors(checkpoint, small())


def refused(run: Path, capsys, words: str) -> None:
    with pytest.raises(UserError, match=words):
        go_on(run)
    assert "code ran" not in capsys.readouterr().out


def test_torchs_own_list_is_there_for_its_tools_and_never_read(run, capsys):
    list_of_torch = run / "checkpoints" / "000000" / ".metadata"
    assert list_of_torch.exists()
    list_of_torch.write_bytes(pickle.dumps(Evil()))
    go_on(run)
    assert capsys.readouterr().out == ""
    state = stated(run)
    state["digests"][".metadata"] = hashlib.sha256(list_of_torch.read_bytes()).hexdigest()
    seal(run, state, digests=False)
    refused(run, capsys, r"it says that '\.metadata' is a file of tensors in it, which is not so")


def test_a_pickle_in_the_place_of_a_tensor_is_not_run(run, capsys):
    content = io.BytesIO()
    torch.save(Evil(), content)
    folder, state = run / "checkpoints" / "000000", stated(run)
    (folder / "__1_0.distcp").write_bytes(content.getvalue())
    [chunk] = state["contents"]["model.bias"]["chunks"]
    chunk |= {"file": "__1_0.distcp", "start": 0, "length": len(content.getvalue())}
    seal(run, state)
    refused(run, capsys, "its tensors do not fit this model")


def test_what_would_grow_in_reading_is_not_read(run, capsys):
    """A storage of zeros, packed a thousandfold into the place of a small one."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(10**6), plain)
    with zipfile.ZipFile(plain) as there, zipfile.ZipFile(packed, "w") as here:
        for name in there.namelist():
            here.writestr(name, there.read(name), zipfile.ZIP_DEFLATED)
    folder, state = run / "checkpoints" / "000000", stated(run)
    (folder / "__1_0.distcp").write_bytes(packed.getvalue())
    [chunk] = state["contents"]["model.bias"]["chunks"]
    chunk |= {"file": "__1_0.distcp", "start": 0, "length": len(packed.getvalue())}
    seal(run, state)
    refused(run, capsys, "holds something compressed")


@pytest.mark.parametrize("name", ["../../secret", "secret", "/etc/hostname", "state.json", ".", ""])
def test_no_file_but_its_own_is_read(run, capsys, name):
    (run / "secret").write_bytes(b"x")
    state = stated(run)
    for tensor in state["contents"].values():
        for chunk in tensor["chunks"]:
            chunk["file"] = name
    state["digests"] = {name: hashlib.sha256(b"x").hexdigest()}
    seal(run, state, digests=False)
    refused(run, capsys, "Cannot resume")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_plain_file_is_not_opened(run, capsys, make):
    """A pipe would keep the reader waiting for ever."""
    folder = run / "checkpoints" / "000000"
    for name in ("__0_0.distcp", "state.json"):
        (folder / name).unlink()
        make(folder / name)
        refused(run, capsys, "checkpoints are damaged")


def test_an_earlier_versions_list_is_refused_with_what_to_do(run, capsys):
    state = stated(run)
    del state["contents"]
    seal(run, state)
    refused(run, capsys, "earlier version.* pickle, and none is read; start anew .* --weights")


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_other_list_is_a_sentence(saved, data):
    """Somewhere in the state something else is put, and all digests made right again."""
    run = saved.parent / "changed"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(saved, run)
    state = stated(run)
    where, key = state, data.draw(st.sampled_from(["facts", "contents", "digests"]))
    while isinstance(where[key], dict | list) and where[key] and data.draw(st.integers(0, 9)):
        where = where[key]
        keys = sorted(where) if isinstance(where, dict) else range(len(where))
        key = data.draw(st.sampled_from(list(keys)))
    where[key] = data.draw(ODD)
    seal(run, state, digests=False)
    with suppress(UserError):
        go_on(run)
