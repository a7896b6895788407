"""What a run ran on: processor or GPU, and the versions of the libraries that compute."""

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

import cvt

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


def hardware(device: torch.device, processes: int = 1) -> str:
    """Returns what trained: GPUs, one a process, or a processor and the cores that it may use."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    name = _cpu_name()
    if device.type != "cpu":
        return f"{name} ({device.type})"
    cores = _num_cores()
    return f"{name}, {cores} core{'s' * (cores > 1)}"


def software() -> Mapping[str, str]:
    """Returns versions by name."""
    versions = {"cvt": cvt.__version__, "Python": platform.python_version()}
    versions |= {name: version(name) for name in _PACKAGES}
    if torch.version.cuda and torch.cuda.is_available():
        versions["CUDA"] = torch.version.cuda
    return versions


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if sys.platform == "linux" and info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
