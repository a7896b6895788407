"""How much memory is taken above what was there at a certain moment."""

import ctypes
import gc
import sys
from pathlib import Path

import torch

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
