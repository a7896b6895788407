import resource
from itertools import count

import pytest

from cvt.training.run_folder import EpochRow, Events


class Said(list):
    """Collects what is said to people."""

    __call__ = list.append


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Sessions begin at different seconds, as they do where each is a process of its own."""
    seconds = count(1_800_000_000)
    monkeypatch.setattr("time.time", lambda: next(seconds))


def row(epoch, top1=50.0):
    figures = {"train_loss": 2.0, "val_loss": 1.5, "lr": 0.1, "images_per_s": 100.0, "seconds": 9.0}
    return EpochRow(epoch=epoch, val_top1=top1, data_wait=0.25, memory_mb=64.0, **figures)


def session(run, *, first, updates, per_epoch=4, said=None, close=True, gap_s=0):
    """Makes `updates` updates from number `first` on, and an epoch's end every `per_epoch`."""
    events = Events(run, first, Said() if said is None else said, least_gap_s=gap_s)
    for step in range(first, first + updates):
        events.update(step, float(step), 0.1 / step, 2.0 * step, 1000.0)
        if step % per_epoch == 0:
            events.epoch(step, row(step // per_epoch))
    if close:
        events.close()
    return events


def scalars(run, tag):
    """What TensorBoard itself makes of the folder: steps and values of a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return [(each.step, each.value) for each in read.Scalars(tag)]


def test_tensorboard_reads_what_was_written(tmp_path):
    session(tmp_path, first=1, updates=6)
    assert scalars(tmp_path, "train/loss") == [(step, step) for step in range(1, 7)]
    assert scalars(tmp_path, "train/grad_norm")[-1] == (6, 12.0)
    assert scalars(tmp_path, "train/lr")[0] == (1, pytest.approx(0.1))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0)]
    assert scalars(tmp_path, "epoch/data_wait") == [(4, 0.25)]
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0)]


def test_fast_updates_become_means_and_none_is_left_out(tmp_path):
    session(tmp_path, first=1, updates=1000, per_epoch=500, gap_s=1)
    losses = scalars(tmp_path, "train/loss")
    assert len(losses) < 100
    assert losses[-1][0] == 1000
    steps = [0, *(step for step, _ in losses)]
    for (step, value), before in zip(losses, steps, strict=False):
        assert value == pytest.approx((before + 1 + step) / 2)


def test_gaps_grow_with_the_run(tmp_path, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    with Events(tmp_path, 1, Said()) as events:
        for step in range(1, 20_001):
            seconds[0] += 1.0
            events.update(step, 1.0, 0.1, None, 10.0)
    assert 3_500 < len(scalars(tmp_path, "train/loss")) < 4_500  # 1000 * (1 + ln 20)
    with pytest.raises(KeyError):
        scalars(tmp_path, "train/grad_norm")


def test_a_resumed_run_overlaps_nowhere(tmp_path):
    """Killed without a word after update 10 and epoch 2; the state was of update 6 in epoch 2."""
    killed = session(tmp_path, first=1, updates=10, close=False)
    session(tmp_path, first=7, updates=6)
    for tag in ("train/loss", "train/lr"):
        assert [step for step, _ in scalars(tmp_path, tag)] == list(range(1, 13))
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0), (8, 2.0), (12, 3.0)]
    killed.close()


def test_an_epoch_measured_again_is_there_once(tmp_path):
    """Killed after the events of epoch 2, before the state said that the epoch was finished."""
    session(tmp_path, first=1, updates=8)
    with Events(tmp_path, 8, Said()) as events:
        events.epoch(8, row(2, top1=60.0))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0), (8, 60.0)]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 8))


def test_a_finished_state_takes_nothing_back(tmp_path):
    session(tmp_path, first=1, updates=8)
    Events(tmp_path, 9, Said()).close()
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 9))
    assert [step for step, _ in scalars(tmp_path, "epoch/number")] == [4, 8]


def test_a_file_cut_off_in_writing_costs_one_event(tmp_path):
    session(tmp_path, first=1, updates=3)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    session(tmp_path, first=4, updates=2)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path, "train/grad_norm")] == [1, 2, 4, 5]


def test_events_of_an_earlier_version_come_first(tmp_path):
    session(tmp_path, first=1, updates=4)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.rename(path.with_name("events.out.tfevents.000001"))  # as they were called
    session(tmp_path, first=3, updates=2)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4]


def test_a_full_disk_is_said_once_and_costs_the_run_nothing(tmp_path):
    said = Said()
    events = session(tmp_path, first=1, updates=4, said=said, close=False)
    (path,) = events.folder.iterdir()
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        for step in range(5, 10):
            events.update(step, 1.0, 0.1, 2.0, 1000.0)
        events.epoch(9, row(2))
        events.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(said) == 1
    assert "No more TensorBoard events" in said[0]
    assert "File too large" in said[0]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    said = Said()
    session(tmp_path, first=1, updates=5, said=said)
    assert len(said) == 1


def test_other_processes_write_nothing(tmp_path):
    events = Events(tmp_path, 1, Said(), enabled=False)
    events.update(1, 1.0, 0.1, 2.0, 1000.0)
    events.epoch(1, row(1))
    events.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_from_the_start_is_said_once(tmp_path):
    said = Said()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        session(tmp_path, first=1, updates=3, said=said)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(said) == 1
    assert "File too large" in said[0]
