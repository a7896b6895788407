"""Small pictures are decoded once, whoever asks for them, and stay what they are."""

import pickle

import numpy as np
import pytest
from PIL import Image

from cvt.data import eval_transform, load_data, make_loader
from cvt.data.cache import Remembered, remembered
from cvt.data.image import BadImage
from cvt.data.sets import ArraySet, ImageSet
from cvt.weights.record import Preprocessing

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
def test_large_or_many_pictures_are_not_kept(sizes):
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
