"""Our quicker steps against the steps of torchvision, timm and Pillow that they stand for."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.nn.functional import interpolate
from torchvision import transforms as T

from cvt.data.transforms import Flip, PadCrop, ResizedCrop, ResizeTo, ToNormalizedTensor
from cvt.runtime import seed_all

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
    """Of a picture of smooth colours, which torch and Pillow scale alike."""
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
