"""The split is stratified, complete, without overlap, and depends on its seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.data.sets import ArraySet, stratified_split
from cvt.errors import UserError

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
