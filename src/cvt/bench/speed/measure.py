"""One measurement: a model in a form, at a setting, in the process at hand."""

import ctypes
import gc
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvt.bench.speed.facts import TORCH_DTYPES, channels_of, judge, read_pictures
from cvt.bench.speed.forms import FORMS, Wish, named_form
from cvt.bench.speed.models import build
from cvt.errors import UserError
from cvt.parts.model import VisionModel
from cvt.runtime import autocast
from cvt.zoo.create import create_model

# --- Timing calls: the first one, and then many.

_FEWEST_CALLS = 3
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
    while len(found) < _FEWEST_CALLS or time.perf_counter() - begin < seconds:
        found.append(timed(block, device) / length)
    return statistics.median(found), length * len(found)


# --- How much memory is taken above what was there at a certain moment.

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MB = 2**20


class MemoryMeter:
    """Measures from the moment that it is made; all in MB of 2**20 bytes.

    On CUDA it is what tensors take. On the CPU it is the process's resident memory: on Linux the
    kernel's own high-water mark, which can be taken down again, elsewhere what the process's peak
    has grown by, which misses what stays under an earlier peak.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        _settle()
        self._start = _used_mb(device)

    def forget_peak(self) -> None:
        """Makes `peak_mb` look only at what comes from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu" and _CLEAR.exists():
            _CLEAR.write_text("5")  # see proc_pid_clear_refs(5)

    def peak_mb(self) -> float:
        """Returns the most that was taken above the start."""
        return max(_peak_mb(self.device) - self._start, 0.0)


def _used_mb(device: torch.device) -> float:
    """Returns what is taken at this moment; where only a peak can be had, that."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MB
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / _MB
    return _status("VmRSS") or _peak_mb(device)


def _settle() -> None:
    """Gives back what is free, so that it does not hide what is taken next."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # glibc keeps the pages of a model that is gone


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MB
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / _MB
    if peak := _status("VmHWM"):
        return peak
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MB if sys.platform == "darwin" else 1024)


def _status(field: str) -> float:
    """Returns one of the kernel's figures of this process; 0 where it has none."""
    if not _STATUS.exists():
        return 0.0
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    return 0.0


# --- The rate of large matrix products: what the arithmetic of a network is held against.

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


SEED = 0
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|[Oo]ut of memory|bad_alloc")
_NOISE = re.compile(r"^\[enforce fail[^\]]*\] err == 0\. ")  # where in torch it was noticed
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def measure(
    *,
    model: str,
    form: str,
    dtype: str,
    task: str,
    device: str,
    threads: int,
    image_size: int,
    batch_size: int,
    seconds: float,
    cache: str,
    calibration: str | None = None,
) -> dict[str, Any]:
    """Times a model on random images; meant for a process of its own.

    Inference is a call in eval mode without gradients. A training step is zero_grad, a forward
    pass in training mode, cross-entropy with random labels, backward, and AdamW; as in `cvt train`
    weights are float32, and other dtypes mean autocast, with a loss scale for fp16.

    Args:
        seconds: How long to time at least.
        cache: A folder for what is compiled.
        calibration: Pictures, for int8 and for what it and other dtypes are compared on.

    Returns:
        `images_per_s` at the median call; `calls` that were timed; `prepare_s` that making the
        form took, and `first_call_s` that the first call took after that; `memory_mb`, the most
        that was taken in the timed calls above the ready model; and `peak_gflops`, the rate of
        large matrix products in the same dtype and threads, None for int8. With pictures, for
        inference of our models in another dtype than float32, also what `speed_pictures.judge`
        returns.

    Raises:
        UserError: No memory is left, or the model returns no logits to learn from.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    place = torch.device(device)
    with _memory_told():
        network = build(model, image_size).to(place)
        shape = (batch_size, channels_of(network), image_size, image_size)
        if task == "training":
            figures = _train(network, shape, form, dtype, place, seconds)
        else:
            figures = _infer(network, shape, model, form, dtype, place, seconds, calibration)
        peak = None if dtype == "int8" else matrix_gflops(place, TORCH_DTYPES[dtype])
    return {**figures, "peak_gflops": peak}


@contextmanager
def _memory_told() -> Generator[None]:
    """Turns the several ways in which memory runs out into one sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(f"Out of memory: {str(error) or 'Python got no more'}") from error
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)) is None:
            raise
        said = _NOISE.sub("", str(error))
        raise UserError(f"Out of memory: {said}") from error


def die_first() -> None:
    """Has Linux end this process, and not another one, when the machine's memory runs out."""
    with suppress(OSError):  # another system, or not ours to say
        _OOM_SCORE.write_text("1000")


