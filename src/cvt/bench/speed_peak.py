"""The rate of large matrix products: what the arithmetic of a network is held against."""

import time

import torch

from cvt.bench.speed_clock import timed

LEAST_S = 0.3
_FEWEST = 2
_SMALLEST, _LARGEST, _LARGEST_ON_CPU = 256, 8192, 4096
_LONGEST_S = 0.5  # of a product


def matrix_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the best rate of square products in 10**9 operations a second, two a multiply-add.

    In as many threads as torch has at the moment, and in float32 at torch's set precision. The
    matrices are as large as can be multiplied in half a second, with 8192 rows at most on an
    accelerator and 4096 on a processor: where a dtype is imitated, a product takes 700 times as
    long.
    """
    largest = _LARGEST_ON_CPU if device.type == "cpu" else _LARGEST
    side = _SMALLEST
    with torch.inference_mode():
        best = _seconds(side, device, dtype)
        while side < largest and best * 8 <= _LONGEST_S:
            side *= 2
            best = _seconds(side, device, dtype)
    return 2 * side**3 / best / 1e9


def _seconds(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """Returns the shortest time of a product, after one that makes the library ready."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    found: list[float] = []
    one @ other
    begin = time.perf_counter()
    while len(found) < _FEWEST or time.perf_counter() - begin < LEAST_S:
        found.append(timed(lambda: one @ other, device))
    return min(found)
