"""The machine, as a quoted result has to name it: cores, instruction sets, memory, GPU."""

import os
import sys
from pathlib import Path

import torch

from cvt.train.machine import hardware

_INFO = Path("/proc/cpuinfo")
# Those that decide how fast products are, by their names in /proc/cpuinfo: x86, then ARM.
_TELLING = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_bf16": "AMX-BF16",
    "amx_fp16": "AMX-FP16",
    "amx_int8": "AMX-INT8",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "sve": "SVE",
    "bf16": "BF16",
    "i8mm": "I8MM",
}


def describe_cpu() -> str:
    """Returns model, cores that may be used, instruction sets and memory."""
    parts = [hardware(torch.device("cpu")), " ".join(instruction_sets()), _memory()]
    return ", ".join(part for part in parts if part)


def describe_device(device: torch.device) -> str:
    """Returns a GPU's name, memory and compute capability."""
    if device.type != "cuda":
        return hardware(device)
    about = torch.cuda.get_device_properties(device)
    return (
        f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability "
        f"{about.major}.{about.minor}"
    )


def instruction_sets() -> list[str]:
    """Returns those for matrix products, by the kernel's word, or else by torch's."""
    if sys.platform == "linux" and _INFO.exists():
        for line in _INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                there = set(value.split())
                return [word for flag, word in _TELLING.items() if flag in there]
    return [torch.backends.cpu.get_cpu_capability()]


def _memory() -> str:
    try:
        taken = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return ""
    return f"{taken / 2**30:.0f} GiB of memory"
