"""Sets of images: parts of them, and fair splits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.data import (
    ArraySet,
    Joined,
    digit_splits,
    stratified_split,
)
from cvt.errors import UserError


@pytest.fixture
def letters():
    """Five 1 x 1 images whose grey level is ten times their index."""
    images = (np.arange(5) * 10).astype(np.uint8).reshape(5, 1, 1)
    return ArraySet(images, [0, 1, 0, 1, 1], ["a", "b"], "letters")


def grey(images, index):
    return images.image(index).getpixel((0, 0))[0]


def test_array_set(letters):
    assert len(letters) == 5
    assert letters.labels.dtype == np.int64
    assert letters.name(3) == "letters image 3"
    assert letters.image(3).mode == "RGB"
    assert grey(letters, 3) == 30


def test_subset_of_a_subset(letters):
    part = letters.subset([4, 2, 0]).subset(np.array([1, 0]))
    assert part.labels.tolist() == [0, 1]
    assert [grey(part, index) for index in range(2)] == [20, 40]
    assert part.name(1) == "letters image 4"
    assert part.classes == ("a", "b")


def test_joined(letters):
    joined = Joined([letters.subset([0, 1]), letters.subset([]), letters.subset([4, 3, 2])])
    assert joined.labels.tolist() == [0, 1, 1, 1, 0]
    assert [grey(joined, index) for index in range(5)] == [0, 10, 40, 30, 20]
    assert joined.name(2) == "letters image 4"


def test_digits_are_all_there_and_split_for_good():
    splits = digit_splits()
    names = {split: [part.name(i) for i in range(len(part))] for split, part in splits.items()}
    assert {split: len(part) for split, part in names.items()} == {
        "train": 1259,
        "val": 179,
        "test": 359,
    }
    assert len(set().union(*names.values())) == 1797
    # Figures are only comparable as long as these images are the test images.
    numbers = [int(name.removeprefix("digits image ")) for name in names["test"]]
    assert numbers[:3] == [0, 7, 14]
    assert sum(numbers) == 331478
    assert splits["train"].classes == tuple("0123456789")


def test_digits_look_like_digits():
    from sklearn.datasets import load_digits

    test = digit_splits()["test"]
    number = int(test.name(0).removeprefix("digits image "))
    scan = np.asarray(test.image(0))[..., 0] / 255 * 16
    assert np.abs(scan - load_digits().images[number]).max() < 0.05
    assert test.labels[0] == load_digits().target[number]


counts = st.lists(st.integers(2, 40), min_size=1, max_size=6)


def make(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    images = np.zeros((len(labels), 1, 1), dtype=np.uint8)
    return ArraySet(images, labels, [f"c{label}" for label in range(len(counts))], "x")


def names(images):
    return [images.name(index) for index in range(len(images))]


@given(counts=counts, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_every_class_is_on_both_sides_in_proportion(counts, fraction, seed):
    images = make(counts)
    rest, cut = stratified_split(images, fraction, seed, "x")
    assert sorted(names(rest) + names(cut)) == sorted(names(images))
    for label, count in enumerate(counts):
        taken = int((cut.labels == label).sum())
        assert 1 <= taken <= count - 1
        assert abs(taken - fraction * count) <= 1


def test_the_seed_decides():
    images = make([30, 30])
    first, again, other = (names(stratified_split(images, 0.2, seed, "x")[1]) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_class_of_one_is_named():
    with pytest.raises(UserError, match=r"Class 'c1' of flowers has too few images .* got 1"):
        stratified_split(make([5, 1]), 0.1, 0, "flowers")


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match="expected a number between 0 and 1"):
        stratified_split(make([5, 5]), fraction, 0, "x")
