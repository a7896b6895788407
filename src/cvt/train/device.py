"""Where a model runs, and in which arithmetic."""

import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from cvt.errors import UserError

_LEAST_PARAMS = 5_000_000
_WORTH = 1.2
_PROBE_S = 1.0


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """Returns the named device; `auto` is CUDA, else Apple's GPU, else the CPU.

    Args:
        local_rank: Number of this process on its machine where several work: that of its GPU.

    Raises:
        UserError: torch does not know the name, or the machine lacks the device.
    """
    if local_rank is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"Got device {name!r}, which this machine lacks; use cpu.") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Resolves `auto` to `bf16` on CUDA devices that compute in it, else to `float32`.

    On CPUs that is float32, so that answers are the same on every processor; for training
    `faster_precision` looks closer there.
    """
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "float32"


def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for products in bfloat16 or float16.

    oneDNN's own test for bfloat16 is content with AVX-512, on which it converts to float32.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        wanted = {
            torch.bfloat16: ("avx512_bf16", "amx_bf16"),
            torch.float16: ("avx512_fp16", "amx_fp16"),
        }
        has = cpu_capabilities()
        return any(has.get(name, False) for name in wanted[dtype])
    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return hasattr(torch.ops.mkldnn, name[dtype]) and bool(getattr(torch.ops.mkldnn, name[dtype])())


def cpu_capabilities() -> Mapping[str, Any]:
    """Returns the CPU's instruction sets; the public question is younger than torch 2.11."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    asked = {
        "avx512_f": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_fp16": "_is_amx_fp16_supported",
    }
    return {key: getattr(torch.cpu, name, bool)() for key, name in asked.items()}


def may_gain_from_bf16(device: torch.device) -> bool:
    """Whether training on a device may be quicker in bf16, so that `faster_precision` is asked.

    Other CPUs only imitate bf16: on an EPYC of 2021 with AVX2 an update of `cvt_nano_32` took 8
    times as long in it, one of `cvt_13` 14 times.
    """
    return device.type == "cpu" and cpu_computes(torch.bfloat16)


def faster_precision(
    model: nn.Module,
    images: Tensor,
    step_seconds: Callable[[nn.Module, Tensor, str], float] | None = None,
) -> tuple[str, str]:
    """Trains a model on the spot for about a second, and returns what is quicker, and a sentence.

    That is `bf16` where it takes at most five sixths of the time, and `float32` otherwise. Networks
    of less than five million parameters are not tried: they train in minutes, and get float32. The
    model stays as it was, and so do the generators.

    Args:
        images: A few of the run's size, (B, C, H, W), on the device.
        step_seconds: Makes a step in a precision, and returns how long it took.
    """
    if sum(each.numel() for each in model.parameters()) < _LEAST_PARAMS:
        return "float32", "Precision auto: float32, as the network is small."
    step, was_training = step_seconds or _step_seconds, model.training
    took: dict[str, list[float]] = {"float32": [], "bf16": []}
    model.eval()  # statistics stay as they are
    for precision in took:
        step(model, images, precision)
    since = time.monotonic()
    while len(took["bf16"]) < 2 or time.monotonic() - since < _PROBE_S:
        for precision, times in took.items():
            times.append(step(model, images, precision))
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    plain, bf16 = min(took["float32"]), min(took["bf16"])
    chosen = "bf16" if bf16 * _WORTH <= plain else "float32"
    return chosen, (
        f"Precision auto: {chosen}, as a step of {len(images)} images took {bf16:.2g} s in bf16 "
        f"and {plain:.2g} s in float32 on this CPU; --precision decides it otherwise."
    )


def _step_seconds(model: nn.Module, images: Tensor, precision: str) -> float:
    since = time.perf_counter()
    with autocast(images.device, precision):
        logits = model(images)
    logits.float().square().mean().backward()
    return time.perf_counter() - since


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Returns the context of a forward pass; weights, loss and optimiser stay in float32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "float32")


def peak_memory_mb(device: torch.device) -> float:
    """Returns the most memory in use so far, in MB of 2**20 bytes: the GPU's, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
