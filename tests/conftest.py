"""What tests of every room share."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from PIL import Image

import cvt
from cvt.weights.checkpoint import save_checkpoint
from cvt.weights.record import Preprocessing, Record
from randomise import randomise as randomise_model

# Networks this small are not worth a second thread, and on busy cores torch's threads wait for
# each other far longer than they work.
torch.set_num_threads(1)

# How long an example takes says nothing on a busy machine.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox")


@pytest.fixture(autouse=True)
def on_a_plain_cpu(monkeypatch):
    """Training in the arithmetic of the processors without bf16, whichever one this is."""
    monkeypatch.setattr("cvt.training.defaults.may_gain_from_bf16", lambda device: False)


@pytest.fixture
def sheets():
    """Lets runs draw their first batch, their mistakes and the confusion matrix."""


@pytest.fixture(autouse=True)
def no_sheets(request, monkeypatch):
    """Runs do not, as it takes a second, where a test does not ask for `sheets`."""
    if "sheets" not in request.fixturenames:
        for name in ("save_batch", "save_mistakes", "save_confusion"):
            monkeypatch.setattr(f"cvt.training.loop.{name}", lambda *told: None)


@pytest.fixture
def randomise():
    """`randomise(model, seed=0)`: fills all weights and statistics with seeded random values."""
    return randomise_model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A small untrained network with six classes, as a file that describes itself."""
    spec = cvt.create_model("cvt_nano_32", num_classes=6, depth=1).spec
    model = randomise_model(cvt.Backbone(spec))
    record = Record(
        model="cvt_nano_32",
        spec=spec,
        preprocessing=Preprocessing(input_size=(3, 32, 32), crop_pct=1.0),
        class_names=CLASSES,
        metrics={"top1": 12.5},
        licence="Apache-2.0",
        source="a test",
    )
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, model.state_dict(), record)
    return path


@pytest.fixture
def photos(tmp_path):
    """Four readable images of different sizes, shapes and modes, in nested folders."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    Image.effect_noise((40, 30), 80).convert("RGB").save(folder / "a.jpg")
    Image.effect_noise((30, 64), 80).save(folder / "b.png")
    Image.effect_noise((33, 33), 80).convert("RGBA").save(folder / "more" / "c.webp")
    Image.effect_noise((90, 20), 80).convert("CMYK").save(folder / "more" / "d.jpeg")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "b.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def undrawn():
    """Plots are files without content: to draw one takes half a second."""
    with patch("matplotlib.figure.Figure.savefig"):
        yield
