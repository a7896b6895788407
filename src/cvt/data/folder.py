"""A folder of class folders, with or without train, val and test folders around them."""

import os
from pathlib import Path

from cvt.data.file_set import FileSet
from cvt.data.formats import SUFFIXES
from cvt.data.image_set import ImageSet
from cvt.errors import UserError

SPLIT_OF_NAME = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def folder_splits(root: Path) -> dict[str, ImageSet]:
    """Returns the splits that a folder holds; one without a `train` folder is all "train".

    Each folder of a split (or `root` itself) holds one folder per class, whose name is the class
    name. Pictures may lie deeper inside; any suffix of `cvt.data.formats` counts, hidden files and
    folders do not. Everything is sorted by name. Classes are numbered by the train folder.

    Raises:
        UserError: There are no images, no class folders, a class folder without images, a class
            that the train folder lacks, two folders for one split, or no `train` beside `val`.
    """
    folders = _split_folders(root)
    classes = tuple(folder.name for folder in _class_folders(folders["train"]))
    return {split: _read_split(folder, classes) for split, folder in folders.items()}


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes of images, in lower case and with the dot."""
    return SUFFIXES


def _split_folders(root: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_OF_NAME.get(folder.name.lower())
        if split in found:
            raise UserError(
                f"{root} holds both {found[split].name} and {folder.name}, expected one folder "
                f"for the {split} split; rename or remove one."
            )
        if split:
            found[split] = folder
    if "train" in found:
        return found
    if "val" in found:
        raise UserError(
            f"{root} holds {found['val'].name} but no train folder; add one, or give the path of "
            f"{found['val']} itself."
        )
    return {"train": root}


def _class_folders(folder: Path) -> list[Path]:
    folders = _folders(folder)
    if folders:
        return folders
    suffixes = image_suffixes()
    loose = [entry for entry in os.listdir(folder) if _is_image(entry, suffixes)]
    if loose:
        raise UserError(
            f"{folder} holds {len(loose)} loose images but no class folders; "
            "put the images of each class into a folder named after it."
        )
    raise UserError(
        f"{folder} holds no images, expected one folder of images per class; check the path."
    )


def _read_split(folder: Path, classes: tuple[str, ...]) -> FileSet:
    paths: list[str] = []
    labels: list[int] = []
    for class_folder in _class_folders(folder):
        if class_folder.name not in classes:
            raise UserError(
                f"{folder} holds a class {class_folder.name!r} that the train folder lacks; "
                "add it there or remove it here."
            )
        images = _images(class_folder)
        if not images:
            raise UserError(
                f"The class folder {class_folder} holds no images; add some or remove the folder."
            )
        paths += images
        labels += [classes.index(class_folder.name)] * len(images)
    return FileSet(paths, labels, classes)


def _folders(folder: Path) -> list[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror or error}.") from error
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path) -> list[str]:
    paths, suffixes = [], image_suffixes()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [os.path.join(root, name) for name in sorted(files) if _is_image(name, suffixes)]
    return paths


def _is_image(name: str, suffixes: frozenset[str]) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
