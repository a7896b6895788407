"""Where a model runs, and in which arithmetic."""

import sys
from contextlib import AbstractContextManager

import torch

from cvt.errors import UserError


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

    On CPUs it stays with float32. Those without AMX or AVX512-BF16 only imitate bf16: on an EPYC
    of 2021 an update of `cvt_nano_32` took 8 times as long, one of `cvt_13` 14 times. No gain has
    been measured on the others yet, so there it has to be asked for.
    """
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "float32"


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
