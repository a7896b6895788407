"""How training pictures are varied, as plain data."""

from dataclasses import dataclass
from typing import Literal

from cvt.errors import UserError, did_you_mean

CROPS = ("random_resized", "pad", "none")
RE_MODES = ("const", "rand", "pixel")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training pictures are varied; the words and, where not said otherwise, timm's meaning.

    The defaults are those of the CvT paper's ImageNet training.

    Args:
        crop: `random_resized` cuts out a random part and scales it to the input size. `pad`, usual
            for small pictures, scales to the input size, adds a border of an eighth of it and cuts
            the input size out at random. `none` takes the part that evaluation takes.
        scale: Smallest and largest share of the picture's area that `random_resized` takes.
        ratio: Smallest and largest width / height of that part.
        hflip: Probability of mirroring left and right.
        color_jitter: Strength of random brightness, contrast and saturation; timm leaves it out
            where `auto_augment` is set.
        auto_augment: timm's description of a policy, such as `rand-m9-mstd0.5-inc1`, or None.
        re_prob: Probability of erasing a random rectangle of the tensor.
        re_mode: What is erased becomes 0 (`const`), one random colour (`rand`) or noise (`pixel`).

    Raises:
        UserError: A value is outside of its range.
    """

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    re_prob: float = 0.25
    re_mode: Literal["const", "rand", "pixel"] = "pixel"

    def __post_init__(self) -> None:
        for name, options in (("crop", CROPS), ("re_mode", RE_MODES)):
            got = getattr(self, name)
            if got not in options:
                hint = did_you_mean(str(got), options)
                raise UserError(f"Got {name} {got!r}, expected one of {', '.join(options)}.{hint}")
        for name in ("hflip", "re_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"Got {name} {getattr(self, name)}, expected 0 to 1.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"Got scale {self.scale}, expected 0 < smallest <= largest <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"Got ratio {self.ratio}, expected 0 < smallest <= largest.")
        if self.color_jitter < 0:
            raise UserError(f"Got color_jitter {self.color_jitter}, expected 0 or more.")
