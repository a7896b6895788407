import subprocess
import sys
from dataclasses import asdict

import pytest

from cvt.errors import UserError
from cvt.training.config import TrainConfig
from cvt.training.run_folder import (
    METRICS_FILE,
    EpochRow,
    held,
    is_held,
    make_run_folder,
    read_metrics,
    write_metrics,
)

NAMES = ["x" * 250, "猫" * 200, ".hidden", "caf\udce9", "a b\n$|", ".."]


@pytest.mark.parametrize("data", NAMES)
def test_any_data_give_a_run_a_name(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        run = make_run_folder(TrainConfig(data=data, model="cvt_nano_32"))
        assert run.is_dir()
        assert not run.name.startswith(".")
        assert run.name.endswith(f"-cvt_nano_32-{number}")
        assert len(run.name.encode()) < 256


@pytest.mark.parametrize("out", [None, "runs/a", "y" * 300])
def test_where_no_folder_can_be_is_a_sentence(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="Cannot make the folder"):
        make_run_folder(TrainConfig(data="d", model="m", out=out))


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
    write_metrics(tmp_path, HISTORY)
    for read, written in zip(read_metrics(tmp_path), HISTORY, strict=True):
        assert asdict(read) == pytest.approx(asdict(written), rel=1e-5)
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
