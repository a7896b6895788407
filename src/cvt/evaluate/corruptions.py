"""ImageNet-C: fifteen corruptions at five severities, weighed against AlexNet.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, arXiv 1903.12261, section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt.data import ImageSet
from cvt.errors import UserError
from cvt.evaluate.imagenet import class_folders, read_classes
from cvt.evaluate.timm_lists import imagenet_synsets
from cvt.train.validate import Logits

SEVERITIES = ("1", "2", "3", "4", "5")

# AlexNet's top-1 error, averaged over the severities. The paper prints errors already divided by
# these; they are in the sheet that the README of hendrycks/robustness links, and in
# google-research/augmix 9b9824c, imagenet.py, by one of the authors.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


@dataclass(frozen=True, kw_only=True)
class CorruptionScores:
    """What a model is worth on corrupted pictures.

    Args:
        errors: Percentage of wrong top-1 answers at each severity, by corruption.
        num_images: Pictures that were measured: 3,750,000 in the whole set.
        bad: One sentence for each picture that could not be read and was left out.
    """

    errors: Mapping[str, tuple[float, ...]]
    num_images: int
    bad: tuple[str, ...]

    @property
    def mean_errors(self) -> dict[str, float]:
        """Each corruption's error in percent, averaged over the severities."""
        return {name: sum(each) / len(each) for name, each in self.errors.items()}

    @property
    def mean_error(self) -> float:
        """The average of these in percent: the mean corruption error, not normalised."""
        return sum(self.mean_errors.values()) / len(self.errors)

    @property
    def corruption_errors(self) -> dict[str, float]:
        """CE: each corruption's error in percent of AlexNet's."""
        return {name: error / ALEXNET_ERRORS[name] for name, error in self.mean_errors.items()}

    @property
    def mce(self) -> float | None:
        """mCE: the average CE; None unless all fifteen corruptions were measured."""
        if len(self.errors) < len(ALEXNET_ERRORS):
            return None
        return sum(self.corruption_errors.values()) / len(self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without an mCE that is None."""
        plain = {
            "mce": self.mce,
            "mean_error": self.mean_error,
            "corruption_errors": self.corruption_errors,
            "mean_errors": self.mean_errors,
            "errors": {name: list(each) for name, each in self.errors.items()},
            "num_images": self.num_images,
            "bad": list(self.bad),
        }
        return {name: value for name, value in plain.items() if value is not None}


def find_corruptions(root: Path) -> dict[str, Path]:
    """Returns the folders of the corruptions that are there, in the paper's order.

    They lie in `root` itself or one level deeper, in the folders that the archives are named
    after (noise, blur, weather, digital). The four extra corruptions are for tuning, not for the
    benchmark, and are left alone.

    Raises:
        UserError: There are none, or one lacks a severity.
    """
    expected = "expected ImageNet-C: a folder for each corruption, such as gaussian_noise"
    names = class_folders(root, expected)
    places = [root, *(root / name for name in names if name not in ALEXNET_ERRORS)]
    found = {
        corruption: next(place / corruption for place in places if (place / corruption).is_dir())
        for corruption in ALEXNET_ERRORS
        if any((place / corruption).is_dir() for place in places)
    }
    if not found:
        raise UserError(f"{root} holds the folder {names[0]}, {expected}.")
    for folder in found.values():
        for severity in SEVERITIES:
            if not (folder / severity).is_dir():
                raise UserError(
                    f"{folder} has no folder {severity}, expected one for each severity from 1 to "
                    "5; unpack the whole of it."
                )
    return found


def score_corruptions(
    folders: Mapping[str, Path], ask: Callable[[ImageSet], Logits]
) -> CorruptionScores:
    """Measures one severity of one corruption after the other.

    Args:
        ask: Returns a model's answers to pictures, (N, 1000), in ImageNet's order.

    Raises:
        UserError: A folder lacks a class, or has one that is not ImageNet's.
    """
    errors: dict[str, tuple[float, ...]] = {}
    bad: list[str] = []
    num_images = 0
    for corruption, folder in folders.items():
        each = []
        for severity in SEVERITIES:
            title = f"ImageNet-C's {corruption} of severity {severity}"
            said = ask(read_classes(folder / severity, title, imagenet_synsets()))
            each.append(100 - said.top_k(1))
            bad += said.bad
            num_images += len(said.labels)
        errors[corruption] = tuple(each)
    return CorruptionScores(errors=errors, num_images=num_images, bad=tuple(bad))
