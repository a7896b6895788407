import resource
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import count

import pytest
from PIL import Image

from cvt.errors import UserError
from cvt.plain import from_plain, to_plain
from cvt.training.run_folder import (
    METRICS_FILE,
    EpochRow,
    Events,
    Progress,
    held,
    is_held,
    make_run_folder,
    read_metrics,
    write_metrics,
)
from trained import config_of

NAMES = ["x" * 250, "猫" * 200, ".hidden", "caf\udce9", "a b\n$|", ".."]


@pytest.mark.parametrize("data", NAMES)
def test_any_data_give_a_run_a_name(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        run = make_run_folder(config_of(data=data, model="cvt_nano_32"))
        assert run.is_dir()
        assert not run.name.startswith(".")
        assert run.name.endswith(f"-cvt_nano_32-{number}")
        assert len(run.name.encode()) < 256


@pytest.mark.parametrize("out", [None, "runs/a", "y" * 300])
def test_where_no_folder_can_be_is_a_sentence(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="Cannot make the folder"):
        make_run_folder(config_of(data="d", model="m", out=out))


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", ".lock"])
def test_nothing_is_written_along_a_link(tmp_path, name):
    """A stranger's folder may have them, and checkpoints are deleted as well as written."""
    (tmp_path / "elsewhere").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(tmp_path / "elsewhere" / "new")
    with pytest.raises(UserError, match="Got a link in the place of"), held(run):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


HISTORY = [
    EpochRow(
        epoch=epoch, train_loss=2 / 3, val_loss=1.5, val_top1=50.0, lr=1e-5, images_per_s=100.0,
        seconds=9.0, data_wait=0.25, memory_mb=64.0,
    )
    for epoch in (1, 2)
]  # fmt: skip


def test_metrics_come_back_as_they_went(tmp_path):
    history = [HISTORY[0], replace(HISTORY[1], ended="minutes")]
    write_metrics(tmp_path, history)
    for read, written in zip(read_metrics(tmp_path), history, strict=True):
        found, expected = asdict(read), asdict(written)
        assert found.pop("ended") == expected.pop("ended")
        assert found == pytest.approx(expected, rel=1e-5)
        assert isinstance(read.epoch, int)


def test_metrics_are_a_table_for_everyone(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_metrics(tmp_path, HISTORY)
    table = pandas.read_csv(tmp_path / METRICS_FILE)
    assert list(table.columns) == list(asdict(HISTORY[0]))
    assert table["epoch"].tolist() == [1, 2]
    assert table["data_wait"].tolist() == [0.25, 0.25]
    assert set(map(str, table.dtypes)) == {"int64", "float64"}


def test_older_metrics_lack_columns(tmp_path):
    (tmp_path / METRICS_FILE).write_text("epoch,val_top1,val_loss\n1,50,2\n")
    (row,) = read_metrics(tmp_path)
    assert (row.epoch, row.val_top1) == (1, 50.0)
    assert row.memory_mb != row.memory_mb


@pytest.mark.parametrize("content", ["epoch,val_top1\none,50\n", "epoch,val_top1\n1\n"])
def test_metrics_that_are_no_table_are_named(tmp_path, content):
    (tmp_path / METRICS_FILE).write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv is not a table of epochs"):
        read_metrics(tmp_path)


def test_a_new_run_has_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path) == []


def test_one_process_at_a_time_trains_a_run(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom cvt.training.run_folder import held\n"
        "with held(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)"
    )
    assert not is_held(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"in\n"
        assert is_held(tmp_path)
        with pytest.raises(UserError, match="is being trained by another process"):
            held(tmp_path).__enter__()
    finally:
        other.kill()
        other.communicate()
    assert not is_held(tmp_path)
    with held(tmp_path):
        pass


def test_an_epoch_is_summed_up_and_the_next_begins_from_nothing():
    progress = Progress()
    progress.count(2.0, 30, 1.0, waited=0.5)
    progress.count(1.0, 10, 3.0)
    assert (progress.train_loss, progress.images_per_s, progress.data_wait) == (1.75, 10.0, 0.125)
    row = progress.finish_epoch(val_loss=0.5, val_top1=90.0, lr=0.1, memory_mb=64.0)
    assert (row.epoch, row.train_loss, row.data_wait, row.memory_mb) == (1, 1.75, 0.125, 64.0)
    assert (progress.epoch, progress.batch, progress.best) == (1, 0, row)
    assert (progress.loss_sum, progress.num_images) == (0.0, 0)
    assert (progress.seconds, progress.wait_seconds, progress.data_wait) == (0.0, 0.0, 0.0)


def test_plain_data_and_back():
    progress = Progress()
    progress.count(2.0, 30, 1.0, waited=0.5)
    progress.finish_epoch(val_loss=0.5, val_top1=90.0, lr=0.1, memory_mb=64.0)
    progress.count(1.0, 10, 3.0, waited=0.25)
    progress.note_bad(("a.png is empty",))
    plain = to_plain(progress)
    assert from_plain(Progress, plain, "it") == progress
    with pytest.raises(UserError, match="1 epochs of a run that do not go together"):
        from_plain(Progress, {**plain, "epoch": 2}, "it")


def test_the_best_epoch_is_the_most_accurate_and_then_the_surest():
    progress = Progress()
    for loss, top1 in ((1.0, 80.0), (0.9, 90.0), (0.8, 90.0), (0.5, 85.0), (0.8, 90.0)):
        progress.count(1.0, 1, 1.0)
        progress.finish_epoch(val_loss=loss, val_top1=top1, lr=0.1, memory_mb=1.0)
    assert progress.best is progress.history[2]


def test_waiting_is_never_more_than_all_the_time():
    progress = Progress()
    progress.count(1.0, 1, 1.0, waited=1.0 + 1e-9)
    assert progress.data_wait == pytest.approx(1.0)
    assert progress.data_wait <= 1.0


class Said(list):
    """Collects what is said to people."""

    __call__ = list.append


# --- Events, as TensorBoard itself reads them.


@pytest.fixture
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


def test_tensorboard_reads_what_was_written(tmp_path, clock):
    session(tmp_path, first=1, updates=6)
    assert scalars(tmp_path, "train/loss") == [(step, step) for step in range(1, 7)]
    assert scalars(tmp_path, "train/grad_norm")[-1] == (6, 12.0)
    assert scalars(tmp_path, "train/lr")[0] == (1, pytest.approx(0.1))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0)]
    assert scalars(tmp_path, "epoch/data_wait") == [(4, 0.25)]
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0)]


