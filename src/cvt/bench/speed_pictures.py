"""Real pictures for a bench: some to calibrate int8 on, others to hold it against float32 with."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cvt.bench.speed_forms import Ready
from cvt.deploy.calibration import Calibration, calibration_images
from cvt.deploy.precision import agreement
from cvt.errors import UserError
from cvt.evaluate.model_facts import preprocessing_of
from cvt.parts.contract import VisionModel
from cvt.weights.record import Preprocessing

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
