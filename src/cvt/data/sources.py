"""Folders of class folders, the embedded digits, and the data sets of torchvision."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
from torchvision import datasets

from cvt.data.labels import class_positions, composed
from cvt.data.sets import ArraySet, FileSet, ImageSet, stratified_split
from cvt.data.walk import LOOSE, LeftOut, files_in, images_below, is_hidden
from cvt.errors import UserError, did_you_mean, first_line
from cvt.files import file_inside

SPLIT_OF_NAME = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_SPLIT_NAME = re.compile(
    rf"({'|'.join(SPLIT_OF_NAME)})(?:[ _.-]?(?:set|data|dataset|split|images))?(?:[ _.-]?\d{{4}})?"
)
_SHOWN = 3


def split_of(name: str) -> str | None:
    """Returns the split that a folder or file is named after: "train", "val", "test" or None.

    `Training`, `test_set`, `valid` and `val2017` name splits; `trainer` and `my_train` do not.
    """
    found = _SPLIT_NAME.fullmatch(name.lower())
    return SPLIT_OF_NAME[found[1]] if found else None


def split_words(name: str) -> list[str]:
    """Returns the splits that words anywhere in a name stand for, in their order."""
    words = re.split(r"[^a-z]+", name.lower())
    return [SPLIT_OF_NAME[word] for word in words if word in SPLIT_OF_NAME]


def folder_splits(root: Path, *, for_training: bool = True) -> dict[str, ImageSet]:
    """Returns the splits that a folder holds; one without folders of splits is all "train".

    Each folder of a split (or `root` itself) holds one folder per class, whose name, in Unicode's
    composed form, is the class name. Images may lie deeper inside; `cvt.data.walk` decides which
    files count. The train folder numbers the classes, and those of other splits are matched by name
    (`class_positions`). A test folder of loose images, which have no labels, is no split. The
    `notes` of the splits say what is not used.

    Args:
        for_training: There has to be a train folder, with images in each of its class folders, and
            no other split may have classes that it lacks. Otherwise neither matters.
    """
    found = _Found(root, LeftOut(), [])
    folders = _split_folders(found)
    if for_training and "train" not in folders:
        some = folders.get("val") or folders["test"]
        raise UserError(
            f"{root} holds {some.name} but no train folder; add one, or give the path of {some} "
            "itself."
        )
    splits = {split: _class_folders(folder, found) for split, folder in folders.items()}
    splits = {split: members for split, members in splits.items() if members}
    return _read(found, splits, for_training)


@dataclass(frozen=True)
class _Found:
    """The folder that was given, and what there is to say about its contents."""

    root: Path
    left_out: LeftOut
    notes: list[str]


def _split_folders(found: _Found) -> dict[str, Path]:
    """Returns the folder of each split; `root` itself is train if no folder is called like one."""
    root = found.root
    folders = _folders(root)
    named = [each for each in folders if split_of(each.name)]
    if not named:
        _refuse_splits_inside(root, folders)
        return {"train": root}
    unnamed = [each for each in folders if each not in named]
    others = [each for each in unnamed if _holds_images(each)]
    if others and len(named) == 1:
        if split_of(named[0].name) == "train" and _loose_images(named[0]):
            found.notes.append(f"{named[0]} is taken for a class, as its images lie loose in it.")
            return {"train": root}
        raise UserError(
            f"{root} holds the folder {named[0].name}, which is called like a split, beside "
            f"{_listed(others)}, which cannot be one; move what is no split out of {root}, or "
            f"rename {named[0].name} if it is a class."
        )
    if unnamed:
        found.notes.append(f"Not used, being called like no split: {_listed(unnamed)} in {root}.")
    _leave_out_files(found, root)
    splits: dict[str, Path] = {}
    for folder in named:
        split = split_of(folder.name) or ""
        if split in splits:
            raise UserError(
                f"{root} holds both {splits[split].name} and {folder.name}, expected one folder "
                f"for the {split} split; rename or remove one."
            )
        splits[split] = folder
    return splits


def _refuse_splits_inside(root: Path, folders: Sequence[Path]) -> None:
    """Refuses folders that would be taken for classes but look like splits."""
    grouping = [each for each in folders if not _loose_images(each, most=1)]
    words = {each: set(split_words(each.name)) for each in grouping}
    if len(grouping) == len(folders) and len(set().union(*words.values())) > 1:
        raise UserError(
            f"{root} holds folders that look like splits: "
            f"{_listed(each for each in grouping if words[each])}; call them train, val and test, "
            "or give the path of one of them."
        )
    for folder in grouping:
        inner = [each for each in _folders(folder, must_read=False) if _holds_images(each)]
        if inner and all(split_of(each.name) for each in inner):
            do = f"put them the other way round, such as {root / inner[0].name / folder.name}"
            if len(folders) == 1:  # an archive unpacked into a folder of its own
                do = f"give the path of {folder}, if its folders are splits"
            raise UserError(
                f"{folder} holds {_listed(inner)}, which are called like splits, expected splits "
                f"around the classes; {do}."
            )


def _class_folders(folder: Path, found: _Found) -> dict[str, Path]:
    """Returns the folders of a split by class names; none for a test split without labels."""
    members: dict[str, Path] = {}
    for path in _folders(folder):
        name = composed(path.name)
        if any("\ud800" <= each <= "\udfff" for each in name):
            raise UserError(
                f"The name of the class folder {path} is not in UTF-8, expected text; rename it."
            )
        if name in members:
            raise UserError(
                f"{folder} holds two folders of the same name in different Unicode forms, "
                f"{members[name].name!a} and {path.name!a}; put them together."
            )
        members[name] = path
    if members:
        _leave_out_files(found, folder)
        return members
    loose = len(_loose_images(folder))
    if not loose:
        raise UserError(
            f"{folder} holds no images, expected one folder of images per class; check the path."
        )
    if folder != found.root and split_of(folder.name) == "test":
        found.notes.append(
            f"There is no test split: {folder} holds {loose:,} loose images but no class folders."
        )
        return {}
    raise UserError(
        f"{folder} holds {loose:,} loose images but no class folders; put the images of each class "
        "into a folder named after it."
    )


def _numbered(
    splits: dict[str, dict[str, Path]], for_training: bool
) -> tuple[list[str], dict[Path, int]]:
    """Returns the names of the classes, and the label of each class folder."""
    classes: list[str] = []
    labels: dict[Path, int] = {}
    for split in sorted(splits, key="train".__ne__):
        folders = splits[split]
        positions = class_positions(list(folders), classes)
        new = [name for name, label in zip(folders, positions, strict=True) if label is None]
        if new and for_training and split != "train":
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            raise UserError(
                f"{folders[new[0]].parent} holds a class {new[0]!r}{more} that the train folder "
                "lacks; add it there or remove it here."
            )
        numbers = count(len(classes))
        for path, label in zip(folders.values(), positions, strict=True):
            labels[path] = next(numbers) if label is None else label
        classes += new
    return classes, labels


def _read(
    found: _Found, splits: dict[str, dict[str, Path]], for_training: bool
) -> dict[str, ImageSet]:
    """Finds the images, once each, whatever links there are between classes and splits."""
    classes, labels = _numbered(splits, for_training)
    images: dict[Path, list[str]] = {folder: [] for folder in labels}
    ordered = [folder for folders in splits.values() for folder in folders.values()]
    for number, path in images_below(ordered, found.left_out):
        images[ordered[number]].append(path)
    empty = [folder for folder in ordered if not images[folder]]
    if for_training and (needed := [each for each in splits["train"].values() if each in empty]):
        raise _without_images(needed[0], found)
    if len(empty) == len(ordered):
        raise _without_images(found.root, found)
    if empty:
        found.notes.append(f"Class folders without images: {_listed(empty)}.")
    notes = [*found.notes, *found.left_out.sentences(found.root)]
    told = {"notes": notes, "unreadable": found.left_out.unreadable}
    sets: dict[str, ImageSet] = {}
    for split, folders in splits.items():
        paths = [path for folder in folders.values() for path in images[folder]]
        each = [labels[folder] for folder in folders.values() for _ in images[folder]]
        if paths:
            sets[split] = FileSet(paths, each, classes, **told)
    return sets


def _without_images(folder: Path, found: _Found) -> UserError:
    if found.left_out.unreadable:
        return UserError(f"{found.left_out.unreadable[0].rstrip('.')}; make it readable.")
    if folder.is_symlink():
        return UserError(
            f"The class folder {folder} is a link to {os.path.realpath(folder)}, whose images are "
            "there already; remove the link."
        )
    told = " ".join(found.left_out.sentences(found.root))
    return UserError(
        f"The class folder {folder} holds no images; add some or remove the folder. {told}".rstrip()
    )


def _folders(folder: Path, *, must_read: bool = True) -> list[Path]:
    """Returns the folders in a folder, sorted by name, without hidden ones."""
    try:
        entries = [each for each in folder.iterdir() if not is_hidden(each.name)]
    except OSError as error:
        if not must_read:
            return []
        raise UserError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error
    return sorted(each for each in entries if os.path.isdir(each))


def _holds_images(folder: Path) -> bool:
    return any(True for _ in images_below([folder], LeftOut()))


def _loose_images(folder: Path, most: int | None = None) -> list[str]:
    """Returns up to `most` images that lie in a folder itself."""
    try:
        return list(islice((path for path, kind in files_in(folder) if kind is None), most))
    except OSError:
        return []


def _leave_out_files(found: _Found, folder: Path) -> None:
    """Counts the files beside class folders, or beside those of splits, as not used."""
    try:
        for path, kind in files_in(folder):
            found.left_out.add(kind or LOOSE, path)
    except OSError as error:
        found.left_out.add_unreadable(str(folder), error)


def _listed(folders: Iterable[Path]) -> str:
    names = [each.name for each in folders]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# The test images must never change, whatever seed the training uses.
_SPLIT_SEED = 0


def digit_splits() -> dict[str, ImageSet]:
    """Returns about 70 % train, 10 % val and 20 % test of 1,797 grey scans of 8 x 8 pixels.

    The split is fixed. The scans' 17 grey levels are spread over 0..255; digits are bright on dark.

    Source: the test part of UCI's "Optical Recognition of Handwritten Digits", as shipped with
    scikit-learn.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = np.round(scans.images * (255 / 16)).astype(np.uint8)
    classes = [str(digit) for digit in scans.target_names]
    everything = ArraySet(images, scans.target, classes, "digits")
    rest, test = stratified_split(everything, 0.2, _SPLIT_SEED, "digits")
    train, val = stratified_split(rest, 0.125, _SPLIT_SEED, "digits")
    return {"train": train, "val": val, "test": test}


