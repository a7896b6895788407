"""Labelled pictures by name or path, transforms, and loaders that can stop and go on anywhere."""

from cvt.data.augment import Augment
from cvt.data.image import BadImage, open_image
from cvt.data.image_set import DataSplits, ImageSet
from cvt.data.load import eval_split, load_data, load_split
from cvt.data.loader import Batch, make_loader
from cvt.data.transforms import eval_transform, train_transform

__all__ = [
    "Augment",
    "BadImage",
    "Batch",
    "DataSplits",
    "ImageSet",
    "eval_split",
    "eval_transform",
    "load_data",
    "load_split",
    "make_loader",
    "open_image",
    "train_transform",
]
