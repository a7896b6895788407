import errno
import io
import resource
import shutil
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem

from cvt.errors import UserError
from cvt.runtime import World
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