def test_fast_updates_become_means_and_none_is_left_out(tmp_path, clock):
    session(tmp_path, first=1, updates=1000, per_epoch=500, gap_s=1)
    losses = scalars(tmp_path, "train/loss")
    assert len(losses) < 100
    assert losses[-1][0] == 1000
    steps = [0, *(step for step, _ in losses)]
    for (step, value), before in zip(losses, steps, strict=False):
        assert value == pytest.approx((before + 1 + step) / 2)


def test_gaps_grow_with_the_run(tmp_path, clock, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: seconds[0])
    with Events(tmp_path, 1, Said()) as events:
        for step in range(1, 20_001):
            seconds[0] += 1.0
            events.update(step, 1.0, 0.1, None, 10.0)
    assert 3_500 < len(scalars(tmp_path, "train/loss")) < 4_500  # 1000 * (1 + ln 20)
    with pytest.raises(KeyError):
        scalars(tmp_path, "train/grad_norm")


def test_a_resumed_run_overlaps_nowhere(tmp_path, clock):
    """Killed without a word after update 10 and epoch 2; the state was of update 6 in epoch 2."""
    killed = session(tmp_path, first=1, updates=10, close=False)
    session(tmp_path, first=7, updates=6)
    for tag in ("train/loss", "train/lr"):
        assert [step for step, _ in scalars(tmp_path, tag)] == list(range(1, 13))
    assert scalars(tmp_path, "epoch/number") == [(4, 1.0), (8, 2.0), (12, 3.0)]
    killed.close()


def test_an_epoch_measured_again_is_there_once(tmp_path, clock):
    """Killed after the events of epoch 2, before the state said that the epoch was finished."""
    session(tmp_path, first=1, updates=8)
    with Events(tmp_path, 8, Said()) as events:
        events.epoch(8, row(2, top1=60.0))
    assert scalars(tmp_path, "epoch/val_top1") == [(4, 50.0), (8, 60.0)]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 8))


def test_a_finished_state_takes_nothing_back(tmp_path, clock):
    session(tmp_path, first=1, updates=8)
    Events(tmp_path, 9, Said()).close()
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == list(range(1, 9))
    assert [step for step, _ in scalars(tmp_path, "epoch/number")] == [4, 8]


def test_images_texts_and_the_test_are_there_once(tmp_path, clock):
    """A finished run that is resumed writes its end again; one killed at its start, all of it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (30, 20), "red").save(tmp_path / "batch.png")
    for first in (0, 0, 9):
        with Events(tmp_path, first, Said()) as events:
            if not first:
                events.text("config", "a: 1", 0)
                events.image("batch", tmp_path / "batch.png", 0)
            events.image("mistakes", tmp_path / "mistakes.png", 9)  # there were none
            events.test(9, {"top1": 90.0})
    read = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    read.Reload()
    assert read.Tags()["images"] == ["batch"]
    (batch,) = read.Images("batch")
    assert (batch.width, batch.height, batch.step) == (30, 20, 0)
    config = read.Tensors("config/text_summary")[-1]  # TensorBoard takes no texts back
    assert config.tensor_proto.string_val == [b"a: 1"]
    assert scalars(tmp_path, "test/top1") == [(9, 90.0)]


def test_a_file_cut_off_in_writing_costs_one_event(tmp_path, clock):
    session(tmp_path, first=1, updates=3)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    session(tmp_path, first=4, updates=2)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in scalars(tmp_path, "train/grad_norm")] == [1, 2, 4, 5]


def test_events_of_an_earlier_version_come_first(tmp_path, clock):
    session(tmp_path, first=1, updates=4)
    (path,) = (tmp_path / "tensorboard").iterdir()
    path.rename(path.with_name("events.out.tfevents.000001"))  # as they were called
    session(tmp_path, first=3, updates=2)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4]


def test_a_full_disk_is_said_once_and_costs_the_run_nothing(tmp_path, clock):
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


def test_an_events_folder_that_cannot_be_made_is_said_once(tmp_path, clock):
    (tmp_path / "tensorboard").write_text("in the way")
    said = Said()
    session(tmp_path, first=1, updates=5, said=said)
    assert len(said) == 1


def test_other_processes_write_nothing(tmp_path, clock):
    events = Events(tmp_path, 1, Said(), enabled=False)
    events.update(1, 1.0, 0.1, 2.0, 1000.0)
    events.epoch(1, row(1))
    events.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_from_the_start_is_said_once(tmp_path, clock):
    said = Said()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    try:
        session(tmp_path, first=1, updates=3, said=said)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(said) == 1
    assert "File too large" in said[0]
