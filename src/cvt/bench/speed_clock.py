"""Timing calls: the first one, and then many."""

import statistics
import time
from collections.abc import Callable

import torch

_FEWEST = 3
# On an accelerator calls are timed in blocks: waiting for each would be timed with it.
_BLOCK_S = 0.05
_WARM_UP_ON_DEVICE = 10


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one call, to the end of its work on the device."""
    wait_for(device)
    since = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - since


def median_seconds(
    call: Callable[[], object], device: torch.device, seconds: float
) -> tuple[float, int]:
    """Returns the median seconds of a call, and how many calls were timed.

    Calls are made for at least that many seconds, and three times at least, after one that is not
    counted (ten on an accelerator). On an accelerator the median is over blocks of calls of about
    50 ms.
    """
    length = 1
    if device.type != "cpu":
        for _ in range(_WARM_UP_ON_DEVICE):
            call()
        length = max(1, round(_BLOCK_S / max(timed(call, device), 1e-6)))
    else:
        call()

    def block() -> None:
        for _ in range(length):
            call()

    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < _FEWEST or time.perf_counter() - begin < seconds:
        found.append(timed(block, device) / length)
    return statistics.median(found), length * len(found)
