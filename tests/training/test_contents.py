"""A checkpoint of a stranger: whatever its list of contents says, no code runs, in one sentence."""

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cvt.errors import UserError
from cvt.runtime import ALONE
from cvt.training.checkpoints import Tensors, load_tensors, newest, read_facts, save_state


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def made() -> Tensors:
    model = nn.Linear(4, 3)
    return Tensors(model=model, optimizer=torch.optim.AdamW(model.parameters()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    save_state(run, {"said": 1}, made(), keep=1, world=ALONE)
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
    load_tensors(checkpoint, made())


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
