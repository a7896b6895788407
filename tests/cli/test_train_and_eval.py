"""The whole way through the command line, on two classes of tiny images."""

import json
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from shades import write_shades

TINY = ("--model", "cvt_nano_32", "--model-args.depth", "1", "--image-size", "8")
QUICK = (*TINY, "--batch-size", "8", "--num-workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twenty images of 12x12 pixels to learn from: dark ones and bright ones."""
    return write_shades(tmp_path_factory.mktemp("images"))


@pytest.fixture
def trained(run, images, tmp_path):
    """A run of two epochs, and what it printed."""
    code, out, err = run("train", images, *QUICK, "--epochs", "2", "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    return tmp_path / "run", out


def test_train_says_what_it_does_what_it_wrote_and_what_to_type_next(trained, images):
    folder, out = trained
    assert "18 training and 2 validation images" in out
    assert "epoch 2/2" in out
    assert f"cvt eval {folder} {images}" in out
    files = {path.name for path in folder.iterdir()}
    assert files == {
        ".lock",
        "README.md",
        "best.safetensors",
        "checkpoints",
        "config.yaml",
        "curves.png",
        "last.safetensors",
        "metrics.csv",
        "mistakes.csv",
        "result.json",
        "tensorboard",
    }


def test_what_train_wrote_evaluates_predicts_and_converts(run, trained, images, tmp_path):
    folder, _ = trained
    plot = tmp_path / "confusion.png"
    code, out, _ = run("eval", folder, images, "--split", "all", "--confusion", plot)
    assert code == 0
    assert "20 images: top-1" in out
    with Image.open(plot) as image:
        assert image.width > 300
    code, out, _ = run("eval", folder, images, "--confusion", plot, "--json")
    figures = json.loads(out)
    assert figures["num_images"] == 2
    assert {each["name"] for each in figures["per_class"]} == {"bright", "dark"}
    assert "top5" not in figures
    code, out, _ = run("predict", folder, images / "dark", "--json")
    assert {label["name"] for label in json.loads(out.splitlines()[0])["labels"]} == {
        "bright",
        "dark",
    }
    assert run("convert", folder, tmp_path / "timm", "--to", "timm")[0] == 0
    assert run("predict", tmp_path / "timm", images / "dark", "--json")[1] == out


def test_convert_says_what_gets_lost(run, checkpoint, tmp_path):
    code, _, err = run("convert", checkpoint, tmp_path / "hf")
    assert code == 2
    assert "cannot express this model" in err
    code, out, _ = run("convert", checkpoint, tmp_path / "copy.safetensors")
    assert (code, out) == (0, f"Wrote {tmp_path}/copy.safetensors.\n")


def test_train_for_machines_is_one_object(run, images, tmp_path):
    out = run("train", images, *QUICK, "--epochs", "1", "--out", tmp_path / "run", "--json")[1]
    assert json.loads(out)["best_epoch"] == 1


def test_a_broken_image_is_named_skipped_and_counted(run, images, tmp_path):
    import shutil

    data = shutil.copytree(images, tmp_path / "data")
    (data / "dark" / "zero.png").touch()
    code, out, _ = run("train", data, *QUICK, "--epochs", "1", "--out", tmp_path / "run")
    assert code == 1
    assert "skipped: " in out
    assert "zero.png" in out
    assert "1 images could not be read" in out
    code, _, err = run("eval", tmp_path / "run", data, "--split", "all", "--confusion",
                       tmp_path / "c.png")  # fmt: skip
    assert code == 1
    assert "1 of 21 images skipped" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "torch/cifra10"), ("torch/cifra10", "torch/cifar10")),
        (("train", "--model", "cvt_nan_32"), ("cvt_nan_32", "cvt_nano_32")),
        (("train", "--model-args.kv-strid", "1"), ("kv_strid", "kv_stride")),
        (("train", "--resume", "nowhere"), ("nowhere",)),
        (("train", "--weights", "microsoft/cvt-13"), ("microsoft/cvt-13", "out of reach")),
        (("eval", "cvt_13.msft_in1k", "digits"), ("microsoft/cvt-13", "out of reach")),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("cvt.weights.source._reachable", lambda: False)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words)


def test_ctrl_c_saves_and_exits_with_130(images, tmp_path):
    code = "import sys; from cvt.cli import main; sys.exit(main())"
    arguments = ["train", str(images), *QUICK, "--epochs", "100000"]
    arguments += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"cvt train --resume {tmp_path}/run" in err
    assert err.count("\n") == 1
    assert any((tmp_path / "run" / "checkpoints").iterdir())