def logits_of(answer: Any) -> tuple[Tensor, ...]:
    """Returns the logits (B, K) in what a model returned: one tensor, or one a classifier.

    Raises:
        UserError: There are none.
    """
    answer = getattr(answer, "logits", answer)
    found = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
    if not found or not all(isinstance(each, Tensor) and each.ndim == 2 for each in found):
        raise UserError(
            f"The model returned {type(answer).__name__}, expected logits (batch, classes) to "
            "learn from; time its inference only."
        )
    return found


def _infer(
    network: nn.Module,
    shape: tuple[int, ...],
    model: str,
    form: str,
    dtype: str,
    device: torch.device,
    seconds: float,
    calibration: str | None,
) -> dict[str, Any]:
    calibrating, judging = None, None
    is_ours = isinstance(network, VisionModel)
    if calibration is not None and dtype != "float32" and (is_ours or dtype == "int8"):
        calibrating, judging = read_pictures(network, calibration, shape[-1])
    name = named_form(form)
    wish = Wish(
        dtype=TORCH_DTYPES[dtype], device=device, without=name.left_out(), images=calibrating
    )
    since = time.perf_counter()
    ready = name.entry.infer(network.eval(), wish)
    prepare_s = time.perf_counter() - since
    images = torch.randn(shape).to(device, ready.dtype)
    with torch.inference_mode():
        figures = _times(lambda: ready.call(images), shape[0], device, seconds)
        if judging is not None:
            torch.manual_seed(SEED)  # the same weights, where they are fresh
            reference = build(model, shape[-1]).to(device).eval()
            figures |= judge(reference, ready, judging, shape[0], device)
    return {"prepare_s": prepare_s, **figures}


def _train(
    network: nn.Module,
    shape: tuple[int, ...],
    form: str,
    dtype: str,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    network.train()
    make = named_form(form).entry.train
    assert make is not None
    images, labels = torch.randn(shape).to(device), torch.randint(2**20, shape[:1]).to(device)
    call = make(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, dtype):
            loss = torch.stack(
                [
                    nn.functional.cross_entropy(logits, labels % logits.shape[1])
                    for logits in logits_of(call(images))
                ]
            ).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return {"prepare_s": 0.0, **_times(step, shape[0], device, seconds)}


def _times(
    call: Callable[[], object],
    batch_size: int,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    meter = MemoryMeter(device)
    first = timed(call, device)
    meter.forget_peak()
    median, calls = median_seconds(call, device, seconds)
    return {
        "images_per_s": batch_size / median,
        "calls": calls,
        "first_call_s": first,
        "memory_mb": meter.peak_mb(),
    }


# --- Networks that take turns in one process, as `cvt compare` times them.

TAKE_TURNS = f"{__name__}:take_turns"
_TURNS, _TURN_S = 7, 0.2

Clock = Callable[[Callable[[], object], torch.device, float], tuple[float, int]]


def take_turns(plain: Mapping[str, Any], clock: Clock = median_seconds) -> dict[str, float]:
    """Times inference of several networks, and returns the median images/s of each by its label.

    They take turns, seven times over, so that whatever else the machine does meanwhile meets all
    of them alike. One that has no room in the GPU's memory is left out. Weights are fresh: speed
    does not depend on them.

    Args:
        plain: `models` by label, each as `create_model` takes it (`model`, `model_args`);
            `image_size`, `batch_size`, `device` and `precision`.
        clock: Returns the median seconds of a call, and how many were timed.
    """
    device, side = torch.device(plain["device"]), plain["image_size"]
    wish = Wish(dtype=TORCH_DTYPES[plain["precision"]], device=device)
    networks = {
        label: create_model(each["model"], **each["model_args"]).eval()
        for label, each in plain["models"].items()
    }
    found: dict[str, list[float]] = {label: [] for label in networks}
    for label in [*networks] * _TURNS:
        if label not in networks:
            continue
        network = networks[label]
        images = torch.randn(plain["batch_size"], channels_of(network), side, side)
        try:
            call = FORMS["autocast"].infer(network.to(device), wish).call
            images = images.to(device)
            with torch.inference_mode():
                seconds, _ = clock(partial(call, images), device, _TURN_S)
            found[label].append(len(images) / seconds)
        except torch.OutOfMemoryError:
            del networks[label], found[label]
        network.to("cpu")
    return {label: statistics.median(rates) for label, rates in found.items()}


def measure_asked(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a process of its own."""
    die_first()
    return measure(**plain)
