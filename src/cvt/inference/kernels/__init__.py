"""GPU kernels in Triton, each beside the plain PyTorch that it must agree with.

Here is where a kernel can run: on a CUDA device, or on the CPU in Triton's interpreter where
`TRITON_INTERPRET=1` asks for it. Triton itself is imported only when a kernel is about to run.
"""

import os
import shutil
from importlib.util import find_spec

import torch

_STORED = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (8, 0)  # the compute capability from which on Triton supports a GPU


def interpreted() -> bool:
    """Whether kernels are to run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels are what computes with such tensors; else plain PyTorch does."""
    if dtype not in _STORED or not (device.type == "cuda" or interpreted()):
        return False
    return find_spec("triton") is not None


def compiles_kernels(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether kernels for such tensors can be compiled here: Triton calls a C compiler."""
    if not has_kernels(dtype, device):
        return False
    if interpreted():
        return True
    has_compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return bool(has_compiler) and torch.cuda.get_device_capability(device) >= _OLDEST
