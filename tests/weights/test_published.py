"""The records against the tables of the paper and of the hub."""

import pytest

from cvt.systems.cvt import ROWS
from cvt.weights.published import (
    PUBLISHED,
    find_published,
    imagenet_class_names,
    published_file,
)

TABLE = [
    ("cvt_13.msft_in1k", "microsoft/cvt-13", "CvT-13-224x224-IN-1k.pth", 81.6),
    ("cvt_13.msft_in1k_384", "microsoft/cvt-13-384", "CvT-13-384x384-IN-1k.pth", 83.0),
    (
        "cvt_13.msft_in22k_ft_in1k_384",
        "microsoft/cvt-13-384-22k",
        "CvT-13-384x384-IN-22k.pth",
        83.3,
    ),
    ("cvt_21.msft_in1k", "microsoft/cvt-21", "CvT-21-224x224-IN-1k.pth", 82.5),
    ("cvt_21.msft_in1k_384", "microsoft/cvt-21-384", "CvT-21-384x384-IN-1k.pth", 83.3),
    (
        "cvt_21.msft_in22k_ft_in1k_384",
        "microsoft/cvt-21-384-22k",
        "CvT-21-384x384-IN-22k.pth",
        84.9,
    ),
    (
        "cvt_w24.msft_in22k_ft_in1k_384",
        "microsoft/cvt-w24-384-22k",
        "CvT-w24-384x384-IN-22k.pth",
        87.7,
    ),
]


def test_the_seven_are_these():
    got = [(each.name, each.hub_id, each.file_name, each.top1) for each in PUBLISHED.values()]
    assert got == TABLE
    assert all(key == each.name for key, each in PUBLISHED.items())


@pytest.mark.parametrize("each", PUBLISHED.values(), ids=PUBLISHED)
def test_384_squashes_and_224_crops(each):
    at_384 = each.name.endswith("_384")
    assert each.preprocessing.size == ((384, 384) if at_384 else (224, 224))
    assert each.preprocessing.crop_mode == ("squash" if at_384 else "center")
    assert each.preprocessing.crop_pct == (1.0 if at_384 else 0.875)
    assert each.preprocessing.interpolation == "bicubic"
    assert each.model in ROWS


@pytest.mark.parametrize("each", PUBLISHED.values(), ids=PUBLISHED)
def test_reevaluations_are_near_the_paper_s_figure(each):
    assert each.others["PaddleViT"] == pytest.approx(each.top1, abs=0.13)


def test_found_by_name_hub_id_and_file_name():
    assert find_published("microsoft/cvt-21-384").name == "cvt_21.msft_in1k_384"
    assert find_published("cvt_13.msft_in1k").hub_id == "microsoft/cvt-13"
    assert published_file("cvt-W24-384x384-in-22k.pth").model == "cvt_w24"
    assert find_published("microsoft/cvt-w24-384") is None
    assert published_file("model.pth") is None


def test_class_names_are_imagenet_s():
    names = imagenet_class_names()
    assert len(names) == 1000
    assert names[0].startswith("tench")
    assert names[999].startswith("toilet tissue")
