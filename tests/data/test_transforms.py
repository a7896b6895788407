"""Transforms against Pillow and numpy by hand, and against the steps that ours stand for."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.nn.functional import interpolate
from torchvision import transforms as T

from cvt.data import Augment, eval_transform, train_transform
from cvt.data.transforms import (
    Flip,
    PadCrop,
    ResizedCrop,
    ResizeTo,
    ToNormalizedTensor,
    allow_zero_bits,
)
from cvt.errors import UserError
from cvt.runtime import seed_all
from cvt.weights.record import Preprocessing

PLAIN = {"hflip": 0.0, "color_jitter": 0.0, "auto_augment": "off", "re_prob": 0.0}


def normalised(image, preprocessing):
    values = np.asarray(image, dtype=np.float64) / 255
    return ((values - preprocessing.mean) / preprocessing.std).transpose(2, 0, 1)


def same(tensor, image, preprocessing):
    assert tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy(), normalised(image, preprocessing), atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (97, 301)])
def test_centre_is_short_side_to_256_then_the_middle(shape, noise):
    image = Image.fromarray(noise(*shape, 3))
    preprocessing = Preprocessing()
    short = min(image.size)
    width, height = (side * 256 // short for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    expected = resized.crop((left, top, left + 224, top + 224))
    same(eval_transform(preprocessing)(image), expected, preprocessing)


def test_squash_goes_straight_to_the_size(noise):
    image = Image.fromarray(noise(300, 500, 3))
    preprocessing = Preprocessing(input_size=(3, 96, 128), crop_pct=1.0, crop_mode="squash")
    expected = image.resize((128, 96), Image.Resampling.BICUBIC)
    same(eval_transform(preprocessing)(image), expected, preprocessing)


def test_centre_at_a_size_that_is_not_square(noise):
    image = Image.fromarray(noise(300, 400, 3))
    preprocessing = Preprocessing(input_size=(3, 70, 140), interpolation="bilinear")
    # The sides must cover 80 x 160: the width decides, 400 -> 160, hence 300 -> 120.
    resized = image.resize((160, 120), Image.Resampling.BILINEAR)
    expected = resized.crop((10, 25, 150, 95))
    same(eval_transform(preprocessing)(image), expected, preprocessing)


@pytest.mark.parametrize("size", [(1, 1), (1000, 1), (1, 1000), (5, 7)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_any_image_comes_out_at_the_input_size(size, crop_mode):
    preprocessing = Preprocessing(input_size=(3, 33, 47), crop_mode=crop_mode)
    assert eval_transform(preprocessing)(Image.new("RGB", size)).shape == (3, 33, 47)
    for crop in ("random_resized", "pad", "none"):
        transform = train_transform(preprocessing, Augment(crop=crop))
        assert transform(Image.new("RGB", size)).shape == (3, 33, 47)


def test_grey_models_get_one_channel(noise):
    image = Image.fromarray(noise(32, 32, 3))
    preprocessing = Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.25,), crop_pct=1.0)
    expected = (np.asarray(image.convert("L"), dtype=np.float64) / 255 - 0.5) / 0.25
    got = eval_transform(preprocessing)(image)
    assert got.shape == (1, 32, 32)
    assert np.allclose(got[0].numpy(), expected, atol=1e-5)
    assert train_transform(preprocessing, Augment())(image).shape == (1, 32, 32)


def test_other_numbers_of_channels_are_refused():
    preprocessing = Preprocessing(input_size=(4, 8, 8), mean=(0.5,) * 4, std=(0.5,) * 4)
    for make in (eval_transform, lambda given: train_transform(given, Augment())):
        with pytest.raises(UserError, match="4 input channels, expected 1 or 3"):
            make(preprocessing)


def test_without_any_augmentation_training_sees_what_evaluation_sees(noise):
    image = Image.fromarray(noise(50, 60, 3))
    preprocessing = Preprocessing(input_size=(3, 32, 40))
    transform = train_transform(preprocessing, Augment(crop="none", **PLAIN))
    assert torch.equal(transform(image), eval_transform(preprocessing)(image))


def test_pad_shifts_by_up_to_an_eighth(noise):
    image = Image.fromarray(noise(32, 32, 3))
    preprocessing = Preprocessing(input_size=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    transform = train_transform(preprocessing, Augment(crop="pad", **PLAIN))
    padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0))) / 255
    windows = {
        (y, x): padded[y : y + 32, x : x + 32].transpose(2, 0, 1).astype(np.float32)
        for y in range(9)
        for x in range(9)
    }
    seen = set()
    for seed in range(60):
        seed_all(seed)
        got = transform(image).numpy()
        found = [place for place, window in windows.items() if np.allclose(got, window, atol=1e-6)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 20


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_flips_happen_at_their_rate(crop):
    image = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))).convert("RGB")
    augment = Augment(crop=crop, **{**PLAIN, "hflip": 0.25})
    transform = train_transform(Preprocessing(input_size=(3, 32, 32)), augment)
    seed_all(0)
    flipped = Counter(
        bool(t[0, 16, 8] > t[0, 16, 24]) for t in (transform(image) for _ in range(200))
    )
    assert 25 <= flipped[True] <= 75


def test_scale_bounds_the_area_of_the_crop():
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    preprocessing = Preprocessing(input_size=(3, 64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
    augment = Augment(**PLAIN, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    transform = train_transform(preprocessing, augment)
    seed_all(0)
    got = transform(Image.fromarray(ramp).convert("RGB"))[0, 32]
    assert float(got[-1] - got[0]) * 255 == pytest.approx(128, abs=4)  # half of the width


def test_erasing_with_noise():
    augment = Augment(crop="none", **{**PLAIN, "re_prob": 1.0})
    got = train_transform(Preprocessing(input_size=(3, 32, 32)), augment)(
        Image.new("RGB", (32, 32))
    )
    assert len(got[0].unique()) > 10


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m1", "augmix-m3", "original", "v0", "3a"]
)
def test_policies_survive_any_draw(policy, noise):
    """Among them zero bits for Posterize, which Pillow 13 refuses when timm asks for it."""
    image = Image.fromarray(noise(16, 16, 3))
    transform = train_transform(
        Preprocessing(input_size=(3, 16, 16)), Augment(auto_augment=policy, crop="none")
    )
    for seed in range(150):
        seed_all(seed)
        assert torch.isfinite(transform(image)).all()


def test_posterize_to_zero_bits_is_black(noise):
    image = Image.fromarray(noise(8, 8, 3))
    step = auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)
    policy = auto_augment.AutoAugment([[step]])
    allow_zero_bits(T.Compose([policy]))
    assert not np.asarray(policy(image)).any()
    step.magnitude = 5
    assert np.array_equal(policy(image), np.asarray(image) & 0b11000000)


@pytest.mark.parametrize("policy", ["foo", "rand-q9", "rand-mx1", "augmix-z3"])
def test_an_unknown_policy(policy):
    with pytest.raises(UserError, match=f"Got auto_augment '{policy}', expected a policy"):
        train_transform(Preprocessing(), Augment(auto_augment=policy))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("crop", "padding", "Did you mean 'pad'"),
        ("re_mode", "pixels", "Did you mean 'pixel'"),
        ("scale", (0.5, 0.1), "expected the smaller one first"),
        ("scale", (0.0, 1.0), "expected a number above 0 to 1"),
        ("ratio", (2.0, 1.0), "expected the smaller one first"),
        ("hflip", 1.5, "expected a number from 0 to 1"),
        ("re_prob", -0.1, "expected a number from 0 to 1"),
        ("color_jitter", -1.0, "expected a number from 0 on"),
        ("repeats", 0, "expected a number from 1 to 1024"),
    ],
)
def test_values_out_of_range(field, value, match):
    with pytest.raises(UserError, match=match):
        Augment(**{field: value})


def test_randomness_comes_from_the_three_generators(noise):
    image = Image.fromarray(noise(40, 40, 3))
    transform = train_transform(Preprocessing(input_size=(3, 32, 32)), Augment(color_jitter=0.4))
    seed_all(3, 1, 4)
    first, draws = transform(image), (random.random(), np.random.rand(), torch.rand(1))
    seed_all(3, 1, 4)
    assert torch.equal(first, transform(image))
    assert draws == (random.random(), np.random.rand(), torch.rand(1))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def photograph(shared_data, number=0):
    return Image.open(sorted((shared_data / "photos").iterdir())[number]).convert("RGB")


def test_the_tensor_is_what_torchvision_computes():
    """Every level of every channel, to the bit."""
    levels = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=-1)[None])
    expected = T.Normalize(MEAN, STD)(T.ToTensor()(image))
    got = ToNormalizedTensor(MEAN, STD)(image)
    assert got.shape == (3, 1, 256)
    assert got.is_contiguous()
    assert torch.equal(got, expected)


def exact(image, size, interpolation):
    """The filter in float64 throughout, rounded once."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
    scaled = interpolate(pixels, size, mode=interpolation, antialias=True)
    return scaled[0].permute(1, 2, 0).clamp(0, 255).round().numpy()


