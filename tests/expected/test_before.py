"""Runs and results folders that earlier code wrote go on in today's; see `before/README.txt`.

What one machine computes another one computes to a few digits only: bits are compared where the
processor and the versions of libraries are those that the files were made with.
"""

import csv
import json
import shutil
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

import contests
import cvt
import speed_benches
from contests import TRAIN, FakeWork
from speed_benches import FakeSpeed

BEFORE = Path(__file__).parent / "before"
STORED = json.loads((BEFORE / "stored.json").read_text())
MEASURED = {"images_per_s", "seconds", "data_wait", "memory_mb"}


def machine() -> dict[str, str]:
    """The processor and the libraries that compute; on systems without /proc no processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    said = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    names = ("vendor_id", "cpu family", "model", "stepping")
    made = {"processor": " ".join(said.get(name, "").strip() for name in names)}
    return made | {name: version(name) for name in STORED["machine"] if name != "processor"}


IS_SAME = machine() == STORED["machine"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logits(folder: Path) -> torch.Tensor:
    model = cvt.load(folder).eval()
    assert list(model.record.class_names) == [str(digit) for digit in range(10)]
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return model(torch.randn(2, model.spec.in_chans, 16, 16, generator=generator))


@pytest.fixture
def stopped(tmp_path):
    """A run of four epochs, stopped by Ctrl-C after twelve of twenty updates of the third."""
    with tarfile.open(BEFORE / "run.tar.gz") as file:
        file.extractall(tmp_path / "runs", filter="data")
    return tmp_path / "runs" / "run"


def test_a_stopped_run_is_listed_and_its_weights_are_read(run, stopped):
    code, out, err = run("runs", stopped.parent, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert [said[name] for name in ("name", "state", "epochs", "epochs_done", "model")] == (
        ["run", "stopped", 4, 2, "cvt_nano_32"]
    )
    torch.testing.assert_close(logits(stopped), torch.tensor(STORED["stopped"]))
    assert logits(stopped / "last.safetensors").isfinite().all()
    code, out, err = run("show", stopped)
    assert (code, err) == (0, "")
    assert "Classes: 10: 0, 1, 2" in out


def test_a_stopped_run_goes_on_from_its_update(run, stopped):
    lines = (stopped / "metrics.csv").read_text().splitlines()
    # Other versions of libraries are refused, as they should be.
    code, out, err = run("train", "--resume", stopped, "--json", *["--force"] * (not IS_SAME))
    assert code == 0, err
    assert json.loads(out)["run"] == str(stopped)
    now = (stopped / "metrics.csv").read_text().splitlines()[:3]
    assert [line.removesuffix(",ended").removesuffix(",") for line in now] == lines
    made, whole = rows(stopped / "metrics.csv"), rows(BEFORE / "whole.csv")
    for name in whole[0].keys() - MEASURED if IS_SAME else {"epoch", "lr"}:
        assert [each[name] for each in made] == [each[name] for each in whole], name
    if IS_SAME:
        assert torch.equal(logits(stopped), torch.tensor(STORED["whole"]))
    assert json.loads(run("runs", stopped, "--json")[1])["state"] == "finished"


CONTEST = ("--data", "digits", "--no-keep-runs", "--image-size", "8",
           "--batch-size", "64", "--device", "cpu", "--num-workers", "0", "--json")  # fmt: skip
COMPARE = ("compare", "cvt_nano_32+depth=1", "vit_nano_32+depth=1", "--budget", "2epochs", *CONTEST)
ABLATE = ("ablate", "7", "--base", "cvt_nano_32+depth=1", "--budget", "1epoch", *CONTEST)


@pytest.fixture
def asked(monkeypatch):
    """What contests ask to be done from here on: pairs of a task and what it is told."""
    work = FakeWork()
    monkeypatch.setattr(contests.WORK, work)
    return work.asked


@pytest.fixture
def results(tmp_path):
    """`results("compare")`: a copy of a results folder, as if made with the libraries at hand."""

    def copy(name: str) -> Path:
        folder = Path(shutil.copytree(BEFORE / name, tmp_path / name))
        contest = yaml.safe_load((folder / "contest.yaml").read_text())
        for package in contest["software"]:
            contest["software"][package] = version(package) if package != "cvt" else cvt.__version__
        (folder / "contest.yaml").write_text(yaml.safe_dump(contest, sort_keys=False))
        return folder

    return copy


def test_a_finished_comparison_is_not_made_again(run, results, asked):
    folder = results("compare")
    before = rows(folder / "results.csv")
    code, out, err = run(*COMPARE, "--seeds", "2", "--out", folder)
    assert (code, err, asked) == (0, "", [])
    made = [each for standing in json.loads(out)["contenders"] for each in standing["runs"]]
    assert [(each["label"], each["seed"], each["top1"]) for each in made] == [
        (each["label"], int(each["seed"]), float(each["top1"])) for each in before
    ]
    assert rows(folder / "results.csv") == before


def test_a_comparison_gets_another_seed(run, results, asked):
    folder = results("compare")
    before = rows(folder / "results.csv")
    code, _, err = run(*COMPARE, "--seeds", "3", "--out", folder)
    assert (code, err) == (0, "")
    assert [(task, told["seed"]) for task, told in asked] == [(TRAIN, 2), (TRAIN, 2)]
    after = rows(folder / "results.csv")
    assert len(after) == 6
    assert [each for each in after if each["seed"] != "2"] == before


def test_a_finished_ablation_is_not_made_again(run, results, asked):
    folder = results("ablate")
    before = rows(folder / "ablation.csv")
    code, out, err = run(*ABLATE, "--seeds", "2", "--out", folder)
    assert (code, err, asked) == (0, "", [])
    made = [json.loads(line) for line in out.splitlines()]
    assert [(each["variant"], each["top1"]) for each in made] == [
        (each["variant"], float(each["top1"])) for each in before
    ]
    assert rows(folder / "ablation.csv") == before


def test_a_bench_that_is_half_done_goes_on(run, tmp_path, monkeypatch):
    """It was stopped between the two models of its second round, which is made anew."""
    folder = Path(shutil.copytree(BEFORE / "bench", tmp_path / "bench"))
    before = (folder / "measurements.csv").read_text().splitlines()
    work = FakeSpeed(rates={"hf/cvt_13:eager:float32": [40.0]})
    monkeypatch.setattr(speed_benches.WORK, work)
    command = ("bench", "cvt_nano_32", "hf/cvt_13", "--repeats", "3", "--out", folder, "--json")
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert (
        sorted(work.labels) == ["cvt_nano_32:eager:float32"] * 2 + ["hf/cvt_13:eager:float32"] * 2
    )
    after = (folder / "measurements.csv").read_text().splitlines()
    assert after[:3] == before[:3]
    assert len(after) == 7
    ours, theirs = json.loads(out)["rows"]
    assert [theirs[name] for name in ("rounds", "images_per_s", "images_per_s_max")] == [3, 40, 50]
    assert ours["rounds"] == 3
    work.asked.clear()
    assert run(*command)[0] == 0
    assert not work.asked
