"""`cvt probe`, on two classes of tiny pictures."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for name, low in (("bright", 128), ("dark", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(low, low + 128, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_bright_and_dark_are_told_apart_without_training(run, checkpoint, pictures):
    code, out, err = run("probe", checkpoint, pictures)
    assert (code, err) == (0, "")
    table = [line.split() for line in out.splitlines()]
    assert table[0][:3] == ["Method", "Split", "Images"]
    assert table[1] == ["k-NN", "val", "2", "100.00", "-", "k", "18"]
    assert table[2][:5] == ["linear", "val", "2", "100.00", "-"]
    assert "128 frozen features, learned from 18 of 20 images; val is cut out of the" in out


def test_json_and_skipped_pictures(run, checkpoint, pictures):
    (pictures / "dark" / "zero.png").touch()
    flags = ("--method", "knn", "-k", "3")
    code, out, _ = run("probe", checkpoint, pictures, *flags, "--json")
    figures = json.loads(out)
    (score,) = figures["scores"]
    assert (code, score["method"], score["setting"]) == (1, "knn", {"k": 3})
    assert len(figures["bad"]) == 1
    assert "zero.png is empty" in figures["bad"][0]
    code, _, err = run("probe", checkpoint, pictures, *flags)
    assert code == 1
    assert "1 of 21 images skipped." in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("-k", "0"), "Got k 0, expected 1 or more"), (("--method", "svm"), "svm")],
)
def test_mistakes(run, checkpoint, pictures, flags, words):
    code, out, err = run("probe", checkpoint, pictures, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