@pytest.mark.data
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(224, 224), (96, 128), (600, 700)])
def test_scaling_is_as_near_to_the_exact_filter_as_pillow(shared_data, size, interpolation):
    image = photograph(shared_data)
    right = exact(image, size, interpolation)
    ours = np.asarray(ResizeTo(size, interpolation)(image), dtype=np.float64)
    pillows = np.asarray(image.resize(size[::-1], PILLOW[interpolation]), dtype=np.float64)
    assert ours.shape == (*size, 3)
    assert np.abs(ours - right).mean() <= np.abs(pillows - right).mean() + 0.01
    assert np.abs(ours - pillows).mean() < 0.1
    assert (np.abs(ours - pillows) > 1).mean() < 0.002


@pytest.mark.parametrize("interpolation", ["lanczos", "nearest"])
def test_other_filters_are_pillows(noise, interpolation):
    image = Image.fromarray(noise(40, 50, 3))
    expected = image.resize((20, 30), Image.Resampling[interpolation.upper()])
    assert np.array_equal(ResizeTo((30, 20), interpolation)(image), expected)


def test_the_size_that_is_there_is_left_alone(noise):
    image = Image.fromarray(noise(40, 50, 3))
    assert ResizeTo((40, 50), "bicubic")(image) is image


def test_the_crop_is_timms(noise):
    """Of an image of smooth colours, which torch and Pillow scale alike."""
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    image = Image.fromarray(np.dstack([np.tile(ramp, (200, 1)), *[np.zeros((200, 300), "u1")] * 2]))
    given = ((64, 48), (0.1, 0.5), (0.8, 1.2), "bicubic")
    ours, timms = ResizedCrop(*given), RandomResizedCropAndInterpolation(*given)
    for seed in range(20):
        seed_all(seed)
        got = np.asarray(ours(image), dtype=int)
        seed_all(seed)
        assert np.abs(got - np.asarray(timms(image), dtype=int)).max() <= 1


def test_padding_is_black_and_every_place_comes(noise):
    image = noise(6, 8, 3)
    padded = np.pad(image, ((2, 2), (3, 3), (0, 0)))
    windows = {
        padded[top : top + 6, left : left + 8].tobytes() for top in range(5) for left in range(7)
    }
    random.seed(0)
    step = PadCrop((6, 8), (2, 3))
    assert {np.asarray(step(Image.fromarray(image))).tobytes() for _ in range(500)} == windows


def test_flips(noise):
    image = Image.fromarray(noise(6, 8, 3))
    assert Flip(0.0)(image) is image
    assert np.array_equal(Flip(1.0)(image), np.asarray(image)[:, ::-1])
