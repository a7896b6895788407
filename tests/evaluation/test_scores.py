import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from cvt.errors import UserError
from cvt.evaluation import Logits, reliability, save_confusion, save_reliability, summarise

LOGITS = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [9, 0, 0]])
LABELS = torch.tensor([0, 0, 1, 1])


def test_figures_of_a_small_case():
    evaluation = summarise(Logits(LOGITS, LABELS, ("x.png is empty",)), ("a", "b", "c"))
    assert evaluation.top1 == 75
    assert evaluation.top5 is None
    assert evaluation.num_images == 4
    assert evaluation.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    scores = [(each.accuracy, each.precision) for each in evaluation.per_class]
    assert scores == [(100, pytest.approx(200 / 3)), (50, 100), (None, None)]
    confidence = torch.tensor([9.0, 0, 0]).softmax(0)[0].item()
    assert evaluation.ece == pytest.approx(confidence - 0.75, abs=1e-6)


def test_the_confusion_is_sklearns():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 7, generator=generator)
    labels = torch.randint(6, (300,), generator=generator)  # the last class has no images
    ours = summarise(Logits(logits, labels, (), torch.arange(300)), tuple("abcdefg")).confusion
    theirs = metrics.confusion_matrix(labels, logits.argmax(dim=1), labels=range(7))
    assert ours.dtype == np.int64
    assert (ours == theirs).all()


def test_plain_data_goes_to_json_without_what_does_not_exist():
    plain = summarise(Logits(LOGITS, LABELS), ("a", "b", "c")).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert "top5" not in plain
    assert plain["per_class"][2] == {"name": "c", "num_images": 0}


def test_top5_says_nothing_of_five_classes():
    five = Logits(torch.eye(5), torch.arange(5))
    assert summarise(five, tuple("abcde")).top5 is None
    answers = Logits(torch.eye(6), torch.tensor([0, 1, 2, 3, 4, 4]))
    assert summarise(answers, tuple("abcdef")).top5 == pytest.approx(100.0)
    assert summarise(answers, tuple("abcdef")).top1 == pytest.approx(500 / 6)


@pytest.mark.parametrize("count", [2, 10, 40, 1000])
def test_the_confusion_is_a_plot_at_any_size(count, tmp_path):
    confusion = np.diag(np.full(count, 3)) + np.eye(count, k=1, dtype=int)
    path = tmp_path / "confusion.png"
    save_confusion(path, confusion, [f"class number {each}" for each in range(count)])
    with Image.open(path) as image:
        assert 600 < min(image.size) <= max(image.size) < 3000
        assert np.asarray(image.convert("L")).min() < 100


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    kept, saved = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **o: (kept.append(figure), saved(figure, *a, **o))
    )
    return kept


def test_the_confusion_is_in_percent_of_counted_rows(figures, tmp_path):
    confusion = np.array([[13, 7, 0], [0, 0, 0], [1, 0, 399]])
    save_confusion(tmp_path / "confusion.png", confusion, ["a", "$b$", "c"], "test")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "a  (20)", "$b$  (0)", "c  (400)"
    ]  # fmt: skip
    cells = {each.get_position(): each.get_text() for each in axes.texts}
    assert cells == {(0, 0): "65", (1, 0): "35", (0, 2): "<1", (2, 2): "100"}
    assert figures[0].get_suptitle() == "Confusion of 3 classes, 420 test images"
    assert "blue: right (98.1% in all)" in axes.get_title()


def test_shares_of_a_third_and_of_a_half_look_different(figures, tmp_path):
    confusion = np.array([[50, 35, 15], [35, 50, 15], [0, 65, 35]])
    save_confusion(tmp_path / "confusion.png", confusion, list("abc"))
    right, wrong = figures[0].axes[0].images
    colours = {
        (name, share): np.array(image.cmap(image.norm(share)))[:3]
        for name, image in (("right", right), ("wrong", wrong))
        for share in (35, 50)
    }
    for name in ("right", "wrong"):
        assert np.abs(colours[name, 35] - colours[name, 50]).sum() > 0.2
    assert colours["right", 50][2] > colours["right", 50][0]  # blue
    assert colours["wrong", 50][0] > colours["wrong", 50][2]  # orange


