import json

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.errors import UserError
from cvt.evaluation.answers import Logits
from cvt.evaluation.scores import save_confusion, summarise

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
    labels = torch.randint(6, (300,), generator=generator)  # the last class has no pictures
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
def test_the_confusion_is_a_picture_at_any_size(count, tmp_path):
    confusion = np.diag(np.full(count, 3)) + np.eye(count, k=1, dtype=int)
    path = tmp_path / "confusion.png"
    save_confusion(path, confusion, [f"class number {each}" for each in range(count)])
    with Image.open(path) as image:
        assert 600 < min(image.size) <= max(image.size) < 3000
        assert np.asarray(image.convert("L")).min() < 100


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        save_confusion(tmp_path / "file" / "confusion.png", np.eye(2), ["a", "b"])
