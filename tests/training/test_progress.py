import pytest

from cvt.training.run_folder import Progress


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
    assert Progress.from_dict(progress.to_dict()) == progress
    assert progress.to_dict()["wait_seconds"] == 0.25


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
