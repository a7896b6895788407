"""timm's Posterize where it asks for zero bits, which Pillow 13 refuses with a ValueError.

Older Pillow made the picture black. timm's levels come down to zero bits now and then: about one
picture in a thousand with `rand-m9-mstd0.5-inc1`, many more with `augmix`. To be dropped once
timm (1.0.31 at the time of writing) looks after it itself; the test says when.
"""

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data.auto_augment import posterize
from torchvision import transforms as T


def allow_zero_bits(colour: T.Compose) -> None:
    """Makes the Posterize steps of timm's policies in `colour` give black for zero bits."""
    for policy in colour.transforms:
        for step in _steps(policy):
            if step.aug_fn is posterize:
                step.aug_fn = _posterize


def _steps(policy: Any) -> Iterator[Any]:
    """RandAugment and AugMix hold a list of steps, AutoAugment a list of lists of them."""
    yield from getattr(policy, "ops", ())
    for steps in getattr(policy, "policy", ()):
        yield from steps


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    return posterize(image, bits, **options) if bits > 0 else Image.new(image.mode, image.size)
