"""Labelled images by name or path, transforms, and loaders that can stop and go on anywhere.

Names are resolved when they are first used, so that `Augment` comes without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvt.data.augment import Augment
    from cvt.data.formats import SUFFIXES
    from cvt.data.image import BadImage, open_image, opened
    from cvt.data.labels import class_positions
    from cvt.data.load import Selection, load_data, load_split, select
    from cvt.data.loader import (
        Batch,
        batch_names,
        dead_workers_explained,
        make_eval_loader,
        make_loader,
    )
    from cvt.data.order import Share, epoch_order
    from cvt.data.sets import (
        ArraySet,
        DataSplits,
        FileSet,
        ImageSet,
        Joined,
        check_labels,
        stratified_split,
    )
    from cvt.data.sources import digit_splits, folder_splits
    from cvt.data.transforms import eval_transform, train_transform
    from cvt.data.walk import find_images

_HOMES = {
    "SUFFIXES": "formats",
    "ArraySet": "sets",
    "Augment": "augment",
    "BadImage": "image",
    "Batch": "loader",
    "DataSplits": "sets",
    "FileSet": "sets",
    "ImageSet": "sets",
    "Joined": "sets",
    "Selection": "load",
    "Share": "order",
    "batch_names": "loader",
    "check_labels": "sets",
    "class_positions": "labels",
    "dead_workers_explained": "loader",
    "digit_splits": "sources",
    "epoch_order": "order",
    "eval_transform": "transforms",
    "find_images": "walk",
    "folder_splits": "sources",
    "load_data": "load",
    "load_split": "load",
    "make_eval_loader": "loader",
    "make_loader": "loader",
    "open_image": "image",
    "opened": "image",
    "select": "load",
    "stratified_split": "sets",
    "train_transform": "transforms",
}

__all__ = [
    "SUFFIXES",
    "ArraySet",
    "Augment",
    "BadImage",
    "Batch",
    "DataSplits",
    "FileSet",
    "ImageSet",
    "Joined",
    "Selection",
    "Share",
    "batch_names",
    "check_labels",
    "class_positions",
    "dead_workers_explained",
    "digit_splits",
    "epoch_order",
    "eval_transform",
    "find_images",
    "folder_splits",
    "load_data",
    "load_split",
    "make_eval_loader",
    "make_loader",
    "open_image",
    "opened",
    "select",
    "stratified_split",
    "train_transform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"cvt.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
