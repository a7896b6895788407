"""Several processes train as one does: to the bit where it says so, else to rounding."""

import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.train.config import AugmentConfig, MixConfig, OptimConfig, TrainConfig
from processes import in_processes
from trained import Event, differences, farthest, session

STEP = "cvt.train.loop.train_step"
CUT = Event(STEP, 5, rank=1)  # in the middle of the second epoch, and only one process hears it


@pytest.fixture(scope="module")
def uneven_folder(tmp_path_factory):
    """Twelve training pictures, and five and three to measure: no two processes share them evenly."""
    root = tmp_path_factory.mktemp("uneven")
    random = np.random.default_rng(0)
    for split, counts in (("train", (6, 6)), ("val", (3, 2)), ("test", (1, 2))):
        for name, low, count in zip(("bright", "dark"), (128, 0), counts, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run_of(tiny_run, uneven_folder):
    """`run_of(out, **changes)`: every kind of randomness, repeated pictures and an average."""

    def make(out, **changes) -> TrainConfig:
        config = tiny_run(out, data=str(uneven_folder), ema_decay=0.9, **changes)
        return replace(config, augment=replace(config.augment, repeats=3))

    return make


@pytest.fixture(scope="module")
def one(run_of, tmp_path_factory):
    """The run of one process that works through each batch in two chunks."""
    config = run_of(tmp_path_factory.mktemp("one"), accum_steps=2)
    return session(config).result


@pytest.fixture(scope="module")
def two(run_of, tmp_path_factory):
    """The same run of two processes: their two results."""
    ended = in_processes(2, session, run_of(tmp_path_factory.mktemp("two")))
    return [each.result for each in ended]


@pytest.fixture(scope="module")
def cut(run_of, tmp_path_factory):
    """The folder of that run of two, stopped in its second epoch."""
    out = tmp_path_factory.mktemp("cut")
    main, other = in_processes(2, session, run_of(out), CUT)
    assert main.error == other.error == "Interrupted"
    assert f"after 2 updates of it. Go on with: cvt train --resume {out}" in main.text
    assert (main.is_told_elsewhere, other.is_told_elsewhere) == (False, True)
    return out


@pytest.fixture
def cut_again(cut, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(cut, tmp_path / "again")


def test_two_processes_are_one_that_accumulates(one, two):
    """To the bit: there are two chunks in a batch, and a sum of two is the same either way."""
    assert differences(one.run, two[0].run) == []
    for each in two:
        assert replace(each, run=one.run, seconds=one.seconds) == one


def test_the_whole_split_is_measured_once(two, uneven_folder, run_of):
    """Five pictures over two processes: the figures are those of one process that sees them all."""
    from cvt.evaluate import evaluate

    for figures, split in ((two[0].best_top1, "val"), (two[0].test_top1, "test")):
        measured = evaluate(str(two[0].run), str(uneven_folder), split=split, device="cpu")
        assert measured.num_images == {"val": 5, "test": 3}[split]
        assert measured.top1 == pytest.approx(figures, abs=1e-9)
    loss = evaluate(str(two[0].run), str(uneven_folder), split="val", device="cpu").loss
    assert two[0].best_loss == pytest.approx(loss, rel=1e-6)


def test_stopped_in_one_process_and_resumed_is_the_same_run(two, cut_again):
    """Also with other processes loading the pictures than before."""
    config = TrainConfig(resume=str(cut_again), num_workers=1)
    in_processes(2, session, config)
    assert differences(two[0].run, cut_again) == []


def test_one_process_goes_on_where_two_stopped(two, cut_again):
    ended = session(TrainConfig(resume=str(cut_again)))
    assert ended.result.best_top1 == two[0].best_top1
    assert differences(two[0].run, cut_again) == []