def torchvision_splits(name: str, data_dir: Path | None, *, download: bool) -> dict[str, ImageSet]:
    """Returns the splits that the data set's authors published.

    torchvision finds, checks and fetches the files; several of its classes keep labels and paths in
    private attributes, which are read in this module alone. It unpickles CIFAR only after comparing
    it with the published MD5 sums.

    Args:
        data_dir: torchvision's `root`: the folder that holds, or will hold, the data set's own.
        download: Fetch what is missing; ImageNet has to be fetched by hand.
    """
    if name not in TORCHVISION_SETS:
        hint = did_you_mean(name, TORCHVISION_SETS)
        raise UserError(
            f"Unknown data set {name!r}, expected one of {', '.join(TORCHVISION_SETS)}.{hint}"
        )
    if data_dir is None:
        raise UserError(f"{name} needs the folder that holds its files; give it as --data-dir.")
    read, splits = TORCHVISION_SETS[name]
    try:
        return {split: read(data_dir, split, download) for split in splits}
    except UserError:
        raise
    except Exception as error:  # damaged files make torchvision raise nearly anything
        reason = first_line(error)
        what, do = (
            f"Found no complete {name} in {data_dir}",
            "give the right folder, or add --download to fetch it",
        )
        if download:
            what, do = f"Cannot fetch {name} into {data_dir}", "check the connection"
        if name == "torch/imagenet":
            what = f"Cannot read {name} in {data_dir}"
            do = (
                "put the archives from image-net.org there, or give the path of an unpacked folder "
                "instead of the name"
            )
        raise UserError(f"{what} ({reason}); {do}.") from error


