import resource
import subprocess
import sys

import pytest

from cvt.training.run_folder import EpochRow
from cvt.training.tensorboard import Events, event_files, read_events


class Said(list):
    """Collects what is said to people."""

    __call__ = list.append


@pytest.fixture
def every_update(monkeypatch):
    """Takes the least time between two events away."""
    monkeypatch.setattr("cvt.training.tensorboard._LEAST_GAP_S", 0.0)
    monkeypatch.setattr("cvt.training.tensorboard._GAPS_IN_A_RUN", float("inf"))


def row(epoch, top1=50.0):
    figures = {"train_loss": 2.0, "val_loss": 1.5, "lr": 0.1, "images_per_s": 100.0, "seconds": 9.0}
    return EpochRow(epoch=epoch, val_top1=top1, data_wait=0.25, memory_mb=64.0, **figures)


def session(run, *, done, updates, epochs_done=0, per_epoch=4, said=None, close=True):
    """Makes `updates` updates from `done` on, and an epoch's end after every `per_epoch`."""
    events = Events(run, done, epochs_done, Said() if said is None else said)
    for step in range(done + 1, done + updates + 1):
        events.update(step, float(step), 0.1 / step, 2.0 * step, 1000.0)
        if step % per_epoch == 0:
            events.epoch(row(step // per_epoch))
    if close:
        events.close()
    return events


def scalars(run, tag):
    """What TensorBoard itself makes of the folder: steps and values of a tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return [(each.step, each.value) for each in read.Scalars(tag)]


def test_tensorboard_reads_what_was_written(tmp_path, every_update):
    session(tmp_path, done=0, updates=6)
    assert scalars(tmp_path, "train/loss") == [(step, step) for step in range(1, 7)]
    assert scalars(tmp_path, "train/grad_norm")[-1] == (6, 12.0)
    assert scalars(tmp_path, "train/lr")[0] == (1, pytest.approx(0.1))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0)]
    assert scalars(tmp_path, "epoch/data_wait") == [(4, 0.25)]
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0)]


def test_fast_updates_become_means_and_none_is_left_out(tmp_path):
    session(tmp_path, done=0, updates=1000, per_epoch=500)
    losses = scalars(tmp_path, "train/loss")
    assert len(losses) < 100
    assert losses[-1][0] == 1000
    steps = [0, *(step for step, _ in losses)]
    for (step, value), before in zip(losses, steps, strict=False):
        assert value == pytest.approx((before + 1 + step) / 2)


def test_gaps_grow_with_the_run(tmp_path, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    with Events(tmp_path, 0, 0, Said()) as events:
        for step in range(1, 20_001):
            seconds[0] += 1.0
            events.update(step, 1.0, 0.1, None, 10.0)
    steps = [event.step for path in event_files(events.folder) for event in read_events(path)]
    assert 3_500 < len(steps) < 4_500  # 1000 * (1 + ln 20)
    assert "train/grad_norm" not in {
        value.tag for event in read_events(event_files(events.folder)[0])
        for value in event.summary.value
    }  # fmt: skip


def test_a_resumed_run_overlaps_nowhere(tmp_path, every_update):
    """Killed without a word after update 10 and epoch 2; the state was of update 6 in epoch 2."""
    killed = session(tmp_path, done=0, updates=10, close=False)
    session(tmp_path, done=6, epochs_done=1, updates=6)
    for tag in ("train/loss", "train/lr"):
        assert [step for step, _ in scalars(tmp_path, tag)] == list(range(1, 13))
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0), (8, 2.0), (12, 3.0)]
    first, second = event_files(tmp_path / "tensorboard")
    assert max(event.step for event in read_events(first) if event.HasField("summary")) == 6
    assert min(event.step for event in read_events(second) if event.HasField("summary")) == 7
    killed.close()


def test_an_epoch_measured_again_is_there_once(tmp_path, every_update):
    """Killed after the event of epoch 2, before the state said that the epoch was finished."""
    session(tmp_path, done=0, updates=8)
    with Events(tmp_path, 8, 1, Said()) as events:
        events.epoch(row(2, top1=60.0))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0), (8, 60.0)]
    assert len(scalars(tmp_path, "train/loss")) == 8


def test_a_finished_state_takes_nothing_back(tmp_path, every_update):
    session(tmp_path, done=0, updates=8)
    path = event_files(tmp_path / "tensorboard")[0]
    before = path.read_bytes()
    Events(tmp_path, 8, 2, Said()).close()
    assert path.read_bytes() == before


def test_a_watching_tensorboard_is_told_to_forget(tmp_path, every_update):
    session(tmp_path, done=0, updates=3)
    session(tmp_path, done=2, updates=1)
    starts = [
        event.step
        for path in event_files(tmp_path / "tensorboard")
        for event in read_events(path)
        if event.HasField("session_log")
    ]
    assert starts == [1, 3]


def test_a_file_cut_off_in_writing_is_repaired(tmp_path, every_update):
    session(tmp_path, done=0, updates=3)
    path = event_files(tmp_path / "tensorboard")[0]
    path.write_bytes(path.read_bytes()[:-5])
    size = path.stat().st_size
    session(tmp_path, done=3, updates=2)
    assert path.stat().st_size < size
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 4, 5]


def test_clocks_may_jump_back(tmp_path, every_update, monkeypatch):
    import time

    session(tmp_path, done=0, updates=2)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 1e7)
    session(tmp_path, done=2, updates=2)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4]


def test_a_full_disk_is_said_once_and_costs_the_run_nothing(tmp_path, every_update):
    said = Said()
    events = session(tmp_path, done=0, updates=4, said=said, close=False)
    size = event_files(events.folder)[0].stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        for step in range(5, 10):
            events.update(step, 1.0, 0.1, 2.0, 1000.0)
        events.epoch(row(2))
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
    session(tmp_path, done=0, updates=5, said=said)
    assert len(said) == 1


def test_other_processes_write_nothing(tmp_path):
    events = Events(tmp_path, 0, 0, Said(), enabled=False)
    events.update(1, 1.0, 0.1, 2.0, 1000.0)
    events.epoch(row(1))
    events.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported_before_a_run_starts():
    code = "import sys, cvt.training.tensorboard as t\nprint('tensorboard' in sys.modules)\n"
    code += "t._event_class()\nprint('torch' in sys.modules, 'tensorflow' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["False", "False", "False"]
