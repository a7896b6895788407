"""`cvt compare`: its mistakes, and the whole way once."""

import json

import pytest

from contests import WORK
from cvt.bench.processes import Stopped, do_here
from shades import write_shades

QUICK = ("--image-size", "8", "--batch-size", "8", "--device", "cpu", "--num-workers", "0")


@pytest.fixture
def images(tmp_path):
    """Two classes of ten tiny images each, to learn from and to choose by."""
    return write_shades(tmp_path / "images")


@pytest.mark.parametrize("processes", ["none", pytest.param("own", marks=pytest.mark.slow)])
def test_the_whole_way(run, images, tmp_path, monkeypatch, processes):
    """In processes of their own, each of which imports torch, or else in this one."""
    if processes == "none":
        monkeypatch.setattr(WORK, lambda task, plain, must_stop: do_here(task, plain))
    out = tmp_path / "out"
    name = "cvt_nano_32+depth=1"
    arguments = ("compare", name, "--data", images, "--budget", "1epoch", "--seeds", "1", *QUICK,
                 "--out", out)  # fmt: skip
    code, text, err = run(*arguments)
    assert (code, err) == (0, "")
    assert f"[1/1] {name}, seed 0: validation top-1" in text
    assert f"Written to {out}" in text
    words = " ".join(text.split())
    assert "Top-5 is left out" in words
    assert "has 2 classes" in words
    files = {path.name for path in out.iterdir()}
    assert files >= {"contest.yaml", "results.csv", "table.md", "accuracy.png", "measured.json"}
    assert json.loads((out / "runs" / f"{name}-seed0" / "result.json").read_text())
    code, text, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    plain = json.loads(text)["contenders"][0]
    assert plain["label"] == name
    assert plain["runs"][0]["updates"] == 2
    assert plain["inference_images_per_s"] > 0
    assert plain["memory_mb"] > 50
    assert "top5" not in plain


def test_without_data_it_prints_the_facts(run):
    code, text, err = run("compare", "cvt_13", "cvt_nano_32")
    assert (code, err) == (0, "")
    assert "19,997,480" in text
    code, text, err = run("compare", "cvt_13", "--json")
    assert json.loads(text)["num_params"] == 19_997_480


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no model",)),
        (("cvt_14",), ("cvt_14", "cvt_13")),
        (("cvt_13", "--budget", "3epochs"), ("--data",)),
        (("cvt_13", "--data", "digits"), ("--budget",)),
        (("cvt_13", "--data", "digits", "--budget", "0epochs"), ("more than zero",)),
        (("cvt_13", "--data", "digits", "--budget", "3 weeks"), ("3 weeks", "10minutes")),
        (("cvt_13", "--data", "digits", "--budget", "3epochs", "--epochs", "3"), ("--budget",)),
        (("cvt_13", "--data", "digits", "--budget", "3epochs", "--seed", "3"), ("--seeds",)),
        (("cvt_13", "--data", "digits", "--budget", "3epochs", "--model", "a"), ("NAMES",)),
        (("cvt_13", "--data", "digits", "--budget", "3epochs", "--seeds", "0"), ("seeds 0",)),
        (("cvt_12", "--data", "digits", "--budget", "3epochs"), ("cvt_12", "cvt_13")),
        (("cvt_13+a", "--data", "digits", "--budget", "3epochs"), ("FIELD=VALUE",)),
        (("cvt_13", "cvt_13", "--data", "digits", "--budget", "1epoch"), ("two contenders",)),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_how_to_go_on(run, tmp_path, monkeypatch):
    def stopped(task, plain, must_stop):
        raise Stopped

    monkeypatch.setattr(WORK, stopped)
    code, _, err = run("compare", "cvt_nano_32", "--data", "digits", "--budget", "1epoch",
                         "--out", tmp_path / "out")  # fmt: skip
    assert code == 130
    assert err == "cvt: Stopped after 0 of 3 runs; the same command goes on from there.\n"
