"""A loading process that dies is one sentence, wherever the main process hears of it."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from torch.utils.data import get_worker_info

from cvt.data import dead_workers_explained, eval_transform, make_loader
from cvt.data.sets import ArraySet
from cvt.errors import UserError
from cvt.weights.record import Preprocessing

EVAL = eval_transform(Preprocessing(input_size=(3, 8, 8)))

pytestmark = [
    # Python 3.12 and newer warn about any fork of a process with threads, which torch has.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    # torch's signal handler raises wherever the main process is, also while torch itself opens a
    # temporary file, which nobody closes then, or while something of it is cleaned up.
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <Finalize object:pytest.PytestUnraisableExceptionWarning"
    ),
]


class Deadly(ArraySet):
    """Grey pictures; who loads number 9 in a process of its own meets its end."""

    def __init__(self, end):
        super().__init__(np.zeros((16, 8, 8), dtype=np.uint8), [0] * 16, ["a"], "grey")
        self.end = end

    def image(self, index):
        if index == 9 and get_worker_info() is not None:
            self.end()
        return super().image(index)


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
