"""The weights that come along: whole, small, and as good as their cards say."""

import re
from pathlib import Path

import pytest

import cvt
from cvt.weights.published import SHIPPED, shipped_file

DATA = Path(__file__).parents[3] / "shared" / "data"


def measured_on_test(name: str) -> tuple[int, float]:
    """Images and top-1 of the test split, as the card prints them."""
    card = SHIPPED[name].with_name("README.md").read_text()
    [(images, top1)] = re.findall(r"\| test \| ([\d,]+) \| ([\d.]+) \|", card)
    return int(images.replace(",", "")), float(top1)


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
    assert measured_on_test(name)[1] == cvt.load(name).record.metrics["test_top1"]


def test_the_demo_is_one_of_them():
    assert shipped_file("demo") in SHIPPED.values()
    assert shipped_file("demoo") is None


@pytest.mark.data
@pytest.mark.slow
def test_it_is_as_good_as_its_card_says():
    images = DATA / "cifar10"
    if not images.exists():
        pytest.skip(f"needs the images of {images}")
    result = cvt.evaluation.evaluate("cvt_nano_32.cifar10", str(images))
    # A picture on the edge may fall to the other side where another CPU rounds otherwise.
    assert result.top1 == pytest.approx(measured_on_test("cvt_nano_32.cifar10")[1], abs=0.05)
