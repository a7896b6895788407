import numpy as np
import pytest
import torch
from PIL import Image

from cvt.data import eval_transform
from cvt.errors import UserError
from cvt.weights import hugging_face as image_processor
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
    assert image_processor.read_processor({**HUB, "size": size}) == AT_224


def test_384_squashes_whatever_crop_pct_says():
    assert image_processor.read_processor({**HUB, "size": 384}) == AT_384


@pytest.mark.parametrize(
    "preprocessing",
    [AT_224, AT_384, Preprocessing(input_size=(3, 32, 32), crop_pct=1.0, interpolation="bilinear")],
)
def test_there_and_back(preprocessing):
    assert (
        image_processor.read_processor(image_processor.write_processor(preprocessing))
        == preprocessing
    )


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
    assert image_processor.write_processor(preprocessing) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "ViTFeatureExtractor"),
        ({"size": {"height": 224, "width": 192}}, "expected a square"),
        ({"size": {"longest_edge": 224}}, "expected a side in pixels"),
        ({"size": "224"}, "Got '224' for size"),
        ({"resample": 9}, "resample 9"),
    ],
)
def test_what_is_not_understood_is_refused(change, says):
    with pytest.raises(UserError, match=says):
        image_processor.read_processor({**HUB, **change})


PVT = {
    "image_processor_type": "PvtImageProcessor",
    "size": {"height": 32, "width": 32},
    "resample": 2,
}
SMALL = {**HUB, "size": {"shortest_edge": 32}, "crop_pct": 1.0}
del SMALL["feature_extractor_type"]


@pytest.mark.parametrize("kind", ["convnext", "pvt"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 0.003921569},
        {"rescale_factor": 2.0, "image_mean": 100.0, "image_std": 3.5},
        {"image_mean": 0.5, "image_std": 0.25},
        {"image_mean": None, "image_std": None},
        {"do_center_crop": False, "do_pad": None, "do_convert_rgb": True},
    ],
)
def test_pixels_become_what_transformers_makes_of_them(kind, change):
    """Of a picture that is as large as the network's input, so that nothing is resized."""
    transformers = pytest.importorskip("transformers")
    name = "ConvNextImageProcessor" if kind == "convnext" else "PvtImageProcessor"
    base = {**(SMALL if kind == "convnext" else PVT), "image_processor_type": name}
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8))
    config = {**base, **change}
    said = {key: value for key, value in config.items() if value is not None}
    theirs = getattr(transformers, name)(**said)(picture, return_tensors="pt")["pixel_values"][0]
    ours = eval_transform(image_processor.read_processor(config, kind))(picture)
    # Both round to float32 a few times; 1e-5 of the largest value is a hundred roundings.
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"do_resize": False}, "Got do_resize false"),
        ({"do_center_crop": True}, "Got do_center_crop True"),
        ({"do_flip_channel_order": True}, "Got do_flip_channel_order True"),
        ({"size_divisor": 32}, "Got size_divisor 32"),
        ({"rescale_factor": 0}, "Got 0 for rescale_factor"),
        ({"do_normalize": "false"}, "Got 'false' for do_normalize"),
        ({"do_rescale": None}, "Got None for do_rescale"),
        ({"image_mean": [0.5]}, "each of the 3 channels"),
        ({"image_std": [0.5, "x", 0.5]}, "for image_std"),
        ({"image_std": 0}, "expected a number above 0"),
        ({"resample": []}, r"Got \[\] for resample"),
        ({"resample": 4}, "Got resample 4"),
        ({"size": 10**9}, "expected a number from 1 to 4096"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "Got size"),
        ({"crop_pct": "x"}, "Got 'x' for crop_pct"),
        ({"crop_pct": 1e-9}, "before the crop"),
    ],
)
@pytest.mark.parametrize("kind", ["convnext", "pvt"])
def test_what_a_file_asks_for_is_followed_or_refused(kind, change, says):
    base = SMALL if kind == "convnext" else PVT
    if kind == "pvt" and ({"crop_pct"} & change.keys() or "longest_edge" in str(change)):
        return  # PVT's processor knows no such thing
    with pytest.raises(UserError, match=says):
        image_processor.read_processor({**base, **change}, kind, channels=3)


def test_pvt_s_processor_squashes_and_says_which_sides():
    got = image_processor.read_processor({**PVT, "size": {"height": 64, "width": 48}}, "pvt")
    assert (got.input_size, got.crop_mode, got.interpolation) == ((3, 64, 48), "squash", "bilinear")
    with pytest.raises(UserError, match="expected height and width"):
        image_processor.read_processor({**PVT, "size": {"shortest_edge": 64}}, "pvt")
    with pytest.raises(UserError, match=r"Got no resample .*expected 2 \(bilinear"):
        image_processor.read_processor({**PVT, "resample": None}, "pvt")
    with pytest.raises(UserError, match="expected PVT's"):
        image_processor.read_processor(
            {**PVT, "image_processor_type": "ConvNextImageProcessor"}, "pvt"
        )
