"""ImageNet's validation pictures by their ReaL labels: every class that a picture shows counts.

Source: Beyer et al., Are we done with ImageNet?, arXiv 2006.07159; google-research/
reassessed-imagenet bcd006f, README.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvt.data.file_set import FileSet
from cvt.data.walk import LeftOut, images_below
from cvt.errors import UserError
from cvt.evaluate.calibration import Reliability, reliability
from cvt.evaluate.timm_lists import real_labels
from cvt.train.validate import Logits

_VAL_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})(?:\D.*)?")


@dataclass(frozen=True, kw_only=True)
class RealScore:
    """What a model is worth by the ReaL labels. Pictures that fit no class are left out.

    Args:
        top1: Percentage of pictures whose most likely class is among their labels.
        top5: Percentage of which one of the five most likely is.
        ece: Expected calibration error over 15 bins, 0 to 1.
        reliability: Those bins.
        num_images: Pictures that were measured: 46,837 in the whole set.
        num_excluded: Pictures in the folder that have no label: 3,163 in the whole set.
        bad: One sentence for each picture that could not be read and was left out.
    """

    top1: float
    top5: float
    ece: float
    reliability: Reliability
    num_images: int
    num_excluded: int
    bad: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        bins = self.reliability.to_dict()
        return {**vars(self), "reliability": bins, "bad": list(self.bad)}

    def save_reliability(self, path: str | Path) -> None:
        """Draws accuracy against confidence, with the calibration error.

        Raises:
            UserError: The file cannot be written.
        """
        from cvt.evaluate.reliability_plot import save_reliability

        save_reliability(Path(path), self.reliability)


def read_val_pictures(folder: Path) -> tuple[FileSet, int]:
    """Returns the pictures that have ReaL labels, and the number of those that have none.

    Pictures are known by their names, ILSVRC2012_val_00000001.JPEG and on; whether they lie in
    class folders does not matter. A label is a picture's number, counted from 0.

    Raises:
        UserError: There are no such pictures, a number is above 50,000, or one comes twice.
    """
    labels, left_out = real_labels(), LeftOut()
    paths: dict[int, str] = {}
    for _, path in sorted(images_below([folder], left_out)):
        match = _VAL_PICTURE.fullmatch(Path(path).stem)
        if not match:
            continue
        number = int(match[1]) - 1
        if not 0 <= number < len(labels) or number in paths:
            raise UserError(
                f"Got the picture {path}, expected each of ImageNet's {len(labels):,} validation "
                "pictures once; give the folder of those alone."
            )
        paths[number] = path
    if not paths:
        raise UserError(
            f"{folder} holds no pictures called like ILSVRC2012_val_00000001.JPEG, expected "
            "ImageNet's validation set; its files must keep their names."
        )
    kept = [number for number in sorted(paths) if labels[number]]
    if not kept:
        raise UserError(f"The {len(paths)} pictures of {folder} have no ReaL labels; add others.")
    files = [paths[number] for number in kept]
    images = FileSet(files, kept, (), unreadable=left_out.unreadable)
    return images, len(paths) - len(kept)


def score_real(said: Logits, num_excluded: int) -> RealScore:
    """Returns the figures; `said.labels` are the pictures' numbers, counted from 0.

    Shape: `said.logits` (N, 1000), in ImageNet's order.
    """
    fitting = [real_labels()[number] for number in said.labels.tolist()]
    best = said.logits.topk(5, dim=1).indices.tolist()
    pairs = list(zip(best, fitting, strict=True))
    first = np.array([five[0] in labels for five, labels in pairs])
    among = np.array([not set(five).isdisjoint(labels) for five, labels in pairs])
    bins = reliability(said.logits.double().softmax(dim=1).amax(dim=1).numpy(), first)
    return RealScore(
        top1=100 * float(first.mean()),
        top5=100 * float(among.mean()),
        ece=bins.ece,
        reliability=bins,
        num_images=len(first),
        num_excluded=num_excluded,
        bad=said.bad,
    )
