"""A run that goes on is the same run to the bit, or says what makes it another one."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from cvt.data import ArraySet, DataSplits
from cvt.errors import UserError
from cvt.plain import from_plain, to_plain
from cvt.runtime import Interrupted
from cvt.training import loop
from cvt.training.checkpoints import Identity
from cvt.training.loop import train
from cvt.weights.checkpoint import load_checkpoint
from stored import stored_facts, stored_tensors
from trained import Event, differences, session

pytestmark = pytest.mark.usefixtures("undrawn")

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


@pytest.mark.parametrize("opt", ["sgd", "muon"])
def test_the_moments_of_other_optimisers_come_back_too(
    opt, tiny_run, tmp_path, interrupt, monkeypatch
):
    told = {"optim": {"opt": opt, "lr": 0.01, "weight_decay": 0.1}}
    whole = train(**{**tiny_run(tmp_path / "whole"), **told}, progress=False)
    interrupt("train_step", UPDATES_PER_EPOCH + 2)
    with pytest.raises(Interrupted):
        train(**{**tiny_run(tmp_path / "cut"), **told}, progress=False)
    monkeypatch.undo()
    assert_same(whole, train(resume=str(tmp_path / "cut"), progress=False))


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
    assert load_checkpoint(tmp_path / "run" / "last.safetensors")[1].class_names == (
        "bright",
        "dark",
    )
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


STOP = Event("cvt.training.loop.train_step", 2)
SGD = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}  # which stores the least


# --- What makes a run the one that it is: its data, its software, its teacher.


class Named(ArraySet):
    """Images with names of their own."""

    def __init__(self, names: list[str], labels: list[int]) -> None:
        super().__init__(np.zeros((len(names), 2, 2), np.uint8), labels, "ab", "named")
        self.names = names

    def name(self, index: int) -> str:
        return self.names[index]


def identity_of(train: Named, test: Named | None = None) -> Identity:
    val = Named(["v0", "v1"], [0, 1])
    splits = DataSplits(name="named", train=train, val=val, test=test, val_was_cut=False)
    return Identity.of(splits, chunks=2)


START = identity_of(Named(["x/0", "x/1", "x/2"], [0, 1, 1]))


@pytest.mark.parametrize(
    "same",
    [
        identity_of(Named(["x/0", "x/1", "x/2"], [0, 1, 1])),
        identity_of(Named(["elsewhere/0", "elsewhere/1", "elsewhere/2"], [0, 1, 1])),
    ],
    ids=["itself", "another folder"],
)
def test_the_same_data_are_the_same_run(same):
    START.check(same)
    from_plain(Identity, json.loads(json.dumps(to_plain(START))), "it").check(same)


def test_runs_from_before_there_were_teachers_have_none():
    plain = {name: value for name, value in to_plain(START).items() if name != "teacher"}
    assert from_plain(Identity, plain, "it") == START


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (
            identity_of(Named(["x/0", "x/1"], [0, 1])),
            "the training split has 2 images instead of 3",
        ),
        (
            identity_of(Named(["x/0", "x/1", "x/9"], [0, 1, 1])),
            "names or labels of the training images differ",
        ),
        (
            identity_of(Named(["x/0", "x/1", "x/2"], [0, 1, 0])),
            "names or labels of the training images differ",
        ),
        (
            identity_of(Named(["x/1", "x/0", "x/2"], [0, 1, 1])),
            "names or labels of the training images differ",
        ),
        (
            replace(START, software={**START.software, "torch": "9.0", "timm": "8.0"}),
            f"torch is 9.0 instead of {START.software['torch']}, timm is 8.0 instead of",
        ),
        (replace(START, teacher=("demo", "f00d")), "the teacher is demo instead of none"),
    ],
    ids=["fewer", "renamed", "relabelled", "in another order", "other software", "taught"],
)
def test_what_changed_is_said(now, words):
    with pytest.raises(UserError) as raised:
        START.check(now)
    assert words in str(raised.value)
    assert str(raised.value).startswith("The run to resume would not be the same: ")
    assert str(raised.value).endswith("put that back, or go on all the same with --force.")


def test_a_split_that_went_missing_is_said():
    with_test = identity_of(
        Named(["x/0", "x/1", "x/2"], [0, 1, 1]), test=Named(["t0", "t1"], [0, 1])
    )
    with pytest.raises(UserError, match="the test split has 0 images instead of 2"):
        with_test.check(START)


def test_forced_a_run_goes_on_with_other_software_and_data(tiny_run, tiny_folder, tmp_path):
    """The stored identity is then the new one."""
    data = shutil.copytree(tiny_folder, tmp_path / "data")
    config = tiny_run(tmp_path / "run", data=str(data), epochs=1, optim=SGD)
    assert session(config, STOP).error == "Interrupted"
    (data / "train" / "dark" / "0.png").rename(data / "train" / "dark" / "00.png")
    newer = {"cvt.__version__": "99.0"}
    resumed = {"resume": str(tmp_path / "run")}
    before = stored_facts(tmp_path / "run")
    ended = session(resumed, patches=newer)
    assert "names or labels of the training images differ, cvt is 99.0 instead of" in ended.text
    assert stored_facts(tmp_path / "run") == before
    assert session({**resumed, "force": True}, patches=newer).result
    facts = stored_facts(tmp_path / "run")
    assert facts["identity"]["software"]["cvt"] == "99.0"
    assert facts["config"]["force"] is False
    assert session(resumed).error == "UserError"
    assert session(resumed, patches=newer).result


def test_a_clock_that_jumps_changes_nothing(tiny_run, tmp_path, monkeypatch):
    """Intervals are measured by a clock that only ever goes on."""
    config = tiny_run(tmp_path / "whole", epochs=1, optim=SGD, checkpoint_minutes=60.0)
    assert session(config).result
    real, calls = time.time, []

    def jumping() -> float:
        calls.append(real())
        return real() + (-1e9, 1e9, 0.0)[len(calls) % 3]

    monkeypatch.setattr(time, "time", jumping)
    other = {**config, "out": str(tmp_path / "other")}
    assert session(other, STOP).error == "Interrupted"
    result = session({"resume": other["out"]}).result
    assert calls
    assert 0 < result.seconds < 1000
    assert differences(tmp_path / "whole", tmp_path / "other") == []
    facts = stored_facts(tmp_path / "other")
    assert facts["progress"]["history"][0]["seconds"] > 0
    assert int(sorted((tmp_path / "other" / "checkpoints").iterdir())[-1].name) == 2


def test_versions_of_what_decides_bits_are_kept():
    assert {"cvt", "torch", "torchvision", "timm", "numpy", "pillow"} <= set(START.software)
