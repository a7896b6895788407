"""What training, evaluation, inference and bench stand on: devices, number formats, processes,
interruptions, the machine's name, and seeds.
"""

import hashlib
import os
import platform
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

import cvt
from cvt.errors import UserError, first_line, unknown

# --- Number formats, by one name each wherever one is asked for.

NUMBER_FORMATS = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float64": torch.float64,
    "int8": torch.int8,
}
_OTHER_NAMES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}


def number_format(
    name: str | torch.dtype, among: Collection[str] = tuple(NUMBER_FORMATS), what: str = "dtype"
) -> str:
    """Returns the one name of a number format: `float32`, `bf16`, `fp16`, `float64` or `int8`.

    Args:
        name: That name, a longer one (`bfloat16`, `fp32`, `torch.float16`), or torch's dtype.
        among: The names that may come; others than formats, such as `auto`, stay as they are.
        what: What a message calls the format.
    """
    given = str(name).removeprefix("torch.")
    short = _OTHER_NAMES.get(given, given)
    if short in among:
        return short
    raise unknown(what, given, among)


# --- Where a model runs, and in which arithmetic.

_LEAST_PARAMS = 5_000_000
_WORTH = 1.2
_PROBE_S = 1.0


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """Returns the named device; `auto` is CUDA, else Apple's GPU, else the CPU.

    `local_rank` is the number of this process where several work on a machine: that of its GPU.
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


PRECISIONS = ("auto", "float32", "bf16", "fp16")


def choose_precision(name: str, device: torch.device) -> str:
    """Resolves `auto` to `bf16` on CUDA devices that compute in it, else to `float32`.

    On CPUs that is float32, so that answers are the same on every processor; for training
    `faster_precision` looks closer there.
    """
    if (name := number_format(name, PRECISIONS, "precision")) != "auto":
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
    """Returns the most memory in use so far, in MB of 2**20 bytes: the GPU's, or the process's.

    Apple's GPUs tell no peak, but what is in use.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type == "mps":
        return memory_mb(device)
    if peak := _kernel_mb("VmHWM"):
        return peak
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def memory_mb(device: torch.device) -> float:
    """Returns the memory in use at this moment; where only a peak can be had, that."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**20
    return _kernel_mb("VmRSS") or peak_memory_mb(device)


def _kernel_mb(field: str) -> float:
    """Returns one of Linux's figures of this process; 0 where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(field)), 0.0)


# --- The processes that train together, as torchrun starts them; alone, a world of one.

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Args:
        rank: Its number, from 0, over all machines.
        size: How many there are.
        local_rank: Its number on this machine, which is also that of its GPU.
        is_restarted: Whether torchrun started it in the place of one that was lost.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    is_restarted: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, numbers: Tensor) -> Tensor:
        """Adds up a tensor over all processes, in place, and returns it."""
        if self.size > 1:
            dist.all_reduce(numbers)
        return numbers

    def from_main(self, value: Any) -> Any:
        """Returns the main process's value in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, work: Callable[[], T]) -> T:
        """Lets the main process work while the others wait; result or error are everyone's."""
        return self.from_main(self._in_turns(work, (True,)))

    def in_turn(self, work: Callable[[], T]) -> T:
        """Lets the main process work, then the others: what it made is there for them."""
        result = self._in_turns(work, (True, False))
        assert result is not None
        return result

    def _in_turns(self, work: Callable[[], T], turns: Sequence[bool]) -> T | None:
        result, mine = None, None
        for main_works in turns:
            if self.is_main is main_works:
                try:
                    result = work()
                except UserError as error:
                    mine = error
            said = [each for each in self.gather(None if mine is None else str(mine)) if each]
            if said:
                error = mine or UserError(said[0])
                error.is_told_elsewhere = mine is None
                raise error
        return result

    @contextmanager
    def alike(self) -> Generator[None]:
        """Surrounds what goes wrong in all processes of a machine alike: one of them tells it."""
        try:
            yield
        except UserError as error:
            if "is_told_elsewhere" not in vars(error):
                error.is_told_elsewhere = self.local_rank > 0
            raise

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def join_world(device: str = "auto") -> Generator[World]:
    """Joins the processes that torchrun started and leaves them at the end; alone, does nothing.

    GPUs talk through NCCL, CPUs through Gloo. A process group that exists already is used and
    left as it is.
    """
    if dist.is_available() and dist.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
        yield World(dist.get_rank(), dist.get_world_size(), local)
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes do not find each other ({first_line(error)}); start them all by "
            "torchrun, which sets their addresses."
        ) from error
    try:
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        yield World(dist.get_rank(), dist.get_world_size(), local, restarts > 0)
    finally:
        dist.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of torch's means that another process no longer answers."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    words = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


