"""How training images are varied, as plain data that needs no heavy import."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cvt.errors import UserError
from cvt.plain import Range, check_values

Probability = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(above=0)]
AreaShare = Annotated[float, Range(above=0, most=1)]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are varied; names and, where not said otherwise, meanings are timm's.

    The defaults are those of the CvT paper's ImageNet training.
    """

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    """A random part of the image (random_resized), the whole image shifted by up to an eighth of
    its size (pad, usual for small images), or what evaluation sees (none)."""

    scale: tuple[AreaShare, AreaShare] = (0.08, 1.0)
    """Smallest and largest share of the area that a random_resized crop takes."""

    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of that crop."""

    hflip: Probability = 0.5
    """Probability of a horizontal flip."""

    color_jitter: Annotated[float, Range(0)] = 0.4
    """Strength of random brightness, contrast and saturation, where auto_augment is off."""

    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """A policy of timm's, such as rand-m9-mstd0.5-inc1; off: none."""

    re_prob: Probability = 0.25
    """Probability of erasing a random rectangle."""

    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What is erased becomes 0 (const), one random colour (rand) or noise (pixel)."""

    repeats: Annotated[int, Range(1, 1024)] = 1
    """Differently varied copies of an image in a batch; an epoch then sees fewer images."""

    def __post_init__(self) -> None:
        check_values(self, "augment")
        for name in ("scale", "ratio"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise UserError(
                    f"Got {name} {smallest} to {largest}, expected the smaller one first."
                )
