import pytest

from cvt.errors import UserError
from cvt.weights import image_processor
from cvt.weights.published import AT_224, AT_384
from cvt.weights.record import Preprocessing

HUB = {  # as the hub's preprocessor_config.json of microsoft/cvt-* says it
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "size": 224,
    "crop_pct": 0.875,
    "resample": 3,
    "do_resize": True,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@pytest.mark.parametrize("size", [224, {"shortest_edge": 224}, {"height": 224, "width": 224}])
def test_all_spellings_of_a_size_are_read(size):
    assert image_processor.read({**HUB, "size": size}) == AT_224


def test_384_squashes_whatever_crop_pct_says():
    assert image_processor.read({**HUB, "size": 384}) == AT_384


@pytest.mark.parametrize(
    "preprocessing",
    [AT_224, AT_384, Preprocessing(input_size=(3, 32, 32), crop_pct=1.0, interpolation="bilinear")],
)
def test_there_and_back(preprocessing):
    assert image_processor.read(image_processor.write(preprocessing)) == preprocessing


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(input_size=(3, 224, 192)),
        Preprocessing(crop_mode="squash", crop_pct=1.0),
        Preprocessing(input_size=(3, 384, 384), crop_pct=1.0),
        Preprocessing(input_size=(3, 384, 384), crop_mode="squash", crop_pct=0.9),
    ],
)
def test_what_the_processor_does_otherwise_is_not_written(preprocessing):
    assert image_processor.write(preprocessing) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "ViTFeatureExtractor"),
        ({"size": {"height": 224, "width": 192}}, "expected a square"),
        ({"size": {"longest_edge": 224}}, "expected a side in pixels"),
        ({"size": "224"}, "expected a side in pixels"),
        ({"resample": 9}, "resample 9"),
    ],
)
def test_what_is_not_understood_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        image_processor.read({**HUB, **change})
