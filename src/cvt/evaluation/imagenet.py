"""A model of ImageNet's classes on the sets that ask whether it learned more than its own.

- `val`: class folders called by WordNet number; the plain accuracy.
- `real`: the same images, by their file names; every class that fits counts. arXiv 2006.07159.
- `v2`: folders 0 to 999, of one of its three samplings; papers mean matched-frequency.
  arXiv 1902.10811.
- `a`, `r`: 200 class folders; only the outputs of these 200 compete. arXiv 1907.07174 and
  hendrycks/natural-adv-examples 0777070, eval.py; arXiv 2006.16241 and hendrycks/imagenet-r
  3131cac, eval.py.
- `c`: corruption / severity / class folders; the images are cut to 224 pixels already and taken
  whole. arXiv 1903.12261 and hendrycks/robustness 8190fe3, ImageNet-C/test.py.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cvt.data import ImageSet
from cvt.data.sets import FileSet
from cvt.data.sources import folder_splits
from cvt.data.walk import LeftOut, images_below
from cvt.errors import UserError
from cvt.evaluation.answers import Logits, ModelUnderTest, class_names_of, preprocessing_of
from cvt.evaluation.scores import (
    Evaluation,
    Reliability,
    reliability,
    save_reliability,
    summarise,
)
from cvt.files import expanded
from cvt.plain import to_plain

# --- ImageNet's lists, read from inside timm's package here alone, so that one test can watch it.
#
# timm offers no function for the class lists of ImageNet-A and -R, and its reader of the ReaL
# labels insists on the names of all 50,000 files.


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Returns the WordNet numbers of ImageNet-1k's 1000 classes, in the order of every head."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def synset_words() -> tuple[frozenset[str], ...]:
    """Returns WordNet's words for each of the 1000 classes, in lower case."""
    from timm.data import ImageNetInfo

    return tuple(map(words_of, ImageNetInfo("imagenet-1k").label_descriptions()))


def words_of(class_name: str) -> frozenset[str]:
    """Returns the words that a class name such as `tench, Tinca tinca` lists, in lower case."""
    return frozenset(word.strip().lower().replace("_", " ") for word in class_name.split(","))


@cache
def subset_synsets(letter: str) -> tuple[str, ...]:
    """Returns the 200 classes of ImageNet-A or ImageNet-R (`a`, `r`), in ImageNet's order."""
    return tuple(_read(f"imagenet_{letter}_synsets.txt").split())


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """Returns the classes that fit each of ImageNet's 50,000 validation images, in file order.

    Source: Beyer et al., Are we done with ImageNet?, arXiv 2006.07159 (ReaL labels).
    """
    return tuple(map(tuple, json.loads(_read("imagenet_real_labels.json"))))


def _read(name: str) -> str:
    return (files("timm.data") / "_info" / name).read_text(encoding="utf-8")


# --- Which output of a model, and which folder of images, stands for which ImageNet class.

_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")  # 007 beside 7 would be the same class


def imagenet_outputs(class_names: Sequence[str] | None, num_outputs: int) -> Tensor:
    """Returns, for each ImageNet class in order, its position among the outputs: int64, (1000,).

    WordNet numbers are matched by name, whatever their order and whatever else the model knows.
    Words, such as `tench, Tinca tinca`, have to stand in ImageNet's order: at least half of them
    must be WordNet's for that class, because published lists differ in many names and repeat some.
    """
    synsets = imagenet_synsets()
    position = {name: index for index, name in enumerate(class_names or ())}
    missing = [synset for synset in synsets if synset not in position]
    if not missing:
        return torch.tensor([position[synset] for synset in synsets])
    if len(missing) < len(synsets):
        raise UserError(
            f"Got a model without the class {missing[0]} ({len(missing)} of ImageNet's "
            f"{len(synsets):,} are missing), expected one that has them all."
        )
    if num_outputs != len(synsets):
        raise UserError(
            f"Got a model with {num_outputs} outputs, expected the {len(synsets):,} classes of "
            "ImageNet; benchmarks are for models trained on those."
        )
    pairs = zip(class_names or (), synset_words(), strict=False)
    num_agreeing = sum(not known.isdisjoint(words_of(name)) for name, known in pairs)
    if class_names and 2 * num_agreeing < len(synsets):
        raise UserError(
            f"Got a model whose first class is {class_names[0]!r}, expected ImageNet's classes in "
            f"ImageNet's order, or their WordNet numbers such as {synsets[0]}."
        )
    return torch.arange(len(synsets))


