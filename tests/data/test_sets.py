"""Sets of images: parts of them, fair splits, and small images that are decoded only once."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvt.data import (
    ArraySet,
    BadImage,
    ImageSet,
    Joined,
    digit_splits,
    eval_transform,
    load_data,
    make_loader,
    stratified_split,
)
from cvt.data.sets import Remembered, remembered
from cvt.errors import UserError
from cvt.weights.record import Preprocessing


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


# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Counted(ImageSet):
    """Noise of the sizes given, which counts how often it is decoded in this process."""

    def __init__(self, sizes, bad=()):
        self.sizes = sizes
        self.bad = bad
        self.classes = ("a",)
        self.labels = np.zeros(len(sizes), dtype=np.int64)
        self.asked = []

    def name(self, index):
        return f"picture {index}"

    def image(self, index):
        self.asked.append(index)
        if index in self.bad:
            raise BadImage(f"{self.name(index)} is broken.")
        width, height = self.sizes[index]
        random = np.random.default_rng(index)
        return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_each_is_decoded_once():
    images = Counted([(8, 6)] * 4)
    kept = Remembered(images, (8, 6))
    seen = [[np.asarray(kept.image(index)) for index in (2, 0, 2, 3, 0)] for _ in range(2)]
    assert images.asked == [2, 0, 3]
    plain = Counted([(8, 6)] * 4)
    for round in seen:
        for index, pixels in zip((2, 0, 2, 3, 0), round, strict=True):
            assert np.array_equal(pixels, plain.image(index))
    assert (kept.name(3), len(kept), kept.classes) == ("picture 3", 4, ("a",))


def test_what_is_given_out_can_be_changed_without_harm():
    kept = Remembered(Counted([(8, 6)]), (8, 6))
    before = np.array(kept.image(0))
    for _ in range(2):
        kept.image(0).paste((0, 0, 0), (0, 0, 8, 6))
    assert np.array_equal(kept.image(0), before)


def test_other_sizes_and_broken_ones_are_asked_for_every_time():
    images = Counted([(8, 6), (6, 8), (8, 6)], bad=[2])
    kept = remembered(images)
    assert isinstance(kept, Remembered)
    for _ in range(2):
        assert kept.image(1).size == (6, 8)
        with pytest.raises(BadImage, match="picture 2 is broken"):
            kept.image(2)
    assert images.asked == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("sizes", [[(65, 8)] * 3, [(64, 64)] * 200_000, []])
def test_large_or_many_images_are_not_kept(sizes):
    images = Counted(sizes)
    assert remembered(images) is images


def test_the_first_good_one_decides():
    assert isinstance(remembered(Counted([(9, 9)] * 3, bad=[0])), Remembered)
    hopeless = Counted([(9, 9)] * 20, bad=range(20))
    assert remembered(hopeless) is hopeless
    assert len(hopeless.asked) < 20


def test_pixels_in_memory_are_not_kept_twice(class_folder):
    whole = ArraySet(np.zeros((4, 8, 8), dtype=np.uint8), [0] * 4, ["a"], "zeros")
    part = whole.subset([1, 2])
    assert remembered(whole) is whole
    assert remembered(part) is part
    data = load_data(str(class_folder({"cat": 4, "dog": 4})))
    assert isinstance(data.train, Remembered)
    assert isinstance(data.val, Remembered)


def test_loading_processes_share_what_they_decoded():
    kept = Remembered(Counted([(8, 6)] * 12), (8, 6))
    transform = eval_transform(Preprocessing(input_size=(3, 8, 8)))
    for _ in make_loader(kept, transform, batch_size=3, shuffle=True, num_workers=2):
        pass
    assert kept.is_known.all()
    assert np.array_equal(kept.image(5), Counted([(8, 6)] * 12).image(5))


def test_a_copy_in_another_process_starts_empty():
    kept = Remembered(Counted([(8, 6)] * 3), (8, 6))
    kept.image(1)
    content = pickle.dumps(kept)
    other = pickle.loads(content)
    assert not other.is_known.any()
    assert np.array_equal(other.image(1), kept.image(1))
    assert other.is_known.tolist() == [0, 1, 0]
