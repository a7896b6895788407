"""Labelled images by name or path, transforms, and loaders that can stop and go on anywhere.

Names are resolved when they are first used, so that `Augment` comes without torch.
"""

from typing import TYPE_CHECKING

from cvt.imports import lazy_door

if TYPE_CHECKING:
    from cvt.data.augment import Augment
    from cvt.data.formats import SUFFIXES
    from cvt.data.image import BadImage, open_image, opened
    from cvt.data.labels import class_positions
    from cvt.data.load import Selection, load_data, load_split, select
    from cvt.data.loader import (
        Batch,
        Share,
        batch_names,
        dead_workers_explained,
        epoch_order,
        make_eval_loader,
        make_loader,
        outermost,
    )
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

__getattr__, __dir__, __all__ = lazy_door(
    __name__,
    {
        "augment": "Augment",
        "formats": "SUFFIXES",
        "image": "BadImage open_image opened",
        "labels": "class_positions",
        "load": "Selection load_data load_split select",
        "loader": "Batch Share batch_names dead_workers_explained epoch_order make_eval_loader "
        "make_loader outermost",
        "sets": "ArraySet DataSplits FileSet ImageSet Joined check_labels stratified_split",
        "sources": "digit_splits folder_splits",
        "transforms": "eval_transform train_transform",
        "walk": "find_images",
    },
)