def read_classes(
    folder: Path, title: str, synsets: Sequence[str], *, numbered: bool = False
) -> FileSet:
    """Returns the images of a folder that holds one folder for each of the given classes.

    Folders are called by WordNet number or, with `numbered`, also by position in ImageNet.
    """
    expected = f"expected {title}: a folder for each of its {len(synsets):,} classes, called "
    expected += f"0 to {len(synsets) - 1} or as in {synsets[0]}" if numbered else f"as {synsets[0]}"
    names = class_folders(folder, expected)
    label_of = {synset: index for index, synset in enumerate(synsets)}
    if numbered:
        label_of |= {name: int(name) for name in names if _NUMBER.fullmatch(name)}
    unknown = [name for name in names if not 0 <= label_of.get(name, -1) < len(synsets)]
    if unknown:
        raise UserError(f"{folder} holds a folder {unknown[0]!r}, {expected}.")
    missing = set(range(len(synsets))) - {label_of[name] for name in names}
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of the {len(synsets):,} classes of {title}, such as "
            f"{synsets[min(missing)]}; unpack the whole of it."
        )
    found = folder_splits(folder)["train"]
    labels = [label_of[found.classes[label]] for label in found.labels]
    return FileSet([found.name(index) for index in range(len(found))], labels, synsets)


def class_folders(folder: Path, expected: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted as text; hidden ones do not count."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read {folder} ({error.strerror or error}), {expected}.") from error
    names = [each.name for each in entries if each.is_dir() and not each.name.startswith(".")]
    if not names:
        raise UserError(f"{folder} holds no folders, {expected}.")
    return names


# --- ImageNet-C: fifteen corruptions at five severities, weighed against AlexNet.
#
# Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
# Perturbations, arXiv 1903.12261, section 4.

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
    """What a model is worth on corrupted images.

    Args:
        errors: Percentage of wrong top-1 answers at each severity, by corruption.
        num_images: Images that were measured: 3,750,000 in the whole set.
        bad: One sentence for each image that could not be read and was left out.
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
        means = ("mce", "mean_error", "corruption_errors", "mean_errors")
        return to_plain({**{each: getattr(self, each) for each in means}, **vars(self)}, none=False)


def find_corruptions(root: Path) -> dict[str, Path]:
    """Returns the folders of the corruptions that are there, in the paper's order.

    They lie in `root` itself or one level deeper, in the folders that the archives are named
    after (noise, blur, weather, digital). The four extra corruptions are for tuning, not for the
    benchmark, and are left alone.
    """
    expected = "expected ImageNet-C: a folder for each corruption, such as gaussian_noise"
    names = class_folders(root, expected)
    places = [root, *(root / name for name in names if name not in ALEXNET_ERRORS)]
    found = {
        corruption: place / corruption
        for corruption in ALEXNET_ERRORS
        for place in reversed(places)  # the first that has it stays
        if (place / corruption).is_dir()
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
    folders: Mapping[str, Path], ask: Callable[[ImageSet], Logits], synsets: Sequence[str]
) -> CorruptionScores:
    """Measures one severity of one corruption after the other.

    Args:
        ask: Returns a model's answers to images, (N, 1000), in ImageNet's order.
        synsets: The classes, in that order.
    """
    errors: dict[str, tuple[float, ...]] = {}
    bad: list[str] = []
    num_images = 0
    for corruption, folder in folders.items():
        each = []
        for severity in SEVERITIES:
            title = f"ImageNet-C's {corruption} of severity {severity}"
            said = ask(read_classes(folder / severity, title, synsets))
            each.append(100 - said.top_k(1))
            bad += said.bad
            num_images += len(said.labels)
        errors[corruption] = tuple(each)
    return CorruptionScores(errors=errors, num_images=num_images, bad=tuple(bad))


# --- ImageNet's validation images by their ReaL labels: every class that an image shows counts.
#
# Source: Beyer et al., Are we done with ImageNet?, arXiv 2006.07159; google-research/
# reassessed-imagenet bcd006f, README.

_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})(?:\D.*)?")


@dataclass(frozen=True, kw_only=True)
class RealScore:
    """What a model is worth by the ReaL labels, told as by `Evaluation`.

    Args:
        top1: Percentage of images whose most likely class is among their labels.
        top5: Percentage of which one of the five most likely is.
        num_images: Images that were measured: 46,837 in the whole set.
        num_excluded: Images in the folder that fit no class: 3,163 in the whole set.
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
        return to_plain(self)

    def save_reliability(self, path: str | Path) -> None:
        """Draws accuracy against confidence, with the calibration error."""
        save_reliability(Path(path), self.reliability)


