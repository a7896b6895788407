"""Labelled pictures by name or path, transforms, and loaders that can stop and go on anywhere."""

from cvt.data.augment import Augment
from cvt.data.image import BadImage, open_image
from cvt.data.load import RunData, Selection, load_data, load_split, select
from cvt.data.loader import (
    Batch,
    batch_names,
    dead_workers_explained,
    make_eval_loader,
    make_loader,
)
from cvt.data.sets import DataSplits, ImageSet
from cvt.data.transforms import eval_transform, train_transform

__all__ = [
    "Augment",
    "BadImage",
    "Batch",
    "DataSplits",
    "ImageSet",
    "RunData",
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
