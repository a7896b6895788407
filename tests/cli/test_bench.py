"""`cvt bench`: its mistakes, and the whole way once, in processes of its own."""

import json
import sys
from dataclasses import asdict

import pytest

import speed_benches
from cvt.bench.processes import Failed, do_here
from cvt.bench.speed import Measurement
from cvt.bench.speed.bench import MEASURE
from cvt.bench.speed.measure import measure
from cvt.errors import UserError
from processors import pretend_cpu

QUICK = ("--image-size", "32", "--batch-size", "2", "--device", "cpu", "--threads", "1",
         "--repeats", "1", "--seconds", "0.01")  # fmt: skip


GREEDY = """
import torch
from torch import nn

class Greedy(nn.Linear):
    def forward(self, x):
        return torch.empty(2**50) + x

def big():
    return Greedy(3, 3)
"""
FILES = {"bench.yaml", "measurements.csv", "table.csv", "table.md", "speed.png"}


def test_the_whole_way(run, tmp_path, monkeypatch):
    """In processes of their own."""
    monkeypatch.chdir(tmp_path)
    code, text, err = run("bench", "cvt_nano_32", "--out", "out", *QUICK, "--json")
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES
    plain = json.loads(text)
    assert plain["command"].startswith("cvt bench cvt_nano_32 --form eager --dtype float32")
    assert plain["rows"][0]["images_per_s"] > 0
    assert 0 < plain["rows"][0]["of_peak"] < 1.5


KILLED = """
class Killed(nn.Linear):
    def forward(self, x):
        if x.device.type != "meta":
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

def killed():
    return Killed(3, 3)
"""


@pytest.mark.slow
def test_processes_that_run_out_of_memory_that_are_killed_and_that_compile(
    run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(GREEDY + KILLED)
    names = ("cvt_nano_32:deploy-compile", "my_net:big", "my_net:killed")
    code, text, err = run("bench", *names, *QUICK, "--out", "out")
    assert (code, err) == (1, "")
    said = {
        name: next(line for line in text.splitlines() if f"] {name}:" in line) for name in names
    }
    assert " images/s, " in said["cvt_nano_32:deploy-compile"]
    assert "failed: Out of memory: " in said["my_net:big"]
    assert "ended by signal 9 (SIGKILL), as systems do when memory" in said["my_net:killed"]
    assert "What failed stays so until the command is given --retry." in text


def test_rows_that_cannot_run_say_so_and_the_rest_goes_on(run, tmp_path, monkeypatch, in_process):
    pretend_cpu(monkeypatch, "avx512_f")
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "my_net.py").write_text(GREEDY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    quick = ["cpu,xpu:7" if each == "cpu" else each for each in QUICK]
    names = ("cvt_nano_32", "cvt_nano_32:bf16", "cvt_nano_32:openvino", "my_net:big")
    arguments = ("bench", *names, *quick, "--out", "out")
    code, text, err = run(*arguments)
    sys.modules.pop("my_net", None)
    assert (code, err) == (1, "")
    lines = text.splitlines()
    for who, what in (
        ("cvt_nano_32:eager:float32, inference, batch 2, 32x32 pixels, cpu", " images/s"),
        ("cvt_nano_32:eager:bf16, inference, batch 2, 32x32 pixels, cpu", "no instructions"),
        ("cvt_nano_32:openvino:float32, inference, batch 2, 32x32 pixels, cpu", "pip install"),
        ("my_net:big:eager:float32, inference, batch 2, 32x32 pixels, cpu", "Out of memory: "),
        ("cvt_nano_32:eager:float32, inference, batch 2, 32x32 pixels, xpu:7", "machine lacks"),
    ):
        (line,) = [line for line in lines if line.startswith("[") and who in line]
        assert what in line
    assert "Failed: everything (inference, batch 2, 32x32 pixels, xpu:7): Got device" in text
    assert "Written to out: measurements.csv, table.csv, table.md, speed.png" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} >= FILES
    code, text, err = run(*arguments)
    assert code == 1
    assert "Going on with" not in text


@pytest.fixture
def in_process(monkeypatch):
    """Work is done in this process, and the peak is none that is measured."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")

    def work(task, plain, stop):
        try:
            if task == MEASURE:
                known = Measurement(**plain.pop("measurement"))
                return asdict(measure(known, **plain, peak=lambda device, dtype: 100.0))
            return do_here(task, plain)
        except UserError as error:
            raise Failed(str(error)) from error

    monkeypatch.setattr(speed_benches.WORK, work)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no model",)),
        (("cvt_14",), ("cvt_14", "cvt_13")),
        (("hf/cvt_14",), ("hf/cvt_14", "hf/cvt_13")),
        (("timm/resnet_18",), ("timm/resnet_18", "timm/resnet18")),
        (("no_module_here:make",), ("no_module_here", "ModuleNotFoundError")),
        (("os:getcwd",), ("returned str", "torch.nn.Module")),
        (("cvt_13", "--form", "fast"), ("form 'fast'", "eager")),
        (("cvt_nano_32:deploy-without-pakc",), ("'pakc'", "'pack'")),
        (("demo:openvino:int8",), ("without images", "--calibration")),
        (("cvt_13", "--dtype", "int8", "--calibration", "."), ("eager:int8", "NAME:FORM:DTYPE")),
        (("demo:openvino:int8", "--calibration", "lost"), ("There is no data at",)),
        (("cvt_13:depoly",), ("depoly", "deploy")),
        (("cvt_13", "--dtype", "float23"), ("float32",)),
        (("cvt_13", "--batch-size", "0"), ("batch size 0",)),
        (("cvt_13", "--batch-size", "1,many"), ("--batch-size", "whole numbers")),
        (("cvt_13", "--task", ","), ("--task", "names")),
        (("cvt_13", "--device", "xpu:9"), ("xpu:9", "cpu")),
        (
            ("cvt_13", "--form", "deploy", "--task", "training"),
            ("training", "eager, autocast, compile"),
        ),
    ],
)
def test_mistakes(run, in_process, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("bench", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(speed_benches.WORK, speed_benches.FakeSpeed(stop_at=2))
    code, _, err = run("bench", "cvt_13", "--repeats", "3", "--out", tmp_path / "out")
    assert code == 130
    assert err == "cvt: Stopped after 1 of 3 measurements; the same command goes on from there.\n"
