"""Steps of a transform that cost less here than in torchvision, and compute the same."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn import functional as F

# Filters of which torch has a vectorised form for 8-bit pictures.
_QUICK = ("bilinear", "bicubic")


class ToNormalizedTensor:
    """From an RGB picture to a float32 tensor (3, H, W): torchvision's `ToTensor` and `Normalize`.

    The same roundings in the same order, hence equal to the bit, but the picture is copied once.

    Args:
        mean: Of each channel, for levels scaled to 0..1.
        std: What each channel is then divided by.
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
    """timm's random crop, scaled in half the time by torch where that has the filter.

    torch's resampling of 8-bit pictures is a port of Pillow's. Both round the picture between the
    two passes, so that a few pixels in a thousand differ by more than a level; neither is nearer
    than the other to the filter computed in float64 (tested).

    Args:
        size: Height and width that come out.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width / height.
        interpolation: A filter's name.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: str,
    ) -> None:
        super().__init__(size, scale, ratio, interpolation)
        self.resize = ResizeTo(size, interpolation)

    def __call__(self, img: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(img, self.scale, self.ratio)
        if height and width:  # of a line of pixels, timm may take a part of none
            img = img.crop((left, top, left + width, top + height))
        return self.resize(img)


class ResizeTo:
    """Scales an RGB picture to a size, as `ResizedCrop` does.

    Args:
        size: Height and width.
        interpolation: A filter's name; filters that torch does not have are Pillow's.
    """

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.size = size
        self.interpolation = interpolation

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


class PadCrop:
    """torchvision's `RandomCrop(size, padding)`, without making the padded picture.

    A border of black is put around the picture and a part of its own size cut out at random.

    Args:
        size: Height and width of what comes in, and of what comes out.
        padding: Height of the border above and below, width of that left and right.
    """

    def __init__(self, size: tuple[int, int], padding: tuple[int, int]) -> None:
        self.size = size
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        assert image.size == (width, height)
        top, left = (random.randint(-pad, pad) for pad in self.padding)
        return image.crop((left, top, left + width, top + height))


class Flip:
    """torchvision's `RandomHorizontalFlip`, drawing from Python's generator, which is at hand.

    Args:
        probability: Of mirroring left and right.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