def read_val_images(folder: Path) -> tuple[FileSet, int]:
    """Returns the images that have ReaL labels, and the number of those that have none.

    Images are known by their names, ILSVRC2012_val_00000001.JPEG and on; whether they lie in
    class folders does not matter. A label is an image's number, counted from 0.
    """
    labels, left_out = real_labels(), LeftOut()
    paths: dict[int, str] = {}
    for _, path in sorted(images_below([folder], left_out)):
        match = _VAL_IMAGE.fullmatch(Path(path).stem)
        if not match:
            continue
        number = int(match[1]) - 1
        if not 0 <= number < len(labels) or number in paths:
            raise UserError(
                f"Got the image {path}, expected each of ImageNet's {len(labels):,} validation "
                "images once; give the folder of those alone."
            )
        paths[number] = path
    if not paths:
        raise UserError(
            f"{folder} holds no images called like ILSVRC2012_val_00000001.JPEG, expected "
            "ImageNet's validation set; its files must keep their names."
        )
    kept = [number for number in sorted(paths) if labels[number]]
    if not kept:
        raise UserError(f"The {len(paths)} images of {folder} have no ReaL labels; add others.")
    files = [paths[number] for number in kept]
    images = FileSet(files, kept, (), unreadable=left_out.unreadable)
    return images, len(paths) - len(kept)


def score_real(said: Logits, num_excluded: int) -> RealScore:
    """Returns the figures; `said.labels` are the images' numbers, counted from 0.

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


# --- The benchmarks by name.


@dataclass(frozen=True)
class Benchmark:
    """What a set is called, and how many of its images a full measurement counts."""

    title: str
    num_images: int


BENCHMARKS = {
    "val": Benchmark("ImageNet's validation set", 50_000),
    "real": Benchmark("ImageNet's validation set with ReaL labels", 46_837),
    "v2": Benchmark("ImageNet-V2", 10_000),
    "a": Benchmark("ImageNet-A", 7_500),
    "r": Benchmark("ImageNet-R", 30_000),
    "c": Benchmark("ImageNet-C", 3_750_000),
}


def measure_benchmark(
    tested: ModelUnderTest, folder: str | Path, benchmark: str
) -> Evaluation | RealScore | CorruptionScores:
    """Measures a model with ImageNet's 1000 classes by one benchmark's own protocol."""
    folder, names = expanded(folder), class_names_of(tested.network)
    outputs = imagenet_outputs(names, tested.network.num_classes)
    preprocessing = preprocessing_of(tested.network)
    if benchmark == "c":
        preprocessing = replace(preprocessing, crop_pct=1.0)

    def ask(images: ImageSet) -> Logits:
        said = tested.answers(images, preprocessing=preprocessing)
        return replace(said, logits=said.logits[:, outputs])

    if benchmark == "c":
        return score_corruptions(find_corruptions(folder), ask, imagenet_synsets())
    if benchmark == "real":
        images, num_excluded = read_val_images(folder)
        return score_real(ask(images), num_excluded)
    synsets = subset_synsets(benchmark) if benchmark in ("a", "r") else imagenet_synsets()
    title = BENCHMARKS[benchmark].title
    said = ask(read_classes(folder, title, synsets, numbered=benchmark == "v2"))
    # Labels are positions among the benchmark's classes; only these compete.
    chosen = torch.tensor([imagenet_synsets().index(synset) for synset in synsets])
    titles = [names[index] for index in outputs[chosen].tolist()] if names else synsets
    return summarise(replace(said, logits=said.logits[:, chosen]), titles)
