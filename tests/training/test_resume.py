import os
import signal

import pytest
import torch

from cvt.errors import UserError
from cvt.runtime import Interrupted
from cvt.training import loop
from cvt.training.loop import train
from cvt.weights.checkpoint import load_checkpoint, read_record
from stored import stored_facts, stored_tensors

UPDATES_PER_EPOCH = 3


@pytest.fixture
def interrupt(monkeypatch):
    """`interrupt(name, k)`: presses Ctrl-C inside the k-th call of one of the loop's functions."""

    def arrange(name: str, k: int) -> None:
        original, calls = getattr(loop, name), []

        def pressed(*args, **kwargs):
            calls.append(name)
            if len(calls) == k:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*args, **kwargs)

        monkeypatch.setattr(loop, name, pressed)

    return arrange


@pytest.fixture(scope="module")
def whole(tiny_run, tmp_path_factory):
    """The run without an interruption."""
    return train(**tiny_run(tmp_path_factory.mktemp("whole")), progress=False)


@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("train_step", 1),
        ("train_step", UPDATES_PER_EPOCH),
        ("train_step", UPDATES_PER_EPOCH + 2),
        ("validate", 1),
        ("validate", 2),
        ("validate", 3),  # the final test
        ("keep_epoch", 1),
        ("keep_epoch", 2),
    ],
)
def test_interrupted_and_resumed_is_the_same_run(
    name, k, whole, tiny_run, tmp_path, interrupt, monkeypatch
):
    config = tiny_run(tmp_path / "cut")
    interrupt(name, k)
    with pytest.raises(Interrupted, match=r"cvt train --resume .*cut"):
        train(**config, progress=False)
    monkeypatch.undo()
    cut = train(resume=str(tmp_path / "cut"), progress=False)
    assert_same(whole, cut)


def assert_same(whole, cut) -> None:
    """The figures, the weights, the optimiser and the history are bit-equal, times apart."""
    for name in ("best_epoch", "best_top1", "best_loss", "test_top1", "test_loss"):
        assert getattr(whole, name) == getattr(cut, name), name
    for file in ("last.safetensors", "best.safetensors"):
        (ours, our_record), (theirs, their_record) = (
            load_checkpoint(each.run / file) for each in (whole, cut)
        )
        assert our_record == their_record
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name
    one, other = stored_tensors(whole.run), stored_tensors(cut.run)
    assert one.keys() == other.keys()
    assert any(name.startswith("moments.") for name in one)
    for name in one:
        assert torch.equal(one[name], other[name]), name
    one, other = (stored_facts(each.run)["progress"]["history"] for each in (whole, cut))
    for mine, yours in zip(one, other, strict=True):
        for name in ("epoch", "train_loss", "val_loss", "val_top1", "lr"):
            assert mine[name] == yours[name]


def test_stopping_early_leaves_a_usable_folder(tiny_config, tmp_path, interrupt):
    interrupt("train_step", 2)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="in epoch 1 of 2 after 2 updates"):
        train(**tiny_config(), progress=False)
    assert read_record(tmp_path / "run" / "last.safetensors").class_names == ("bright", "dark")
    assert {each.name for each in (tmp_path / "run").iterdir()} == {
        ".lock",
        "config.yaml",
        "checkpoints",
        "last.safetensors",
        "tensorboard",
    }
    assert signal.getsignal(signal.SIGINT) is before


def test_metrics_end_where_the_state_does(tiny_config, tmp_path, interrupt, monkeypatch):
    interrupt("train_step", UPDATES_PER_EPOCH + 1)
    with pytest.raises(Interrupted):
        train(**tiny_config(), progress=False)
    monkeypatch.undo()
    metrics = tmp_path / "run" / "metrics.csv"
    assert len(metrics.read_text().splitlines()) == 2
    metrics.write_text(metrics.read_text() + "2,a line of a session that was killed\n")
    train(resume=str(tmp_path / "run"), progress=False)
    lines = metrics.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cvt_13"}, "Got model 'cvt_13', but the run to resume was started with 'cvt_n"),
        ({"seed": 1}, "Got seed 1, but .* 0; leave it out, start a new run, or change"),
        ({"batch_size": 8}, "Got batch_size 8"),
        ({"out": "elsewhere"}, "Got out 'elsewhere'"),
        ({"data": "torch/cifar10"}, "Got data 'torch/cifar10'"),
        ({"optim": {"lr": 1.0}}, r"Got optim\.lr 1\.0"),
    ],
)
def test_a_changed_config_is_refused(change, message, finished_run):
    with pytest.raises(UserError, match=message):
        train(resume=str(finished_run), **change, progress=False)


def test_device_and_workers_may_change(finished_run):
    config = {"resume": str(finished_run), "device": "cpu", "num_workers": 1, "batch_size": 4}
    assert train(**config, progress=False).run == finished_run


def test_changed_data_are_refused(tiny_config, tiny_folder, tmp_path, interrupt):
    import shutil

    data = shutil.copytree(tiny_folder, tmp_path / "data")
    interrupt("train_step", 1)
    with pytest.raises(Interrupted):
        train(**tiny_config(data=str(data)), progress=False)
    (data / "train" / "dark" / "0.png").unlink()
    with pytest.raises(UserError, match=r"training split has 11 images instead of 12; .* --force"):
        train(resume=str(tmp_path / "run"), progress=False)


@pytest.fixture
def finished_run(tiny_config, tmp_path):
    return train(**tiny_config(epochs=1), progress=False).run
