"""Two processes that share the images measure what one does, and only one of them speaks."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
from PIL import Image

import cvt
from cvt import evaluate, probe
from cvt.cli import main
from cvt.runtime import join_world
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record
from processes import in_processes
from randomise import randomise


@pytest.fixture
def images(tmp_path):
    """Three classes of seven noisy images, one of which is broken: 20 for two processes."""
    random = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(7):
            pixels = random.integers(0, 150, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += random.integers(20, 100, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "data" / "green" / "3.png").write_bytes(b"")
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path):
    spec = cvt.create_model("cvt_nano_32", num_classes=3, depth=1, embed_dim=8, num_heads=1).spec
    record = Record(
        model="cvt_nano_32",
        spec=spec,
        preprocessing=Preprocessing(input_size=(3, 16, 16), crop_pct=1.0),
        class_names=("blue", "green", "red"),
    )
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, randomise(cvt.Backbone(spec)).state_dict(), record)
    return path


def verbs(checkpoint, images, out):
    pace = ["--batch-size", "4", "--device", "cpu", "--json"]
    checkpoint, images = str(checkpoint), str(images)
    where = ["--confusion", str(out / "confusion.png")]
    return [
        ["eval", checkpoint, images, "--split", "all", *where, *pace],
        ["probe", checkpoint, images, "-k", "3", *pace],
    ]


def call_all(calls, checkpoint, images):
    """What verbs and functions that share one process group print and return."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), join_world("cpu"):
        codes = [main(call) for call in calls]
        measured = evaluate(checkpoint, str(images), split="all", batch_size=4, device="cpu")
        probed = probe(checkpoint, str(images), method="knn", k=3, device="cpu")
    return (measured.to_dict(), probed.to_dict()), (codes, out.getvalue(), err.getvalue())


def test_two_processes_measure_what_one_does(checkpoint, images, tmp_path, capfd):
    calls = verbs(checkpoint, images, tmp_path / "alone")
    assert [main(call) for call in calls] == [1, 1]  # an image was skipped
    alone = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    calls = verbs(checkpoint, images, tmp_path / "two")
    (first, said), (second, quiet) = in_processes(2, call_all, calls, checkpoint, images)
    assert first == second  # whoever calls the functions gets the same everywhere
    assert quiet == ([0, 0], "", "")
    codes, out, err = said
    assert (codes, err) == ([1, 1], "")
    measured, probed = (json.loads(line) for line in out.splitlines())
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {"confusion.png", "reliability.png"}
    for name in ("top1", "num_images", "per_class", "bad"):
        assert measured[name] == alone[0][name], name
    assert measured["num_images"] == 20
    for name in ("loss", "ece"):
        assert measured[name] == pytest.approx(alone[0][name], abs=1e-6)
    assert probed == alone[1]
    assert probed["num_train"] + probed["scores"][0]["num_images"] == 20
