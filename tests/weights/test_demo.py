"""The model that comes along: whole, small, and as good as its card says."""

import re
from pathlib import Path

import pytest

import cvt
from cvt.weights.source import DEMO_FILE

IMAGES = Path(__file__).parents[3] / "shared" / "data" / "cifar10"


def test_it_is_small_and_describes_itself():
    assert DEMO_FILE.stat().st_size < 20_000_000
    record = cvt.load("demo").record
    assert record.model == "cvt_nano_32"
    assert record.class_names[:2] == ("airplane", "automobile")
    assert len(record.class_names) == 10
    assert record.licence == "Apache-2.0"


def test_the_card_says_what_the_checkpoint_does():
    card = DEMO_FILE.with_name("README.md").read_text()
    metrics = cvt.load("demo").record.metrics
    [(images, top1)] = re.findall(r"\| test \| ([\d,]+) \| ([\d.]+) \|", card)
    assert images == "10,000"
    assert float(top1) == metrics["test_top1"]


@pytest.mark.data
@pytest.mark.slow
def test_it_is_as_good_as_its_card_says():
    if not IMAGES.exists():
        pytest.skip(f"needs the images of {IMAGES}")
    result = cvt.evaluation.evaluate("demo", str(IMAGES))
    # A picture on the edge may fall to the other side where another CPU rounds otherwise.
    assert result.top1 == pytest.approx(80.59, abs=0.05)
