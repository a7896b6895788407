"""Labelled images by name or path, transforms, and loaders that can stop and go on anywhere.

Names are resolved when they are first used, so that `Augment` comes without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvt.data.augment import Augment
    from cvt.data.image import BadImage, open_image
    from cvt.data.load import Selection, load_data, load_split, select
    from cvt.data.loader import (
        Batch,
        batch_names,
        dead_workers_explained,
        make_eval_loader,
        make_loader,
    )
    from cvt.data.sets import DataSplits, ImageSet
    from cvt.data.transforms import eval_transform, train_transform

_HOMES = {
    "Augment": "augment",
    "BadImage": "image",
    "Batch": "loader",
    "DataSplits": "sets",
    "ImageSet": "sets",
    "Selection": "load",
    "batch_names": "loader",
    "dead_workers_explained": "loader",
    "eval_transform": "transforms",
    "load_data": "load",
    "load_split": "load",
    "make_eval_loader": "loader",
    "make_loader": "loader",
    "open_image": "image",
    "select": "load",
    "train_transform": "transforms",
}

__all__ = [
    "Augment",
    "BadImage",
    "Batch",
    "DataSplits",
    "ImageSet",
    "Selection",
    "batch_names",
    "dead_workers_explained",
    "eval_transform",
    "load_data",
    "load_split",
    "make_eval_loader",
    "make_loader",
    "open_image",
    "select",
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
