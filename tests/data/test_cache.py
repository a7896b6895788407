"""Images are decoded once, kept within bounds, and the same whether they were kept or not."""

import copy
import errno
import os
import pickle
import subprocess
import sys
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from cvt.data import Augment, BadImage, ImageSet, load_data, make_loader, train_transform
from cvt.data import cache as cache_module
from cvt.data.cache import Cache, Kept
from cvt.data.image import sized
from cvt.data.sets import ArraySet, DataSplits
from cvt.weights.record import Preprocessing

# Python 3.12 and newer warn about any fork of a process with threads, which torch has.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

TRAIN = train_transform(Preprocessing(input_size=(3, 8, 8)), Augment(scale=(0.5, 1.0)))
SIZE = 3 * 8 * 6 + 12  # bytes of an image of 8 x 6 pixels


class Counted(ImageSet):
    """Noise of the sizes given, which counts how often it is decoded in this process."""

    def __init__(self, sizes, bad=()):
        super().__init__([0] * len(sizes), ["a"])
        self.sizes, self.bad = sizes, bad
        self.asked = []

    def name(self, index):
        return f"picture {index}"

    def image(self, index, sizing=None):
        self.asked.append(index)
        if index in self.bad:
            raise BadImage(f"{self.name(index)} is broken.")
        return sized(noise(*self.sizes[index], index), sizing)


def noise(width=8, height=6, seed=0):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def epoch(images, kept=None, number=0, **how):
    loader = make_loader(images, TRAIN, batch_size=4, shuffle=True, epoch=number, kept=kept, **how)
    return list(loader)


def alike(one, other):
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) and a.bad == b.bad
        for a, b in zip(one, other, strict=True)
    )


def test_what_was_put_is_given_back_and_can_be_changed_without_harm():
    kept = Kept(3, 10_000)
    kept.put(2, noise(8, 6))
    kept.put(0, noise(5, 7))
    assert kept.get(1) is None
    for _ in range(2):
        assert np.array_equal(kept.get(2), noise(8, 6))
        assert np.array_equal(kept.get(0), noise(5, 7))
        kept.get(2).paste((0, 0, 0), (0, 0, 8, 6))
    assert not kept.why_full


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_is_decoded_once_and_training_sees_the_same(num_workers):
    sizes = [(40, 30), (30, 40), (8, 6), (1, 1), (300, 1)] * 3
    images, kept = Counted(sizes, bad=[4]), Kept(15, 1 << 20)
    for number in range(3):
        plain = epoch(Counted(sizes, bad=[4]), number=number)
        assert alike(epoch(images, kept, number, num_workers=num_workers), plain)
    assert kept.num_bytes
    here = Counted(sizes, bad=[4])  # what the loading processes decoded is there for this one
    epoch(here, kept, 3)
    assert here.asked == [4]


def test_full_is_full_and_nothing_is_lost():
    images, kept = Counted([(8, 6)] * 8), Kept(8, 3 * SIZE + 5)
    for number in range(2):
        assert alike(epoch(images, kept, number), epoch(Counted([(8, 6)] * 8), number=number))
    assert kept.num_bytes == 3 * SIZE
    assert len(images.asked) == 8 + 5
    assert kept.why_full == "as much as may be"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), 20])
def test_a_full_disk_is_not_written_to_again(failure):
    kept = Kept(4, 10_000)
    kept.put(0, noise())
    how = {"side_effect": failure} if isinstance(failure, OSError) else {"return_value": failure}
    with patch("os.pwrite", **how) as write:
        kept.put(1, noise())
        kept.put(2, noise())
    assert write.call_count == 1
    assert kept.why_full == "where the disk is full"
    assert [kept.get(index) is None for index in range(4)] == [False, True, True, True]


def test_what_the_disk_lost_is_decoded_again():
    kept = Kept(2, 10_000)
    for index in range(2):
        kept.put(index, noise(seed=index))
    os.pwrite(kept._number, b"\0\1\2", 40)
    assert kept.get(0) is None
    assert np.array_equal(kept.get(1), noise(seed=1))
    os.ftruncate(kept._number, SIZE + 20)
    assert kept.get(1) is None
    kept.put(0, noise(seed=0))
    assert np.array_equal(kept.get(0), noise(seed=0))


def test_a_process_that_died_holding_the_lock_stops_nobody():
    kept = Kept(2, 10_000)
    kept._lock.acquire()
    kept.put(0, noise())
    assert kept.get(0) is None


def test_to_a_process_that_was_not_forked_it_comes_as_none():
    kept = Kept(2, 10_000)
    assert pickle.loads(pickle.dumps(kept)) is None
    assert copy.deepcopy({"kept": kept}) == {"kept": None}


KILLED = """
import os, signal, sys
from PIL import Image
from cvt.data.cache import Kept
kept = Kept(1, 10_000)
kept.put(0, Image.new("RGB", (8, 6)))
print(kept.num_bytes, os.listdir(sys.argv[1]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_of_a_killed_process(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == f"{SIZE} []\n", ran.stderr
    assert list(tmp_path.iterdir()) == []


def splits(train=None):
    return DataSplits(name="x", train=train or Counted([(8, 6)] * 9), val=Counted([(9, 9)] * 4))


def test_a_quarter_of_what_is_free_is_shared_out():
    with patch("shutil.disk_usage") as usage:
        usage.return_value.free = 80_000
        cache = Cache(splits(), epochs=2, val_bytes=188, processes=2)
    assert (cache.val.most, cache.train.most) == (800, 9200)


def test_of_one_epoch_and_of_pixels_in_memory_nothing_is_kept(class_folder):
    whole = ArraySet(np.zeros((4, 8, 8), dtype=np.uint8), [0] * 4, ["a"], "zeros")
    for given, epochs in ((splits(), 1), (splits(whole), 9), (splits(whole.subset([1])), 9)):
        cache = Cache(given, epochs, 192, 1)
        assert (cache.train, cache.val, cache.news()) == (None, None, None)
    data = load_data(str(class_folder({"cat": 4, "dog": 4})))
    assert Cache(data, 2, 192, 1).train is not None


def test_without_a_temporary_folder_training_goes_on():
    with patch("tempfile.TemporaryFile", side_effect=OSError("read-only")):
        cache = Cache(splits(), 2, 192, 1)
    assert (cache.train, cache.val, cache.news()) == (None, None, None)


def test_it_is_said_once_what_is_kept(monkeypatch):
    monkeypatch.setattr(cache_module, "MOST_BYTES", 2 * SIZE)
    cache = Cache(splits(), 2, 0, 1)
    for index in range(2):
        assert cache.news() is None
        cache.train.put(index, noise())
    said = cache.news()
    assert "as much as may be; the others are decoded every time" in said
    assert cache.news() is None
    monkeypatch.setattr(cache_module, "_SAID_FROM", SIZE)
    monkeypatch.setattr(cache_module, "MOST_BYTES", 1 << 20)
    cache = Cache(splits(), 2, 0, 1)
    cache.train.put(0, noise())
    assert cache.news().endswith(f"0.0 GB in {cache.folder}.")