def test_of_many_classes_the_most_frequent_confusions_are_named(figures, tmp_path):
    confusion = 5 * np.eye(200, dtype=int)
    confusion[7, 9], confusion[3, 1] = 4, 2
    save_confusion(tmp_path / "c.png", confusion, [f"kind {each}" for each in range(200)])
    (text,) = [each.get_text() for axes in figures[0].axes for each in axes.texts]
    lines = text.splitlines()
    assert lines[0].startswith("200 names have no room there; the most frequent of 2 confusions")
    assert [line.strip() for line in lines[1:]] == [
        "4 of 9  kind 7 → kind 9",
        "2 of 7  kind 3 → kind 1",
    ]


def test_bins_of_few_images_fade_and_all_are_counted(figures, tmp_path):
    confidences = np.repeat([0.3, 0.9], [2, 1200])
    save_reliability(tmp_path / "r.png", reliability(confidences, np.ones(1202)))
    upper, lower = figures[0].axes
    few, many = (bar.get_facecolor()[3] for bar in upper.containers[0])
    assert few < 0.3
    assert many == 1
    assert {each.get_text() for each in lower.texts} == {"", "2", "1,200"}
    legend = [each.get_text() for each in upper.get_legend().get_texts()]
    assert "faded: fewer than 30 images" in legend


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        save_confusion(tmp_path / "file" / "confusion.png", np.eye(2), ["a", "b"])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 200),
    num_classes=st.integers(2, 20),
    sharpness=st.floats(0.1, 4),
)
def test_equals_torchmetrics(seed, count, num_classes, sharpness):
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_classes, generator=generator, dtype=torch.float64)
    probabilities = (sharpness * logits).softmax(dim=1)
    labels = torch.randint(num_classes, (count,), generator=generator)
    confidences, guesses = probabilities.max(dim=1)
    assume(confidences.max() < 1 - 1e-6)  # torchmetrics gives exactly 1 a sixteenth bin
    ours = reliability(confidences.numpy(), (guesses == labels).numpy()).ece
    theirs = metrics.multiclass_calibration_error(
        probabilities, labels, num_classes, n_bins=15, norm="l1"
    )
    assert ours == pytest.approx(theirs.item(), abs=1e-6)


def test_by_hand():
    confidences = np.array([1.0, 1.0, 0.5, 0.5])
    assert reliability(confidences, np.array([1, 1, 1, 0])).ece == 0
    assert reliability(confidences, np.array([1, 0, 0, 0])).ece == 0.5


def test_bins_by_hand():
    # Thirds of 0..1: 0.1 and 0.2; none; 0.7, 0.9 and, at the end, 1.
    bins = reliability(np.array([0.1, 0.7, 0.2, 1, 0.9]), np.array([1, 1, 0, 0, 1]), num_bins=3)
    assert bins.counts.tolist() == [2, 0, 3]
    assert bins.edges.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert bins.accuracy == pytest.approx([1 / 2, np.nan, 2 / 3], nan_ok=True)
    assert bins.confidence == pytest.approx([0.15, np.nan, 2.6 / 3], nan_ok=True)
    assert bins.ece == pytest.approx((2 * 0.35 + 3 * 0.2) / 5)
    assert bins.to_dict() == [
        {"from": 0, "to": 0.333333, "num_images": 2, "confidence": pytest.approx(0.15),
         "accuracy": 0.5},
        {"from": 0.666667, "to": 1, "num_images": 3, "confidence": pytest.approx(2.6 / 3),
         "accuracy": pytest.approx(2 / 3)},
    ]  # fmt: skip


@pytest.mark.parametrize("count", [40, 500])
def test_the_plot_shows_the_direction_of_the_gap(count, tmp_path):
    """Red is where answers are surer than right, yellow where it is the other way round."""
    colours = {}
    for name, is_right in (("sure", np.zeros(count)), ("modest", np.ones(count))):
        path = tmp_path / f"{name}.png"
        save_reliability(path, reliability(np.full(count, 0.5), is_right))
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert min(pixels.shape[:2]) > 600
        middle = pixels[:600, 350:450].reshape(-1, 3)  # around a confidence of one half
        colours[name] = {tuple(pixel) for pixel in middle}
    red, yellow = (0xD1, 0x49, 0x5B), (0xED, 0xAE, 0x49)
    assert red in colours["sure"]
    assert yellow not in colours["sure"]
    assert yellow in colours["modest"]
    assert red not in colours["modest"]
