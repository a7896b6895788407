"""The embedded data: scikit-learn's real scans of handwritten digits, with a fixed split."""

import numpy as np

from cvt.data.array_set import ArraySet
from cvt.data.image_set import ImageSet
from cvt.data.split import stratified_split

# The test pictures must never change, whatever seed the training uses.
_SPLIT_SEED = 0


def digit_splits() -> dict[str, ImageSet]:
    """Returns about 70 % train, 10 % val and 20 % test of 1,797 grey scans of 8 x 8 pixels.

    The split is fixed. The scans' 17 grey levels are spread over 0..255; digits are bright on
    dark.

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
