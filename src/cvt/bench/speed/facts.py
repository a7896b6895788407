"""What has to be known before anything is timed: devices, dtypes, and what each model counts."""

import hashlib
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cvt.bench.speed.forms import Ready, named_form
from cvt.bench.speed.models import build, is_checkpoint
from cvt.errors import UserError
from cvt.evaluation.answers import preprocessing_of
from cvt.inference.agreement import agreement
from cvt.inference.int8 import Calibration, calibration_images
from cvt.inference.rewrite import choose_target
from cvt.parts.model import VisionModel, num_params
from cvt.runtime import choose_device, hardware, software
from cvt.weights.record import Preprocessing

# --- The machine, as a quoted result has to name it: cores, instruction sets, memory, GPU.

_INFO = Path("/proc/cpuinfo")
# Those that decide how fast products are, by their names in /proc/cpuinfo: x86, then ARM.
_TELLING_of_speed_machine = {
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
                return [word for flag, word in _TELLING_of_speed_machine.items() if flag in there]
    return [torch.backends.cpu.get_cpu_capability()]


def _memory() -> str:
    try:
        taken = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return ""
    return f"{taken / 2**30:.0f} GiB of memory"


# --- Real pictures for a bench: some to calibrate int8 on, others to hold it against float32 with.

# Each: as many as `cvt.deploy` calibrates on by itself.
COUNT = 300


def check_pictures(name: str) -> None:
    """Makes sure that there are pictures.

    Raises:
        UserError: There are none, or not one of the first can be read.
    """
    calibration_images(nn.Identity(), Calibration(name, num_images=2), Preprocessing())


def read_pictures(model: nn.Module, name: str, image_size: int) -> tuple[Tensor, Tensor]:
    """Returns pictures (N, C, H, W) to calibrate on, and others to judge with; 300 of each.

    They are prepared as the model says, but for the size. Every other one of those that are read
    is kept to judge with; fewer than two are all for both.

    Raises:
        UserError: The model does not say how to prepare pictures, or there are none.
    """
    if not isinstance(model, VisionModel):
        raise UserError(
            f"Got a {type(model).__name__} that does not say how to prepare pictures; compare "
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
    for another; pictures that don't fill a batch are left out, or one is filled with repetitions.
    """
    filled = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[: max(batch_size, len(images))]
    batches = [each.to(device) for each in filled.split(batch_size) if len(each) == batch_size]
    found = agreement(reference, lambda batch: ready.call(batch.to(ready.dtype)), batches)
    return {
        "agreement": found.top1,
        "logit_error": found.relative_mean,
        "judged_on": min(found.num_images, len(images)),
    }


TORCH_DTYPES = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}

_PACKAGES = ("transformers", "openvino", "nncf", "torchao", "triton")
# What in a process's surroundings makes the same code faster or slower.
_TELLING = ("OMP_", "KMP_", "GOMP_", "MKL_", "DNNL_", "ONEDNN_", "TORCH", "PYTORCH_", "OV_",
            "CUDA_", "NVIDIA_TF32", "LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES")  # fmt: skip
_PLACES = ("_DIR", "_HOME", "_PATH")


def find_facts(
    models: Sequence[str],
    image_sizes: Sequence[int],
    dtypes: Sequence[str],
    devices: Sequence[str],
    threads: Sequence[int] | None,
    forms: Sequence[str] = (),
    calibration: str | None = None,
) -> dict[str, Any]:
    """Returns what the machine has and what the models count, as plain data.

    `lacking` says by device, and there by dtype, why nothing can be measured in it.

    Args:
        models: Names for `speed_models.build`.
        threads: None: as many as torch takes by itself.
        forms: Whose passes are to be looked up.
        calibration: Pictures that there have to be.

    Raises:
        UserError: There is no such pass, no picture, a model cannot be built, or not one of the
            devices is there and has one of the dtypes.
    """
    for form in forms:
        named_form(form).left_out()
    if calibration is not None:
        check_pictures(calibration)
    places, lacking = _places(devices, dtypes)
    here = {name: place for name, place in places.items() if place is not None}
    return {
        "devices": list(places),
        "threads": list(threads or [torch.get_num_threads()]),
        "hardware": {
            "cpu": describe_cpu(),
            **{name: describe_device(each) for name, each in here.items() if each.type != "cpu"},
        },
        "software": {**software(), **_versions()},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_TELLING) and not name.endswith(_PLACES)
        },
        "lacking": lacking,
        "models": {name: count(name, image_sizes) for name in models},
    }


def _places(
    names: Sequence[str], dtypes: Sequence[str]
) -> tuple[dict[str, torch.device | None], dict[str, dict[str, str]]]:
    """Finds devices by name, None for one that is not there, and what is lacking on each."""
    places: dict[str, torch.device | None] = {}
    lacking: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            place = choose_device(name)
        except UserError as error:
            places[name] = None
            lacking[name] = dict.fromkeys(dtypes, str(error))
            continue
        places[str(place)] = place
        lacking[str(place)] = {}
        for dtype in dtypes:
            try:
                if dtype != "int8":
                    choose_target(nn.Identity(), TORCH_DTYPES[dtype], place)
            except UserError as error:
                lacking[str(place)][dtype] = str(error)
    reasons = [reason for each in lacking.values() for reason in each.values()]
    if reasons and len(reasons) == len(lacking) * len(dtypes):
        raise UserError(reasons[0])
    return places, lacking


def count(name: str, image_sizes: Sequence[int]) -> dict[str, Any]:
    """Returns a model's parameters, and by image size the multiply-accumulates for one image.

    Of a checkpoint also a digest of its `weights`.

    Counted by torch's FLOP counter on the meta device. A model that is not to be counted there,
    or not at that size, has None; whether it runs is seen when it is timed.

    Raises:
        UserError: It cannot be built.
    """
    macs: dict[str, int | None] = {}
    count = 0
    for size in image_sizes:
        model = _on_meta(name, size)
        count = num_params(model)
        macs[str(size)] = _count_macs(model, size)
    weights = {"weights": digest_of(name)} if is_checkpoint(name) else {}
    return {"num_params": count, "macs": macs, **weights}


def digest_of(name: str) -> str:
    """Returns the start of a hash over a checkpoint's tensors: another file has another."""
    from cvt.weights.source import open_weights

    tensors, _ = open_weights(name)
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(key.encode())
        found.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:12]


def channels_of(model: nn.Module) -> int:
    """Returns the channels of the images that a model takes, by what it says of itself, or 3."""
    told = getattr(model, "in_chans", None) or getattr(
        getattr(model, "config", None), "num_channels", 3
    )
    return told if isinstance(told, int) else 3


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
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.eval()(torch.empty(1, channels_of(model), size, size, device=device))
    except Exception:  # a model of anyone's, which says so again when it is timed
        return None
    return counter.get_total_flops() // 2 or None


def _versions() -> dict[str, str]:
    """Versions of the packages beside the required ones that some entrants compute with."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def facts_asked(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The task of a process of its own."""
    return find_facts(**plain)
