"""What has to be known before anything is timed: devices, dtypes, and what each model counts."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cvt.bench.speed.forms import read_form
from cvt.bench.speed.models import build, channels_of, is_checkpoint
from cvt.bench.speed.results import BenchFacts
from cvt.errors import UserError
from cvt.inference import Calibration, calibration_images, choose_target
from cvt.parts.model import num_params
from cvt.runtime import (
    CPU_INFO,
    NUMBER_FORMATS,
    choose_device,
    cpu_info,
    hardware,
    software,
)
from cvt.weights.checkpoint import digest_of
from cvt.weights.record import Preprocessing
from cvt.weights.source import open_weights
from cvt.zoo.describe import count_macs

_PACKAGES = ("transformers", "openvino", "nncf", "torchao", "triton")
# What in a process's environment makes the same code faster or slower.
_TELLING = ("OMP_", "KMP_", "GOMP_", "MKL_", "DNNL_", "ONEDNN_", "TORCH", "PYTORCH_", "OV_",
            "CUDA_", "NVIDIA_TF32", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES")  # fmt: skip
_PLACES = ("_DIR", "_HOME", "_PATH")


def facts_asked(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a process of its own: `find_facts` in plain data."""
    return asdict(find_facts(**plain))


def find_facts(
    models: Sequence[str],
    image_sizes: Sequence[int],
    dtypes: Sequence[str],
    devices: Sequence[str],
    threads: Sequence[int] | None,
    forms: Sequence[str] = (),
    calibration: str | None = None,
) -> BenchFacts:
    """Finds out what the machine has and what the models count.

    Where not one of the devices is there and has one of the dtypes, that is refused; so are a pass
    or images that are not there.

    Args:
        threads: None: as many as torch takes by itself.
    """
    for form in forms:
        read_form(form).left_out()
    if calibration is not None:
        calibration_images(nn.Identity(), Calibration(calibration, num_images=2), Preprocessing())
    described, lacking = _machine(devices, dtypes)
    return BenchFacts(
        devices=list(lacking),
        lacking=lacking,
        threads=list(threads or [torch.get_num_threads()]),
        hardware=described,
        software={**software(), **_versions()},
        environment={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_TELLING) and not name.endswith(_PLACES)
        },
        models={name: count(name, image_sizes) for name in models},
    )


def _machine(
    names: Sequence[str], dtypes: Sequence[str]
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Describes the CPU and the devices of these names, and says what is lacking on each."""
    described = {"cpu": describe_cpu()}
    lacking: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            device = choose_device(name)
        except UserError as error:
            lacking[name] = dict.fromkeys(dtypes, str(error))
            continue
        if device.type != "cpu":
            described[str(device)] = describe_device(device)
        lacking[str(device)] = {}
        for dtype in dtypes:
            try:
                if dtype != "int8":
                    choose_target(nn.Identity(), NUMBER_FORMATS[dtype], device)
            except UserError as error:
                lacking[str(device)][dtype] = str(error)
    reasons = [reason for each in lacking.values() for reason in each.values()]
    if reasons and len(reasons) == len(lacking) * len(dtypes):
        raise UserError(reasons[0])
    return described, lacking


def _versions() -> dict[str, str]:
    """Versions of the packages beside the required ones that some entrants compute with."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- What models count.


def count(name: str, image_sizes: Sequence[int]) -> dict[str, Any]:
    """Returns a model's parameters, and by image size the multiply-accumulates for one image.

    Of a checkpoint also a digest of its `weights`.

    Counted by torch's FLOP counter on the meta device. A model that is not to be counted there,
    or not at that size, has None; whether it runs is seen when it is timed.
    """
    counted: dict[str, Any] = {"num_params": 0, "macs": {}}
    for size in image_sizes:
        model = _on_meta(name, size)
        counted["num_params"] = num_params(model)
        counted["macs"][str(size)] = _count_macs(model, size)
    if is_checkpoint(name):
        counted["weights"] = digest_of(open_weights(name)[0], with_shapes=False)[:12]
    return counted


def _on_meta(name: str, size: int) -> nn.Module:
    """Builds a model without its weights' memory; if its code cannot do that, with it."""
    if is_checkpoint(name):
        return build(name, size).to("meta")
    try:
        with torch.device("meta"):
            return build(name, size)
    except UserError:
        if "/" in name or ":" not in name:
            raise
        return build(name, size)


def _count_macs(model: nn.Module, size: int) -> int | None:
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    images = torch.empty(1, channels_of(model), size, size, device=device)
    try:
        return count_macs(model.eval(), images)[""] or None
    except Exception:  # a model of anyone's, which says so again when it is timed
        return None


# --- The machine, as a quoted result has to name it: cores, instruction sets, memory, GPU.

# What decides how fast products are, by its name in /proc/cpuinfo: x86, then ARM.
_INSTRUCTIONS = {
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


def describe_cpu(info: Path = CPU_INFO) -> str:
    """Returns model, cores that may be used, instruction sets and memory."""
    parts = [hardware(torch.device("cpu")), " ".join(instruction_sets(info)), _memory()]
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


def instruction_sets(info: Path = CPU_INFO) -> list[str]:
    """Returns those for matrix products, by Linux's word, or else by torch's."""
    if there := cpu_info("flags", "Features", info=info).split():
        return [word for flag, word in _INSTRUCTIONS.items() if flag in there]
    return [torch.backends.cpu.get_cpu_capability()]


def _memory() -> str:
    try:
        taken = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return ""
    return f"{taken / 2**30:.0f} GiB of memory"
