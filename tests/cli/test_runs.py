import json

import numpy as np
import pytest
from PIL import Image

from cvt.training.config import save_config
from cvt.training.report import TrainResult, save_result
from cvt.training.run_folder import EpochRow, write_metrics
from trained import config_of


def make_run(path, top1, data="digits", **config):
    path.mkdir(parents=True)
    values = {"data": data, "model": "cvt_nano_32", "epochs": 30, **config}
    save_config(path / "config.yaml", config_of(**values))
    rows = [
        EpochRow(
            epoch=epoch, train_loss=1.0, val_loss=1.0, val_top1=top1 * epoch / 20, lr=0.1,
            images_per_s=1234.0, seconds=6.5, data_wait=0.0, memory_mb=64.0,
        )
        for epoch in range(1, 21)
    ]  # fmt: skip
    write_metrics(path, rows)


@pytest.fixture
def folder(tmp_path):
    """Two runs on digits, and one on pets."""
    make_run(tmp_path / "one", 80.0, seed=1)
    make_run(tmp_path / "two", 90.0, seed=2, mix={"mixup": 0.2})
    make_run(tmp_path / "three", 50.0, data="pets")
    return tmp_path


def test_runs_are_listed_and_compared_by_data_set(run, folder):
    code, out, err = run("runs", folder)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert lines[0] == ["digits"]
    assert lines[2][:6] == ["two", "cvt_nano_32", "-", "20/30", "90.00", "-"]
    assert lines[2][6:] == ["1,234", "2", "min", "10", "s", "stopped"]
    assert lines[3][0] == "one"
    assert lines[4] == ["Differs", "in", "seed", "mix.mixup"]
    assert lines[5] == ["two", "2", "0.2"]
    assert lines[6] == ["one", "1", "0"]
    assert lines[7] == ["pets"]
    assert lines[9][0] == "three"
    assert len(lines) == 10


def test_what_a_run_ended_by_is_listed(run, tmp_path):
    make_run(tmp_path / "one", 80.0, epochs=None, minutes=2.5)
    result = TrainResult(
        run=tmp_path / "one", data="digits", best_epoch=20, best_top1=80.0, best_loss=1.0,
        seconds=149.0, ended="minutes",
    )  # fmt: skip
    save_result(tmp_path / "one", result)
    out = run("runs", tmp_path)[1]
    assert " 20/2.5 min " in out
    assert " finished: minutes" in out


def test_many_differences_stand_below_each_other(run, folder):
    make_run(folder / "four", 10.0, data="pets", seed=3, epochs=5, batch_size=8, val_fraction=0.2)
    lines = [line.split() for line in run("runs", folder)[1].splitlines()]
    assert ["Differs", "in", "three", "four"] in lines
    assert ["batch_size", "64", "8"] in lines


def test_runs_for_machines(run, folder):
    code, out, _ = run("runs", folder, "--json", "--plot", folder / "runs.png")
    assert code == 0
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["two", "one", "three"]
    assert (folder / "runs.png").exists()


def test_runs_are_drawn(run, folder):
    plot = folder / "runs.png"
    code, out, _ = run("runs", folder, "--plot", plot)
    assert code == 0
    assert f"Validation curves: {plot}" in out
    with Image.open(plot) as image:
        assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("plot", ["/proc/none/runs.png", "runs.xyz"])
def test_runs_are_listed_whatever_becomes_of_their_plot(run, folder, monkeypatch, plot):
    monkeypatch.chdir(folder)
    code, out, err = run("runs", folder, "--plot", plot)
    assert (code, err.count("\n")) == (1, 1)
    assert "There is no plot of the runs" in err
    assert "90.00" in out


def test_names_and_data_of_strangers_forge_no_line(run, tmp_path):
    make_run(tmp_path / "a\n90.00  best\x1b[2J", 50.0, data="x\nRun  Model\x1b]0;t\x07")
    code, out, _ = run("runs", tmp_path)
    assert code == 0
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if line.startswith(("90.00", "Run  Model\\"))]


def test_broken_runs_are_named_skipped_and_counted(run, folder):
    (folder / "one" / "config.yaml").write_text("[1,")
    (folder / "two" / "metrics.csv").write_text("epoch\nx\n")
    code, out, err = run("runs", folder)
    assert code == 1
    assert "three" in out
    first, second, third = err.splitlines()
    assert first.startswith(f"cvt: skipped: {folder}/one: ")
    assert second.startswith(f"cvt: skipped: {folder}/two: ")
    assert third == "cvt: 2 of 3 runs skipped."


def test_no_runs_are_a_mistake(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("runs")
    assert (code, out) == (2, "")
    assert (
        err == "cvt: There is no folder runs, expected one with runs; make a run by `cvt train`.\n"
    )
