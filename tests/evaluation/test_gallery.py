"""Sheets of images: what stands under each, in which order, and that any name can."""

import csv

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from cvt.data import ArraySet
from cvt.data.image import BadImage
from cvt.evaluation import Guesses, Logits, Mistakes, list_mistakes, save_batch, save_mistakes
from cvt.weights.record import Preprocessing

NAMES = ("cat", "a dog of a breed with a name that is far too long for its place", "$x$\n\udcff")
PREPARED = Preprocessing(input_size=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))


@pytest.fixture
def drawn(monkeypatch):
    """The texts of all sheets that are drawn, and how far right each of them goes, in pixels."""
    texts = []
    saved = Figure.savefig

    def keep(figure, *args, **options):
        texts.extend((each.get_text(), each.get_window_extent()) for each in figure.texts)
        saved(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return texts


def grey(level, side=8):
    return np.full((side, side, 3), level, np.uint8)


@pytest.fixture
def images():
    shades = np.stack([grey(40 * number) for number in range(5)])
    return ArraySet(shades, [0, 0, 1, 1, 2], NAMES, "a/b$c$ set")


GUESSES = Guesses(
    classes=np.array([0, 1, 1, 0, 0]),
    confidences=np.array([0.9, 0.6, 0.8, 0.999, 0.6]),
    labels=np.array([0, 0, 1, 1, 2]),
    indices=np.arange(5),
)


def test_logits_name_the_most_likely_class():
    logits = torch.randn(9000, 3)
    guesses = Logits(logits, torch.zeros(9000, dtype=torch.int64)).guesses()
    assert (guesses.classes == logits.argmax(1).numpy()).all()
    assert guesses.confidences == pytest.approx(logits.double().softmax(1).amax(1).numpy())
    assert (guesses.indices == np.arange(9000)).all()


def test_mistakes_come_the_most_confident_first(images, tmp_path, drawn):
    mistakes = [Mistakes.of("validation", images, GUESSES)]
    list_mistakes(tmp_path / "mistakes.csv", mistakes)
    with open(tmp_path / "mistakes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"a/b$c$ set image {place}" for place in (3, 1, 4)]
    assert [row["probability"] for row in rows] == ["0.999", "0.6", "0.6"]
    assert (rows[0]["said"], rows[0]["true"]) == ("cat", NAMES[1])
    save_mistakes(tmp_path / "mistakes.png", mistakes)
    texts = [text for text, _ in drawn]
    assert texts[0] == "3 of 5 validation images are wrong; all of them:"
    assert texts[1] == "said >99 % cat"
    assert texts[3] == "b$c$ set image 3"
    assert texts[8] == r"true $x$\n\xff"
    with Image.open(tmp_path / "mistakes.png") as sheet:
        assert all(box.x1 <= sheet.width for _, box in drawn)
        assert all(box.y0 >= 0 and box.y1 <= sheet.height for _, box in drawn)


def test_an_image_that_no_longer_opens_is_left_out(images, tmp_path, drawn, monkeypatch):
    opened = ArraySet.image

    def image(self, index):
        if index == 3:
            raise BadImage("gone")
        return opened(self, index)

    monkeypatch.setattr(ArraySet, "image", image)
    save_mistakes(tmp_path / "mistakes.png", [Mistakes.of("test", images, GUESSES)])
    assert drawn[0][0] == "3 of 5 test images are wrong; the most confident:"
    assert len(drawn) == 1 + 2 * 3


def test_of_no_mistake_there_is_no_sheet(images, tmp_path):
    right = Guesses(
        classes=GUESSES.labels, confidences=np.ones(5), labels=GUESSES.labels, indices=np.arange(5)
    )
    save_mistakes(tmp_path / "mistakes.png", [Mistakes.of("test", images, right)])
    list_mistakes(tmp_path / "mistakes.csv", [Mistakes.of("test", images, right)])
    assert [each.name for each in tmp_path.iterdir()] == ["mistakes.csv"]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_looks_as_before_it_was_normalised(channels, tmp_path):
    prepared = PREPARED.with_channels(channels)
    mean, std = (torch.tensor(each)[:, None, None] for each in (prepared.mean, prepared.std))
    images = (torch.full((2, channels, 8, 8), 100 / 255) - mean) / std
    save_batch(tmp_path / "batch.png", images, torch.tensor([0, 1]), NAMES, prepared)
    with Image.open(tmp_path / "batch.png") as sheet:
        assert max(sheet.convert("RGB").getcolors(1 << 24), key=lambda each: each[0] * (
            each[1] not in ((255,) * 3,)))[1] == (100, 100, 100)  # fmt: skip


def test_mixed_images_have_two_labels_with_their_shares(tmp_path, drawn):
    targets = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    save_batch(tmp_path / "batch.png", torch.zeros(2, 3, 8, 8), targets, NAMES, PREPARED, ["note"])
    texts = [text for text, _ in drawn]
    assert texts[:2] == ["What the network sees: 2 images of the first batch, 8x8", "note"]
    assert texts[2:4] == [r"75 % $x$\n\xff", "25 % cat"]
    assert texts[4].startswith("a dog of a")
    assert texts[4].endswith("…")
    assert drawn[4][1].width <= 216
