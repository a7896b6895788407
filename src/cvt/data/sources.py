"""Folders of class folders, the embedded digits, and the data sets of torchvision."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
    classes = _number(splits, for_training)
    return _read(found, splits, classes, for_training)


@dataclass(frozen=True)
class _Found:
    """The folder that was given, and what there is to say about its contents."""

    root: Path
    left_out: LeftOut
    notes: list[str]


@dataclass(frozen=True)
class _ClassFolder:
    path: Path
    name: str
    label: int = -1


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


def _class_folders(folder: Path, found: _Found) -> list[_ClassFolder]:
    """Returns the class folders of a split, not numbered; none for a test split without labels."""
    members: dict[str, _ClassFolder] = {}
    for path in _folders(folder):
        name = composed(path.name)
        if not _is_text(name):
            raise UserError(
                f"The name of the class folder {path} is not in UTF-8, expected text; rename it."
            )
        if name in members:
            raise UserError(
                f"{folder} holds two folders of the same name in different Unicode forms, "
                f"{members[name].path.name!a} and {path.name!a}; put them together."
            )
        members[name] = _ClassFolder(path, name)
    if members:
        _leave_out_files(found, folder)
        return list(members.values())
    loose = len(_loose_images(folder))
    if not loose:
        raise UserError(
            f"{folder} holds no images, expected one folder of images per class; check the path."
        )
    if folder != found.root and split_of(folder.name) == "test":
        found.notes.append(
            f"There is no test split: {folder} holds {loose:,} loose images but no class folders."
        )
        return []
    raise UserError(
        f"{folder} holds {loose:,} loose images but no class folders; put the images of each class "
        "into a folder named after it."
    )


def _number(splits: dict[str, list[_ClassFolder]], for_training: bool) -> tuple[str, ...]:
    """Gives each class folder its label; returns the names of the classes."""
    classes: list[str] = []
    for split in sorted(splits, key=lambda split: split != "train"):
        members = splits[split]
        positions = class_positions([each.name for each in members], classes)
        new = [each for each, label in zip(members, positions, strict=True) if label is None]
        if new and for_training and split != "train":
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            raise UserError(
                f"{new[0].path.parent} holds a class {new[0].name!r}{more} that the train folder "
                "lacks; add it there or remove it here."
            )
        classes += [each.name for each in new]
        numbers = iter(range(len(classes) - len(new), len(classes)))
        splits[split] = [
            replace(each, label=next(numbers) if label is None else label)
            for each, label in zip(members, positions, strict=True)
        ]
    return tuple(classes)


def _read(
    found: _Found,
    splits: dict[str, list[_ClassFolder]],
    classes: tuple[str, ...],
    for_training: bool,
) -> dict[str, ImageSet]:
    """Finds the images, once each, whatever links there are between classes and splits."""
    members = [(split, each) for split, several in splits.items() for each in several]
    paths: list[list[str]] = [[] for _ in members]
    for number, path in images_below([each.path for _, each in members], found.left_out):
        paths[number].append(path)
    empty = [number for number, some in enumerate(paths) if not some]
    for number in empty if for_training else ():
        if members[number][0] == "train":
            raise _without_images(members[number][1].path, found)
    if len(empty) == len(members):
        raise _without_images(found.root, found)
    if empty:
        some = _listed(members[number][1].path for number in empty)
        found.notes.append(f"Class folders without images: {some}.")
    notes = [*found.notes, *found.left_out.sentences(found.root)]
    sets: dict[str, ImageSet] = {}
    for split in splits:
        mine = [number for number, (name, _) in enumerate(members) if name == split]
        labels = [members[number][1].label for number in mine]
        sets[split] = FileSet(
            [path for number in mine for path in paths[number]],
            np.repeat(labels, [len(paths[number]) for number in mine]),
            classes,
            notes=notes,
            unreadable=found.left_out.unreadable,
        )
    return {split: images for split, images in sets.items() if len(images)}


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


def _is_text(name: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in name)


# --- The embedded data: scikit-learn's scans of handwritten digits, with a fixed split.

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


# --- The data sets of torchvision, under timm's names.


def torchvision_splits(name: str, data_dir: Path | None, *, download: bool) -> dict[str, ImageSet]:
    """Returns the splits that the data set's authors published.

    torchvision finds, checks and fetches the files; several of its classes keep labels and paths in
    private attributes, which are read in this module alone. It unpickles CIFAR only after comparing
    it with the published MD5 sums.

    Args:
        name: A key of `TORCHVISION_SETS`, such as `torch/cifar10`.
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
    read = TORCHVISION_SETS[name]
    try:
        return read(data_dir, download)
    except UserError:
        raise
    except Exception as error:  # damaged files make torchvision raise nearly anything
        raise _not_there(name, data_dir, download, error) from error


def _not_there(name: str, data_dir: Path, download: bool, error: Exception) -> UserError:
    reason = first_line(error)
    if name == "torch/imagenet":
        return UserError(
            f"Cannot read {name} in {data_dir} ({reason}); put the archives from image-net.org "
            "there, or give the path of an unpacked folder instead of the name."
        )
    if download:
        return UserError(f"Cannot fetch {name} into {data_dir} ({reason}); check the connection.")
    return UserError(
        f"Found no complete {name} in {data_dir} ({reason}); give the right folder, or add "
        "--download to fetch it."
    )


def _cifar(kind: type[datasets.CIFAR10]) -> Callable[[Path, bool], dict[str, ImageSet]]:
    def read(root: Path, download: bool) -> dict[str, ImageSet]:
        splits: dict[str, ImageSet] = {}
        for split in ("train", "test"):
            data = kind(root, train=split == "train", download=download)
            source = f"{kind.__name__} {split}"
            splits[split] = ArraySet(data.data, data.targets, data.classes, source)
        return splits

    return read


def _flowers(root: Path, download: bool) -> dict[str, ImageSet]:
    splits: dict[str, ImageSet] = {}
    for split in ("train", "val", "test"):
        data = datasets.Flowers102(root, split=split, download=download)
        splits[split] = FileSet(list(map(str, data._image_files)), data._labels, data.classes)
    return splits


def _pets(root: Path, download: bool) -> dict[str, ImageSet]:
    splits: dict[str, ImageSet] = {}
    for split, published in {"train": "trainval", "test": "test"}.items():
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
        splits[split] = FileSet(files, labels, data.classes)
    return splits


def _imagenet(root: Path, download: bool) -> dict[str, ImageSet]:
    splits: dict[str, ImageSet] = {}
    for split in ("train", "val"):
        data = datasets.ImageNet(root, split=split)
        paths = [path for path, _ in data.samples]
        splits[split] = FileSet(paths, data.targets, [", ".join(names) for names in data.classes])
    return splits


TORCHVISION_SETS: dict[str, Callable[[Path, bool], dict[str, ImageSet]]] = {
    "torch/cifar10": _cifar(datasets.CIFAR10),
    "torch/cifar100": _cifar(datasets.CIFAR100),
    "torch/flowers102": _flowers,
    "torch/oxford_pets": _pets,
    "torch/imagenet": _imagenet,
}