# --- Ctrl-C that waits for the update in hand, so that what is saved is whole.


class Interrupted(Exception):
    """A run was asked to stop and has saved its state; the message says how to go on.

    Args:
        where: How far the run got, for the message.
        is_told_elsewhere: Whether another process prints the same.
    """

    def __init__(self, run: Path, where: str, is_told_elsewhere: bool = False) -> None:
        super().__init__(f"Stopped {where}. Go on with: cvt train --resume {quote(str(run))}")
        self.run = run
        self.is_told_elsewhere = is_told_elsewhere


class StopRequest:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Notes the first request; a second one ends the process's current work at once."""
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


@contextmanager
def stop_requests() -> Generator[StopRequest]:
    """Turns Ctrl-C and a termination signal into a `StopRequest` inside the block.

    Python lets only the main thread handle signals; elsewhere the request is never set.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {each: signal.signal(each, stop.set) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# --- What a run ran on: processor or GPU, and the versions of the libraries that compute.

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
CPU_INFO = Path("/proc/cpuinfo")


def hardware(device: torch.device, processes: int = 1) -> str:
    """Returns what trained: GPUs, one a process, or a processor and the cores that it may use."""
    if device.type == "cuda":
        return f"{processes} x {torch.cuda.get_device_name(device)}"
    name = cpu_info("model name") or platform.processor() or platform.machine()
    if device.type != "cpu":
        return f"{name} ({device.type})"
    cores = num_cores()
    return f"{name}, {cores} core{'s' * (cores > 1)}"


def software() -> Mapping[str, str]:
    """Returns versions by name."""
    versions = {"cvt": cvt.__version__, "Python": platform.python_version()}
    versions |= {name: version(name) for name in _PACKAGES}
    if torch.version.cuda and torch.cuda.is_available():
        versions["CUDA"] = torch.version.cuda
    return versions


def cpu_info(*names: str, info: Path = CPU_INFO) -> str:
    """Returns what Linux says of the processor under one of these names; nothing elsewhere."""
    text = info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""
    parts = (line.partition(":") for line in text.splitlines())
    return next(
        (value.strip() for name, _, value in parts if name.strip() in names and value.strip()), ""
    )


def num_cores() -> int:
    """Returns the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- Randomness that belongs to one sample and leaves everyone else's alone.


def seed_all(*key: int) -> None:
    """Seeds Python's, numpy's and torch's CPU generators; timm's transforms draw from all three.

    The seeds are a hash of the key, so neighbouring keys have nothing in common; it takes a sixth
    of the time of numpy's `SeedSequence`, which matters at thousands of small images a second.
    `torch.manual_seed` is not used because it would reseed every GPU as well.

    Args:
        key: Whole numbers, none negative, such as (seed, epoch, index).
    """
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=20).digest()
    for_python, for_torch, for_numpy = struct.unpack("<QQL", digest)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)


@contextmanager
def generators_kept() -> Generator[None]:
    """Puts the three generators back, at the end of the block, to where they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


# --- Randomness as a function of the position in a run, so that resuming restores no generator.


def seed_position(seed: int, epoch: int = 0, batch: int = 0, chunk: int = 0) -> None:
    """Seeds Python's, numpy's and torch's generators, those of GPUs included.

    Called before every chunk of every batch, so that mixing, drop path and dropout depend on
    (seed, epoch, batch, chunk) alone; and before the weights of a new model are drawn.
    """
    seed_all(seed, epoch, batch, chunk)
    torch.manual_seed(torch.initial_seed())  # gives the GPUs what the CPU has