_Reader = Callable[[Path, str, bool], ImageSet]  # of the folder, the split, and whether to fetch


def _cifar(kind: type[datasets.CIFAR10]) -> _Reader:
    def read(root: Path, split: str, download: bool) -> ImageSet:
        data = kind(root, train=split == "train", download=download)
        return ArraySet(data.data, data.targets, data.classes, f"{kind.__name__} {split}")

    return read


def _flowers(root: Path, split: str, download: bool) -> ImageSet:
    data = datasets.Flowers102(root, split=split, download=download)
    return FileSet(list(map(str, data._image_files)), data._labels, data.classes)


def _pets(root: Path, split: str, download: bool) -> ImageSet:
    published = {"train": "trainval"}.get(split, split)
    data = datasets.OxfordIIITPet(root, split=published, download=download)
    folder = data._images_folder
    # The names are read from a text file that nobody has checked.
    files = [str(file_inside(folder, str(path.relative_to(folder)))) for path in data._images]
    labels = np.array(data._labels)
    if not ((labels >= 0) & (labels < len(data.classes))).all():
        raise UserError(
            f"The list {published}.txt in {root} has a label outside of 1 to "
            f"{len(data.classes)}, the number of its classes; fetch it again."
        )
    return FileSet(files, labels, data.classes)


def _imagenet(root: Path, split: str, download: bool) -> ImageSet:
    data = datasets.ImageNet(root, split=split)
    paths = [path for path, _ in data.samples]
    return FileSet(paths, data.targets, [", ".join(names) for names in data.classes])


TORCHVISION_SETS: dict[str, tuple[_Reader, tuple[str, ...]]] = {
    "torch/cifar10": (_cifar(datasets.CIFAR10), ("train", "test")),
    "torch/cifar100": (_cifar(datasets.CIFAR100), ("train", "test")),
    "torch/flowers102": (_flowers, ("train", "val", "test")),
    "torch/oxford_pets": (_pets, ("train", "test")),
    "torch/imagenet": (_imagenet, ("train", "val")),
}
