"""Cutting a share out of a set so that every class is on both sides."""

import numpy as np

from cvt.data.image_set import ImageSet
from cvt.errors import UserError


def stratified_split(
    images: ImageSet, fraction: float, seed: int, name: str
) -> tuple[ImageSet, ImageSet]:
    """Returns (what remains, what was cut out), both in the order of `images`.

    From a class of n pictures, `round(fraction * n)` are cut out, but at least one and never all:
    scikit-learn's split, which balances whole sets, can leave a small class out of one side.

    Args:
        fraction: Share of each class to cut out, in (0, 1).
        seed: What is drawn depends on this and the labels alone.
        name: What a message calls the data.

    Raises:
        UserError: The fraction is out of range, or a class has fewer than two pictures.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"Got a split fraction of {fraction}, expected a number between 0 and 1, such as 0.1."
        )
    random = np.random.default_rng(seed)
    is_cut = np.zeros(len(images), dtype=bool)
    for label, class_name in enumerate(images.classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise UserError(
                f"Class {class_name!r} of {name} has too few images to split: got {len(members)}, "
                "expected at least 2; add some, remove the class, or provide a validation split."
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        is_cut[random.choice(members, count, replace=False)] = True
    return images.subset(np.flatnonzero(~is_cut)), images.subset(np.flatnonzero(is_cut))
