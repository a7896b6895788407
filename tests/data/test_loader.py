"""Batches depend on (seed, epoch) alone; a bad image, or a dead process, costs only itself."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from cvt.data import (
    ArraySet,
    Augment,
    BadImage,
    Batch,
    dead_workers_explained,
    eval_transform,
    folder_splits,
    make_loader,
    train_transform,
)
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

PREPROCESSING = Preprocessing(input_size=(3, 16, 16))
TRAIN = train_transform(PREPROCESSING, Augment())
EVAL = eval_transform(PREPROCESSING)

pytestmark = [
    # Python 3.12 and newer warn about any fork of a process with threads, which torch has.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    # torch's signal handler raises wherever the main process is, also while torch itself opens a
    # temporary file, which nobody closes then, and in what cleans up, such as hypothesis' callback.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"
    ),
]

INTERRUPTED = """
import signal

import numpy as np
from cvt.data import eval_transform, make_loader
from cvt.data.sets import ArraySet
from cvt.weights.record import Preprocessing

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignore"
images = ArraySet(np.zeros((100_000, 8, 8), dtype=np.uint8), [0] * 100_000, ["a"], "zeros")
transform = eval_transform(Preprocessing(input_size=(3, 16, 16)))
try:
    for number, _ in enumerate(
        make_loader(images, transform, batch_size=8, shuffle=False, num_workers=2)
    ):
        if number == 0:
            print("loading", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Patchy(ArraySet):
    """Noise, of which some images are broken."""

    def __init__(self, count, bad=()):
        images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        super().__init__(images, np.arange(count) % 3, "abc", "noise")
        self.bad = bad

    def image(self, index, sizing=None):
        if index in self.bad:
            raise BadImage(f"{self.name(index)} is broken.")
        return super().image(index, sizing)


def batches(images=None, transform=TRAIN, **options) -> list[Batch]:
    given = {"batch_size": 4, "shuffle": True, **options}
    return list(make_loader(Patchy(22) if images is None else images, transform, **given))


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
        and a.bad == b.bad
        for a, b in zip(first, second, strict=True)
    )


def order(batches):
    return torch.cat([batch.indices for batch in batches]).tolist()


def test_a_batch():
    first = batches(transform=EVAL, shuffle=False)[0]
    assert first.images.shape == (4, 3, 16, 16)
    assert (first.images.dtype, first.labels.dtype) == (torch.float32, torch.int64)
    assert first.labels.tolist() == [0, 1, 2, 0]
    assert first.indices.tolist() == [0, 1, 2, 3]
    assert torch.equal(first.images[2], EVAL(Patchy(22).image(2)))


def test_every_image_once():
    assert sorted(order(batches())) == list(range(22))
    assert [len(batch.labels) for batch in batches()] == [4, 4, 4, 4, 4, 2]
    assert [len(batch.labels) for batch in batches(drop_last=True)] == [4] * 5


def test_without_shuffling_the_order_is_the_sets():
    assert order(batches(shuffle=False)) == list(range(22))


def test_the_same_seed_and_epoch_give_the_same():
    assert equal(batches(seed=1, epoch=2), batches(seed=1, epoch=2))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 3}])
def test_another_seed_or_epoch_gives_another_order_and_other_crops(other):
    given = {"seed": 1, "epoch": 2}
    assert order(batches(**given)) != order(batches(**{**given, **other}))
    still = [batches(shuffle=False, **options)[0] for options in (given, {**given, **other})]
    assert not torch.equal(still[0].images, still[1].images)


def test_what_happens_to_an_image_does_not_depend_on_its_neighbours():
    shuffled = batches()
    small = dict(zip(order(shuffled), torch.cat([b.images for b in shuffled]), strict=True))
    large = batches(batch_size=22, shuffle=False)[0].images
    assert all(torch.equal(image, large[index]) for index, image in small.items())


@pytest.mark.parametrize("start", [0, 1, 3, 6, 9])
def test_starting_in_the_middle(start):
    assert equal(batches(start_batch=start), batches()[start:])


def test_skipped_batches_are_not_loaded():
    skipped = order(batches()[:3])
    assert all(not batch.bad for batch in batches(Patchy(22, bad=skipped), start_batch=3))


def test_workers_change_nothing():
    here = batches(Patchy(22, bad=(5, 6)), seed=3)
    assert equal(here, batches(Patchy(22, bad=(5, 6)), seed=3, num_workers=2))
    assert equal(here[2:], batches(Patchy(22, bad=(5, 6)), seed=3, num_workers=1, start_batch=2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_generators_are_left_alone(num_workers):
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(1))

    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)
    expected = [draw(), draw()]
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)
    got = [draw()]
    batches(num_workers=num_workers)
    assert [*got, draw()] == expected


