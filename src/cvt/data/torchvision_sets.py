"""The data sets of torchvision, under the names that timm gives them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision import datasets

from cvt.data.array_set import ArraySet
from cvt.data.file_set import FileSet
from cvt.data.image_set import ImageSet
from cvt.errors import UserError, did_you_mean
from cvt.files import file_inside


def torchvision_splits(name: str, data_dir: Path | None, *, download: bool) -> dict[str, ImageSet]:
    """Returns the splits that the data set's authors published.

    torchvision finds, checks and fetches the files; several of its classes keep labels and paths
    in private attributes, all of which are read in this module. What it unpickles of CIFAR it has
    compared with the published MD5 sums before, fetched or not.

    Args:
        name: A key of `TORCHVISION_SETS`, such as `torch/cifar10`.
        data_dir: torchvision's `root`: the folder that holds, or will hold, the data set's own.
        download: Fetch what is not there yet; ImageNet has to be fetched by hand.

    Raises:
        UserError: The name is unknown, `data_dir` is missing, or the files are not there and
            cannot be fetched.
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
    reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
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
