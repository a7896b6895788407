"""The weights that come along: whole, small, and as good as their cards say."""

import re
from pathlib import Path

import pytest

import cvt
from cvt.weights.published import SHIPPED, shipped_file

DATA = Path(__file__).parents[3] / "shared" / "data"


# What each was measured on, what its record calls that figure, and where the images are.
MEASURED = {
    "cvt_nano_32.cifar10": ("test", "test_top1", "cifar10"),
    "cvt_micro_96.tiny_imagenet": ("validation", "top1", "tiny_imagenet"),
}


def on_its_card(name: str) -> float:
    """Top-1 as the card prints it."""
    card = SHIPPED[name].with_name("README.md").read_text()
    [top1] = re.findall(rf"\| {MEASURED[name][0]} \| [\d,]+ \| ([\d.]+) \|", card)
    return float(top1)


def test_they_are_small_together():
    assert sum(path.stat().st_size for path in SHIPPED.values()) < 25e6


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_is_that_of_its_row_and_its_data(name):
    record = cvt.load(name).record
    assert name.partition(".")[0] == record.model
    assert record.class_names
    assert record.licence


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_what_the_checkpoint_does(name):
    assert on_its_card(name) == round(cvt.load(name).record.metrics[MEASURED[name][1]], 2)


def test_the_demo_is_one_of_them():
    assert shipped_file("demo") in SHIPPED.values()
    assert shipped_file("demoo") is None


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_as_good_as_its_card_says(name):
    images = DATA / MEASURED[name][2]
    if not images.exists():
        pytest.skip(f"needs the images of {images}")
    result = cvt.evaluate(name, str(images))
    # An image on the edge may fall to the other side where another CPU rounds otherwise.
    assert result.top1 == pytest.approx(on_its_card(name), abs=0.1)
