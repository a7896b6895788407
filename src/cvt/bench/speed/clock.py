"""How many images a second a network answers to: all contenders in turn, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cvt.runtime import autocast
from cvt.zoo.create import create_model

ROUNDS = 7
LEAST_S = 0.2


def images_per_s(
    models: Mapping[str, Mapping[str, Any]],
    image_size: int,
    batch_size: int,
    device: str,
    precision: str,
) -> dict[str, Any]:
    """Times forward passes in eval mode and returns the median images/s of each model, by label.

    The models take turns, seven times over, so that whatever else the machine does meanwhile
    meets all of them alike. A model that has no room in the GPU's memory is left out. Weights are
    fresh: speed does not depend on them.

    Args:
        models: By label, `create_model`'s name and changes: `{"model": ..., "model_args": ...}`.
        image_size: Side of the images in pixels.
        batch_size: Images per forward pass.
        precision: `float32`, `bf16` or `fp16`.
    """
    place = torch.device(device)
    found: dict[str, list[float]] = {label: [] for label in models}
    networks = {
        label: create_model(each["model"], **each["model_args"]).eval()
        for label, each in models.items()
    }
    for _ in range(ROUNDS):
        for label, network in list(networks.items()):
            images = torch.randn(batch_size, _channels(network), image_size, image_size)
            try:
                network.to(place)
                found[label].append(_timed(network, images.to(place), precision))
            except torch.OutOfMemoryError:
                del networks[label], found[label]
            network.to("cpu")
    return {label: statistics.median(values) for label, values in found.items()}


def _channels(network: nn.Module) -> int:
    channels = getattr(network, "in_chans", 3)
    assert isinstance(channels, int)
    return channels


def _timed(network: nn.Module, images: torch.Tensor, precision: str) -> float:
    """Returns images/s over at least a fifth of a second, after a pass that is not counted."""
    with torch.inference_mode(), autocast(images.device, precision):
        network(images)
        _wait(images.device)
        since, passes = time.monotonic(), 0
        while True:
            network(images)
            passes += 1
            if images.device.type != "cpu" and passes % 10:
                continue  # a GPU works ahead of us; asking it at every pass would slow it down
            _wait(images.device)
            seconds = time.monotonic() - since
            if seconds >= LEAST_S:
                return passes * len(images) / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# --- Timing calls: the first one, and then many.

_FEWEST = 3
# On an accelerator calls are timed in blocks: waiting for each would be timed with it.
_BLOCK_S = 0.05
_WARM_UP_ON_DEVICE = 10


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of one call, to the end of its work on the device."""
    wait_for(device)
    since = time.perf_counter()
    call()
    wait_for(device)
    return time.perf_counter() - since


def median_seconds(
    call: Callable[[], object], device: torch.device, seconds: float
) -> tuple[float, int]:
    """Returns the median seconds of a call, and how many calls were timed.

    Calls are made for at least that many seconds, and three times at least, after one that is not
    counted (ten on an accelerator). On an accelerator the median is over blocks of calls of about
    50 ms.
    """
    length = 1
    if device.type != "cpu":
        for _ in range(_WARM_UP_ON_DEVICE):
            call()
        length = max(1, round(_BLOCK_S / max(timed(call, device), 1e-6)))
    else:
        call()

    def block() -> None:
        for _ in range(length):
            call()

    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < _FEWEST or time.perf_counter() - begin < seconds:
        found.append(timed(block, device) / length)
    return statistics.median(found), length * len(found)
