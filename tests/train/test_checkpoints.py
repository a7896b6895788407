import pickle
import resource

import pytest
import torch
from torch import nn

from cvt.errors import UserError
from cvt.train.checkpoints import load_state, save_state
from cvt.train.config import TrainConfig
from cvt.train.progress import Progress


@pytest.fixture
def save(tmp_path):
    """`save(side)`: saves the state of a side x side linear layer."""

    def make(side: int) -> nn.Module:
        model = nn.Linear(side, side)
        optimizer = torch.optim.AdamW(model.parameters())
        save_state(tmp_path, TrainConfig(seed=side), Progress(batch=3), model, optimizer, 7)
        return model

    return make


def test_comes_back_as_it_was(save, tmp_path):
    model = save(4)
    state = load_state(tmp_path)
    assert (state.config, state.progress, state.num_images) == (
        TrainConfig(seed=4),
        Progress(batch=3),
        7,
    )
    assert torch.equal(state.model["weight"], model.weight)


def test_a_full_disk_keeps_the_old_state(save, tmp_path):
    save(4)
    before = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"Cannot write .*last\.pt"):
            save(500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == before


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


def test_other_files_are_refused_in_one_sentence(save, tmp_path, capsys):
    with pytest.raises(UserError, match=r"there is no last.pt to read in it"):
        load_state(tmp_path)
    save(4)
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", whole[:-200], pickle.dumps(Evil())):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or not written by this library"):
            load_state(tmp_path)
    torch.save({"model": {}}, path)
    with pytest.raises(UserError, match="is damaged or not written by this library"):
        load_state(tmp_path)
    assert capsys.readouterr().out == ""
