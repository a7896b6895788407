"""How far two networks agree: the figures by hand, and what cannot be compared."""

import json
import math

import pytest
import torch
from torch import nn

import cvt
import networks
from cvt.errors import UserError
from cvt.inference import Agreement, agreement
from cvt.inference.agreement import checked_agreement

LOGITS = torch.tensor([[1.0, 3.0], [2.0, 0.0], [0.0, 4.0], [6.0, 0.0]])
OTHERS = torch.tensor([[1.0, 3.5], [2.0, 3.0], [0.0, 4.0], [6.0, 0.5]])


class Answers(nn.Module):
    """Row by row of a table; an "image" is the number of its row."""

    def __init__(self, table):
        super().__init__()
        self.table = table
        self.modes = []

    def forward(self, image):
        self.modes.append(self.training)
        return self.table[image[:, 0, 0, 0].long()]


IMAGES = torch.arange(4.0).reshape(4, 1, 1, 1)


@pytest.mark.parametrize("images", [IMAGES, IMAGES.split(3), [IMAGES[:0], IMAGES]])
def test_the_figures_are_those_by_hand(images):
    found = agreement(Answers(LOGITS), Answers(OTHERS), images)
    assert found.num_images == 4
    assert found.top1 == 75.0
    assert found.max_error == 3.0
    assert found.mean_error == pytest.approx((0.5 + 3.0 + 0.5) / 8)
    # Each image's two logits lie as far on either side of their mean: 1, 1, 2 and 3.
    assert found.spread == pytest.approx(((1 + 1 + 4 + 9) / 4) ** 0.5)
    assert found.relative_max == pytest.approx(3.0 / found.spread)
    assert json.loads(json.dumps(found.to_dict()))["relative_mean"] == found.relative_mean
    assert "75.00 % of 4 images" in str(found)


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("whose", ["both", "deployed", "reference"])
@pytest.mark.parametrize("size", [1, 4])
def test_what_is_no_number_shows_and_agrees_with_nothing(at, whose, size):
    """argmax names the first NaN: two rows of them would agree by accident."""
    broken = LOGITS.clone()
    broken[at] = torch.nan
    reference = LOGITS if whose == "deployed" else broken
    deployed = LOGITS if whose == "reference" else broken
    found = agreement(Answers(reference), Answers(deployed), IMAGES.split(size))
    assert found.top1 == 75.0
    assert math.isnan(found.max_error)
    assert math.isnan(found.mean_error)
    assert "nan" in str(found)


def test_infinite_logits_are_infinitely_far():
    infinite = LOGITS.clone()
    infinite[2, 1] = torch.inf
    found = agreement(Answers(LOGITS), Answers(infinite), IMAGES)
    assert (found.top1, found.max_error) == (100.0, math.inf)


def test_a_model_in_training_mode_answers_as_in_eval_mode_and_stays_in_it():
    reference = nn.Sequential(Answers(LOGITS), nn.Dropout(0.5))
    reference[1].eval()
    found = agreement(reference, Answers(LOGITS).eval(), IMAGES)
    assert (found.top1, found.max_error) == (100.0, 0.0)
    assert reference[0].modes == [False]
    assert (reference.training, reference[0].training, reference[1].training) == (True, True, False)


def test_the_rewritten_form_agrees_with_the_model():
    model = networks.small("cvt_nano_32")
    images = networks.image("cvt_nano_32", 5)
    found = agreement(model, cvt.deploy(model), images)
    assert found.top1 == 100.0
    assert 0 < found.relative_max < 1e-4
    assert model.training


def test_what_cannot_be_compared_is_refused():
    model = Answers(LOGITS)
    with pytest.raises(UserError, match="Got no images"):
        agreement(model, model, [])
    with pytest.raises(UserError, match=r"shapes \(4, 2\) and \(4, 1\)"):
        agreement(model, Answers(LOGITS[:, :1]), IMAGES)


def test_equal_logits_have_no_spread_to_compare_with():
    flat = Agreement(num_images=1, top1=100.0, max_error=0.0, mean_error=0.0, spread=0.0)
    assert flat.relative_max == 0.0
    assert "1 image;" in str(flat)
    off = Agreement(num_images=1, top1=100.0, max_error=1.0, mean_error=1.0, spread=0.0)
    assert off.relative_max == float("inf")


def test_a_low_agreement_is_a_warning():
    with pytest.warns(UserWarning, match=r"75.00 % of 4 images.*Measure its accuracy"):
        found = checked_agreement(Answers(LOGITS), Answers(OTHERS), IMAGES)
    assert found is not None
    assert found.top1 == 75.0
    assert checked_agreement(Answers(LOGITS), Answers(LOGITS), IMAGES).top1 == 100.0


def test_features_are_not_logits():
    maps = Answers(torch.zeros(4, 2, 3))
    assert checked_agreement(maps, maps, IMAGES) is None
