"""One measurement: a model in a form, at a setting, in the process at hand."""

import ctypes
import gc
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvt.bench.speed.forms import FORMS, Ready, Wish
from cvt.bench.speed.models import build, channels_of
from cvt.bench.speed.results import Measurement
from cvt.errors import UserError
from cvt.evaluation import preprocessing_of
from cvt.inference import Calibration, agreement, calibration_images, onednn
from cvt.parts.model import VisionModel
from cvt.plain import from_plain
from cvt.runtime import NUMBER_FORMATS, autocast, memory_mb, peak_memory_mb
from cvt.zoo.create import create_model

SEED = 0
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|[Oo]ut of memory|bad_alloc")
_NOISE = re.compile(r"^\[enforce fail[^\]]*\] err == 0\. ")  # where in torch it was noticed
_OOM_SCORE = Path("/proc/self/oom_score_adj")


def measure_asked(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a process of its own: `measure` in plain data, `known` as `measurement`."""
    with suppress(OSError):  # another system, or not ours to say
        # Linux then ends this process, and not another one, when the machine's memory runs out.
        _OOM_SCORE.write_text("1000")
    rest = dict(plain)
    known = from_plain(Measurement, rest.pop("measurement"), "a measurement")
    return asdict(measure(known, **rest))


def measure(
    known: Measurement,
    *,
    seconds: float,
    cache: str,
    calibration: str | None = None,
    make: Callable[[str, int], nn.Module] = build,
    peak: Callable[[torch.device, torch.dtype], float] | None = None,
) -> Measurement:
    """Times a model on random images, and returns the measurement with its figures.

    Inference is a call in eval mode without gradients. A training step is zero_grad, a forward
    pass in training mode, cross-entropy with random labels, backward, and AdamW; as in `cvt train`
    weights are float32, and other dtypes mean autocast, with a loss scale for fp16.

    Args:
        cache: A folder for what is compiled.
        calibration: Images, for int8 and for what our models in it and in other dtypes than
            float32 are compared on.
        make: Builds the model of a name for a size.
        peak: Returns the GFLOP/s of large products; None: `matrix_gflops`.
    """
    torch.set_num_threads(known.threads)
    torch.manual_seed(SEED)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    device = torch.device(known.device)
    with _memory_told():
        network = make(known.model, known.image_size).to(device)
        if known.task == "training":
            figures = _train(known, network, device, seconds)
        else:
            figures = _infer(known, network, device, seconds, calibration, make)
        if known.dtype != "int8":
            dtype = NUMBER_FORMATS[known.dtype]
            figures["peak_gflops"] = (peak or matrix_gflops)(device, dtype)
    return replace(known, **figures)


def _infer(
    known: Measurement,
    network: nn.Module,
    device: torch.device,
    seconds: float,
    calibration: str | None,
    make: Callable[[str, int], nn.Module],
) -> dict[str, Any]:
    calibrating, judging = None, None
    is_ours = isinstance(network, VisionModel)
    if calibration and known.dtype != "float32" and (is_ours or known.dtype == "int8"):
        calibrating, judging = read_images(network, calibration, known.image_size)
    form, dtype = known.made_by, NUMBER_FORMATS[known.dtype]
    wish = Wish(dtype=dtype, device=device, without=form.left_out(), images=calibrating)
    since = time.perf_counter()
    ready = form.infer(network.eval(), wish)
    prepare_s = time.perf_counter() - since
    images = _random_images(known, network).to(device, ready.dtype)
    with torch.inference_mode():
        figures = _times(lambda: ready.call(images), known.batch_size, device, seconds)
        if judging is not None:
            torch.manual_seed(SEED)  # the same weights, where they are fresh
            reference = make(known.model, known.image_size).to(device).eval()
            figures |= judge(reference, ready, judging, known.batch_size, device)
    return {"prepare_s": prepare_s, **figures}


def _train(
    known: Measurement, network: nn.Module, device: torch.device, seconds: float
) -> dict[str, Any]:
    network.train()
    make = known.made_by.train
    assert make is not None
    images = _random_images(known, network).to(device)
    labels = torch.randint(2**20, (known.batch_size,)).to(device)
    call = make(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=known.dtype == "fp16")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, known.dtype):
            loss = torch.stack(
                [
                    nn.functional.cross_entropy(logits, labels % logits.shape[1])
                    for logits in logits_of(call(images))
                ]
            ).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return {"prepare_s": 0.0, **_times(step, known.batch_size, device, seconds)}


def _random_images(known: Measurement, network: nn.Module) -> Tensor:
    side = known.image_size
    return torch.randn(known.batch_size, channels_of(network), side, side)


def _times(
    call: Callable[[], object], batch_size: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    meter = MemoryMeter(device)
    first_call_s = timed(call, device)
    meter.forget_peak()
    median, calls = median_seconds(call, device, seconds)
    return {
        "images_per_s": batch_size / median,
        "calls": calls,
        "first_call_s": first_call_s,
        "memory_mb": meter.peak_mb(),
    }


def logits_of(answer: Any) -> tuple[Tensor, ...]:
    """Returns the logits (B, K) in what a model returned: one tensor, or one a classifier."""
    answer = getattr(answer, "logits", answer)
    found = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
    if not found or not all(isinstance(each, Tensor) and each.ndim == 2 for each in found):
        raise UserError(
            f"The model returned {type(answer).__name__}, expected logits (batch, classes) to "
            "learn from; time its inference only."
        )
    return found


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


# --- Timing calls: the first one, and then many.

_FEWEST_CALLS = 3
# On an accelerator calls are timed in blocks: waiting for each would be timed with it.
_BLOCK_S = 0.05
_WARM_UP_ON_DEVICE = 10


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one call, to the end of its work on the device."""

    def now() -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter()

    since = now()
    call()
    return now() - since


def median_seconds(
    call: Callable[[], object], device: torch.device, seconds: float
) -> tuple[float, int]:
    """Returns the median seconds of a call, and how many calls were timed.

    Calls are made for at least that many seconds, and three times at least, after one that is not
    counted (ten on an accelerator). On an accelerator the median is over blocks of calls of about
    50 ms.
    """
    length, is_cpu = 1, device.type == "cpu"
    for _ in range(1 if is_cpu else _WARM_UP_ON_DEVICE):
        call()
    if not is_cpu:
        length = max(1, round(_BLOCK_S / max(timed(call, device), 1e-6)))

    def block() -> None:
        for _ in range(length):
            call()

    found = _timed_often(block, device, seconds, _FEWEST_CALLS)
    return statistics.median(found) / length, length * len(found)


def _timed_often(
    call: Callable[[], object], device: torch.device, seconds: float, fewest: int
) -> list[float]:
    """Times calls for that many seconds at least, and that many of them."""
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < fewest or time.perf_counter() - begin < seconds:
        found.append(timed(call, device))
    return found


# --- How much memory is taken.

_CLEAR = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Measures the memory that is taken above what was there when it was made, in MB of 2**20.

    On CUDA it is what tensors take. On the CPU it is the process's resident memory: on Linux the
    kernel's own high-water mark, which can be taken down again, elsewhere what the process's peak
    has grown by, which misses what stays under an earlier peak.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # glibc keeps the pages of a model that is gone
        self._start = memory_mb(device)

    def forget_peak(self) -> None:
        """Makes `peak_mb` look only at what comes from now on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.device.type == "cpu" and _CLEAR.exists():
            _CLEAR.write_text("5")  # see proc_pid_clear_refs(5)

    def peak_mb(self) -> float:
        """Returns the most that was taken above the start."""
        return max(peak_memory_mb(self.device) - self._start, 0.0)


# --- The rate of large matrix products: what the arithmetic of a network is held against.

_SMALLEST, _LARGEST, _LARGEST_ON_CPU = 256, 8192, 4096
_LONGEST_S = 0.5  # of a product
_LEAST_S, _FEWEST = 0.3, 2

Product = Callable[[], object]
Way = Callable[[int, torch.device, torch.dtype], Product | None]


def torch_product(side: int, device: torch.device, dtype: torch.dtype) -> Product:
    """Returns torch's own product of two square matrices."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, one, other)


def packed_product(side: int, device: torch.device, dtype: torch.dtype) -> Product | None:
    """Returns oneDNN's product with a matrix packed before, if there is one.

    On AMD's processors with AVX-512 it is twice as fast in float32 as torch's own, which is MKL's.
    """
    if device.type != "cpu" or not onednn.can_pack(dtype):
        return None
    one, other = (torch.randn(side, side).to(dtype) for _ in range(2))
    return partial(onednn.linear, one, onednn.pack(other), None, "none", "")


def shortest_seconds(product: Product, device: torch.device) -> float:
    """Returns the shortest time of a call, after one that makes the library ready."""
    product()
    return min(_timed_often(product, device, _LEAST_S, _FEWEST))


def matrix_gflops(
    device: torch.device,
    dtype: torch.dtype,
    ways: Sequence[Way] = (torch_product, packed_product),
    clock: Callable[[Product, torch.device], float] = shortest_seconds,
) -> float:
    """Returns the best rate of square products in 10**9 operations a second, two a multiply-add.

    That is of the fastest way to multiply, in as many threads as torch has at the moment, and in
    float32 at torch's set precision. The matrices are as large as the first way can multiply in
    half a second, with 8192 rows at most on an accelerator and 4096 on a processor: where a dtype
    is imitated, a product takes 700 times as long.

    Args:
        ways: Make a product of matrices of that many rows; None where they cannot.
        clock: Returns the seconds of a product.
    """
    largest = _LARGEST_ON_CPU if device.type == "cpu" else _LARGEST
    first, *others = ways

    def seconds(way: Way) -> float:
        product = way(side, device, dtype)
        return float("inf") if product is None else clock(product, device)

    side = _SMALLEST
    with torch.inference_mode():
        best = seconds(first)
        while side < largest and best * 8 <= _LONGEST_S:
            side *= 2
            best = seconds(first)
        best = min([best, *map(seconds, others)])
    return 2 * side**3 / best / 1e9


# --- How far a model in another dtype agrees with itself in float32, on real images.

COUNT = 300  # as many to calibrate on as `cvt.deploy` takes by itself, and as many to judge with


def read_images(model: nn.Module, name: str, image_size: int) -> tuple[Tensor, Tensor]:
    """Returns images (N, C, H, W) to calibrate on, and others to judge with; 300 of each.

    They are prepared as the model says, but for the size. Every other one of those that are read
    is kept to judge with; fewer than two are all for both.
    """
    if not isinstance(model, VisionModel):
        raise UserError(
            f"Got a {type(model).__name__} that does not say how to prepare images; compare "
            "dtypes of a model of `cvt models` or of a checkpoint."
        )
    own = preprocessing_of(model)
    prepared = replace(own, input_size=(own.input_size[0], image_size, image_size))
    images = calibration_images(model, Calibration(name, num_images=2 * COUNT), prepared)
    return (images[0::2], images[1::2]) if len(images) > 1 else (images, images)


def judge(
    reference: nn.Module, ready: Ready, images: Tensor, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Returns how far a model agrees with itself in float32, as fields of a measurement.

    It is called with batches of the size that it was timed with, as compiled forms are made anew
    for another; images that don't fill a batch are left out, or one is filled with repetitions.
    """
    filled = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[: max(batch_size, len(images))]
    batches = [each.to(device) for each in filled.split(batch_size) if len(each) == batch_size]
    found = agreement(reference, lambda batch: ready.call(batch.to(ready.dtype)), batches)
    return {
        "agreement": found.top1,
        "logit_error": found.relative_mean,
        "judged_on": min(found.num_images, len(images)),
    }


# --- Networks that take turns in one process, as `cvt compare` times them.

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
    wish = Wish(dtype=NUMBER_FORMATS[plain["precision"]], device=device)
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