def test_a_bad_image_is_named_and_moves_no_other():
    good, bad = batches(), batches(Patchy(22, bad=(7, 20)))
    assert sorted(sentence for batch in bad for sentence in batch.bad) == [
        "noise image 20 is broken.",
        "noise image 7 is broken.",
    ]
    for whole, part in zip(good, bad, strict=True):
        kept = [place for place, index in enumerate(whole.indices.tolist()) if index not in (7, 20)]
        assert torch.equal(part.images, whole.images[kept])
        assert torch.equal(part.labels, whole.labels[kept])
        assert len(part.bad) == len(whole.labels) - len(kept)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_of_bad_images_is_empty(num_workers):
    first, second = batches(Patchy(6, bad=range(4)), shuffle=False, num_workers=num_workers)
    assert first.images.shape == (0, 3, 16, 16)
    assert first.labels.shape == first.indices.shape == (0,)
    assert (first.labels.dtype, first.indices.dtype) == (torch.int64, torch.int64)
    assert len(first.bad) == 4
    assert second.indices.tolist() == [4, 5]


def test_broken_files_among_good_ones(class_folder):
    root = class_folder({"cat": 3, "dog": 3})
    (root / "cat" / "001.png").write_bytes(b"")
    (root / "dog" / "002.png").write_bytes((root / "dog" / "000.png").read_bytes()[:50])
    (only,) = batches(folder_splits(root)["train"], EVAL, shuffle=False, batch_size=9)
    assert only.labels.tolist() == [0, 0, 1, 1]
    assert "001.png is empty" in only.bad[0]
    assert "002.png is cut short" in only.bad[1]


def test_other_errors_are_not_swallowed():
    def broken(image):
        raise RuntimeError("a mistake in the transform")

    with pytest.raises(RuntimeError, match="a mistake in the transform"):
        batches(transform=broken)


@pytest.mark.parametrize("name", ["seed", "epoch", "start_batch", "num_workers"])
def test_negative_numbers(name):
    with pytest.raises(UserError, match=f"Got {name} -1, expected 0 or more"):
        batches(**{name: -1})


def test_batch_size():
    with pytest.raises(UserError, match="Got batch_size 0"):
        batches(batch_size=0)
    with pytest.raises(UserError, match="Got 22 images and batch_size 23"):
        batches(batch_size=23, drop_last=True)


def test_orders_are_fair():
    """Over many epochs, each image comes first about equally often, and epochs are unrelated."""
    loaders = (
        make_loader(Patchy(5), EVAL, batch_size=5, shuffle=True, epoch=e) for e in range(200)
    )
    orders = [next(iter(loader.batches)) for loader in loaders]
    firsts = np.bincount([each[0] for each in orders], minlength=5)
    assert firsts.min() > 20
    assert sum(a == b for a, b in pairwise(orders)) < 10


def test_an_interrupt_ends_the_workers_in_silence(tmp_path):
    """Ctrl-C reaches the whole process group, as it does on a terminal."""
    script = tmp_path / "run.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen(
        [sys.executable, script],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


@pytest.mark.gpu
def test_batches_are_pinned_for_a_gpu():
    assert batches()[0].images.is_pinned()


class Deadly(ArraySet):
    """Grey images; who loads number 9 in a process of its own meets its end."""

    def __init__(self, end):
        super().__init__(np.zeros((16, 8, 8), dtype=np.uint8), [0] * 16, ["a"], "grey")
        self.end = end

    def image(self, index, sizing=None):
        if index == 9 and get_worker_info() is not None:
            self.end()
        return super().image(index, sizing)


def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


@pytest.mark.parametrize("end", [kill_me, leave])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_that_dies(end, num_workers):
    loader = make_loader(Deadly(end), EVAL, batch_size=4, shuffle=False, num_workers=num_workers)
    said = r"^A loading process died \([^)\n]+\), most.* fewer --num"
    with pytest.raises(UserError, match=said) as held:
        list(loader)
    assert not multiprocessing.active_children()
    assert held.tb is not None  # what refers to the iterator, and would keep the others alive


def test_a_worker_that_dies_while_the_main_process_computes():
    """torch raises from a signal handler, here in the middle of a sleep."""
    batches = iter(make_loader(Deadly(kill_me), EVAL, batch_size=4, shuffle=False, num_workers=1))
    with pytest.raises(UserError, match="A loading process died"), dead_workers_explained():
        compute_after_a_batch(batches)


def compute_after_a_batch(batches):
    next(batches)
    time.sleep(20)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="out of memory"), dead_workers_explained():
        raise RuntimeError("CUDA out of memory")


def test_a_set_that_needs_no_worker_has_none_to_lose():
    batches = list(make_loader(Deadly(kill_me), EVAL, batch_size=4, shuffle=False))
    assert len(batches) == 4


def test_more_workers_than_cores_are_the_users_choice():
    """Warnings are errors here, and torch has one for this."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not tie processes to cores")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        loader = make_loader(Deadly(int), EVAL, batch_size=4, shuffle=False, num_workers=2)
        assert len(list(loader)) == 4
    finally:
        os.sched_setaffinity(0, cores)
