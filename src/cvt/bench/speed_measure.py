"""One measurement: a model in a form, at a setting, in the process at hand."""

import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvt.bench.speed_clock import median_seconds, timed
from cvt.bench.speed_facts import TORCH_DTYPES, channels_of
from cvt.bench.speed_form_names import named_form
from cvt.bench.speed_forms import Wish
from cvt.bench.speed_memory import MemoryMeter
from cvt.bench.speed_models import build
from cvt.bench.speed_peak import matrix_gflops
from cvt.bench.speed_pictures import judge, read_pictures
from cvt.errors import UserError
from cvt.parts.contract import VisionModel
from cvt.train.device import autocast

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
