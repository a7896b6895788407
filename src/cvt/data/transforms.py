"""Transforms from an image to the network's input tensor, built from timm's."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.data.transforms import MaybeToTensor, RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms as T

from cvt.data.augment import Augment
from cvt.data.image import Sizing, sized
from cvt.errors import UserError
from cvt.weights.record import Preprocessing


def allow_zero_bits(colour: T.Compose) -> None:
    """Makes the Posterize steps of timm's policies in `colour` give black for zero bits.

    Older Pillow did so, Pillow 13 refuses them. timm's levels come down to zero bits now and then:
    about one image in a thousand with `rand-m9-mstd0.5-inc1`, many more with `augmix`. To be
    dropped once timm (1.0.31 at the time of writing) looks after it itself; the test says when.
    """
    for policy in colour.transforms:
        # RandAugment and AugMix hold a list of steps, AutoAugment a list of lists of them.
        for step in chain(getattr(policy, "ops", ()), *getattr(policy, "policy", ())):
            if step.aug_fn is posterize:
                step.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)


# --- Steps that compute the same as torchvision's and timm's for less.

# Filters that torch has in vectorised form for 8-bit images.
_QUICK = ("bilinear", "bicubic")


class ToNormalizedTensor:
    """From an RGB image to a float32 tensor (3, H, W): torchvision's `ToTensor` and `Normalize`.

    The same roundings in the same order, hence equal to the bit, but with a single copy.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (np.array(each, np.float32)[:, None, None] for each in (mean, std))

    def __call__(self, image: Image.Image) -> Tensor:
        assert image.mode == "RGB"
        levels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
        values = levels.transpose(2, 0, 1).astype(np.float32, order="C")
        values /= np.float32(255)
        values -= self.mean
        values /= self.std
        return torch.from_numpy(values)


class ResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random crop, resized in half the time by torch where that has the filter.

    torch's resampling of 8-bit images is a port of Pillow's. Both round between the two passes, so
    that a few pixels in a thousand differ by more than a level; neither is closer to the filter
    computed in float64 (tested).
    """

    def __call__(self, img: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(img, self.scale, self.ratio)
        if height and width:  # of a line of pixels, timm may take a part of none
            img = img.crop((left, top, left + width, top + height))
        return ResizeTo(self.size, cast("Any", self.interpolation).value)(img)


@dataclass(frozen=True)
class ResizeTo:
    """Resizes an RGB image, as `ResizedCrop` does; Pillow computes the filters that torch lacks."""

    size: tuple[int, int]  # height and width
    interpolation: str

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        if image.size == (width, height):
            return image
        if self.interpolation not in _QUICK:
            filter = Image.Resampling[self.interpolation.upper()]
            return image.resize((width, height), filter)
        pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
        scaled = F.interpolate(pixels, (height, width), mode=self.interpolation, antialias=True)
        return Image.fromarray(scaled[0].permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class PadCrop:
    """torchvision's `RandomCrop(size, padding)`, without making the padded image.

    Out of the image with a black border around it, a part of the image's size is cut at random.
    """

    size: tuple[int, int]  # height and width of the input and of the output
    padding: tuple[int, int]  # height of the border above and below, width of it left and right

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        assert image.size == (width, height)
        top, left = (random.randint(-pad, pad) for pad in self.padding)
        return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True)
class Flip:
    """torchvision's `RandomHorizontalFlip`, drawing from Python's generator."""

    probability: float

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


# --- The size that comes first, to which an image may be decoded.


class Covering(Sizing):
    """The short side to its size, as timm and torchvision round; the centre is cut out of it."""

    def of(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = self.size
        if rows != columns:
            ratio = min(height / rows, width / columns)
            return round(width / ratio), round(height / ratio)
        short = min(width, height)
        return int(rows * width / short), int(rows * height / short)


class Squashed(Sizing):
    """Both sides to their size."""

    def of(self, width: int, height: int) -> tuple[int, int]:
        return self.size[1], self.size[0]


class Shrunk(Sizing):
    """Both sides to their size; an image that is smaller in either is left as it is."""

    def of(self, width: int, height: int) -> tuple[int, int]:
        rows, columns = self.size
        return (columns, rows) if width >= columns and height >= rows else (width, height)


@dataclass(frozen=True)
class Croppable(Sizing):
    """As small as can be while its smallest random crop has as many pixels as the network sees.

    Where that would leave the short side below the size, as of a stripe, out of whose middle a
    crop of the whole height is taken, the short side gets that. Nothing is enlarged.
    """

    smallest: float  # share of the area that a crop takes

    def of(self, width: int, height: int) -> tuple[int, int]:
        area = math.prod(self.size) / self.smallest
        scale = max(math.sqrt(area / (width * height)), max(self.size) / min(width, height))
        if scale >= 1:
            return width, height
        return math.ceil(width * scale), math.ceil(height * scale)


# --- Transforms: a size, steps that are the same every time, steps that may be random.


@dataclass(frozen=True)
class Transform:
    """From an RGB image to a float32 tensor (C, H, W), in three steps.

    Args:
        finish: The last one, which may draw from the global generators of Python, numpy and torch.
        fixed: What is done before; the same every time, so that its result may be kept.
        sizing: The size that an image is brought to before that; None leaves it as it is.
    """

    finish: Callable[[Image.Image], Tensor]
    fixed: Callable[[Image.Image], Image.Image] = field(default_factory=lambda: T.Compose([]))
    sizing: Sizing | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        return self.finish(self.fixed(sized(image, self.sizing)))


def eval_transform(preprocessing: Preprocessing) -> Transform:
    """Returns the fixed transform from an RGB image to a float32 tensor (C, H, W)."""
    sizing, crop, *tensor = _eval_steps(preprocessing)
    return _with_channels(preprocessing, sizing, [crop], tensor)


def train_transform(preprocessing: Preprocessing, augment: Augment) -> Transform:
    """Returns a random transform from an RGB image to a float32 tensor (C, H, W).

    It draws from the global generators of Python, numpy and torch.
    """
    common = _common(preprocessing)
    try:
        _, colour, tensor = create_transform(
            **common,
            is_training=True,
            separate=True,
            color_jitter=augment.color_jitter,
            auto_augment=None if augment.auto_augment == "off" else augment.auto_augment,
            re_prob=augment.re_prob,
            re_mode=augment.re_mode,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"Got auto_augment {augment.auto_augment!r}, expected a policy of timm's such as "
            "'rand-m9-mstd0.5-inc1', 'augmix-m3' or 'original'."
        ) from error
    allow_zero_bits(colour)
    sizing, fixed, crop = _crop(preprocessing, augment)
    steps = [
        *crop,
        Flip(augment.hflip),
        # At strength 0 the jitter would draw numbers and do nothing.
        *(s for s in colour.transforms if augment.color_jitter or not isinstance(s, T.ColorJitter)),
        *_quick_tensor(tensor.transforms),
    ]
    return _with_channels(preprocessing, sizing, fixed, steps)


def _crop(preprocessing: Preprocessing, augment: Augment) -> tuple[Sizing, list[Any], list[Any]]:
    """Returns the size that comes first, what is then the same every time, and what is drawn."""
    size, interpolation = preprocessing.size, preprocessing.interpolation
    if augment.crop == "none":
        sizing, crop, _ = _eval_steps(preprocessing)
        return sizing, [crop], []
    if augment.crop == "random_resized":
        cropped = ResizedCrop(size, augment.scale, augment.ratio, interpolation)
        return Croppable(size, "bicubic", augment.scale[0]), [], [cropped]
    border = (size[0] // 8, size[1] // 8)
    return Shrunk(size, interpolation), [ResizeTo(size, interpolation)], [PadCrop(size, border)]


def _eval_steps(preprocessing: Preprocessing) -> list[Any]:
    """Returns timm's three steps: the size, the crop, the tensor."""
    how = {"crop_pct": preprocessing.crop_pct, "crop_mode": preprocessing.crop_mode}
    _, *steps = create_transform(**_common(preprocessing), **how).transforms
    size = tuple(math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    kind = Squashed if preprocessing.crop_mode == "squash" else Covering
    return [kind(cast("Any", size), preprocessing.interpolation), *_quick_tensor(steps)]


def _quick_tensor(steps: list[Any]) -> list[Any]:
    """Replaces two of timm's steps by one of ours that computes the same."""
    start = next(place for place, step in enumerate(steps) if isinstance(step, MaybeToTensor))
    normalize = steps[start + 1]
    quick = ToNormalizedTensor(normalize.mean.tolist(), normalize.std.tolist())
    return [*steps[:start], quick, *steps[start + 2 :]]


def _common(preprocessing: Preprocessing) -> dict[str, Any]:
    """timm's arguments that training and evaluation share, always for three channels."""
    channels = preprocessing.input_size[0]
    if channels not in (1, 3):
        raise UserError(f"Got a model of {channels} input channels, expected 1 or 3 for images.")
    copies = 3 if channels == 1 else 1
    return {
        "input_size": (3, *preprocessing.size),
        "interpolation": preprocessing.interpolation,
        "mean": preprocessing.mean * copies,
        "std": preprocessing.std * copies,
    }


def _with_channels(
    preprocessing: Preprocessing, sizing: Sizing, fixed: list[Any], steps: list[Any]
) -> Transform:
    """Gives a grey input three equal channels on the way, because timm's policies need RGB."""
    if preprocessing.input_size[0] == 1:
        fixed, steps = [T.Grayscale(3), *fixed], [*steps, _first_channel]
    return Transform(T.Compose(steps), T.Compose(fixed), sizing)


def _first_channel(image: Tensor) -> Tensor:
    return image[:1]
