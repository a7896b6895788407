"""What has to be known before anything is timed: devices, dtypes, and what each model counts."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cvt.bench.speed_form_names import named_form
from cvt.bench.speed_machine import describe_cpu, describe_device
from cvt.bench.speed_models import build, is_checkpoint
from cvt.bench.speed_pictures import check_pictures
from cvt.deploy.target import choose_target
from cvt.errors import UserError
from cvt.parts.contract import num_params
from cvt.train.device import choose_device
from cvt.train.machine import software

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
