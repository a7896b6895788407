"""A run that goes on is the same run, or says what is another one."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from cvt.data import ArraySet, DataSplits
from cvt.errors import UserError
from cvt.plain import from_plain, to_plain
from cvt.training.checkpoints import Identity
from stored import stored_facts
from trained import Event, differences, session

STOP = Event("cvt.training.loop.train_step", 2)
SGD = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}  # which stores the least


class Named(ArraySet):
    """Pictures with names of their own."""

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
