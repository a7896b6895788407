"""Real images to calibrate and to judge a network of low precision with."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cvt.data.batch import Batch
from cvt.data.image import BadImage, open_image
from cvt.data.inputs import find_images
from cvt.data.load import load_split
from cvt.data.transforms import eval_transform
from cvt.errors import UserError
from cvt.evaluate.model_facts import preprocessing_of
from cvt.files import expanded
from cvt.parts.contract import VisionModel
from cvt.weights.record import Preprocessing

Images = str | Path | Tensor | Iterable[Tensor | Batch | tuple[Tensor, ...] | list[Tensor]]
"""A path or name of data, or batches as a model gets them, with or without labels behind."""


@dataclass(frozen=True)
class Calibration:
    """Images, and how many of them are used.

    Args:
        images: A folder of pictures (in folders of classes or not), a parquet file or a folder of
            such, a name as for `cvt train --data`; or batches (B, C, H, W), preprocessed.
        num_images: At most so many: evenly spread over data, the first ones of batches.

    Raises:
        UserError: No number above 0.
    """

    images: Images
    num_images: int = 300

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise UserError(f"Got num_images {self.num_images}, expected 1 or more.")


Calibrating = Calibration | Images


def calibration_images(
    model: nn.Module,
    calibration: Calibrating | None,
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Returns images (N, C, H, W) in float32, the same ones every time.

    Pictures are prepared as the model's checkpoint or configuration says, if nothing else is said;
    unreadable ones are passed over.

    Raises:
        UserError: There are none, no picture can be read, batches are of several sizes or not
            floating-point numbers, or the model does not say how to prepare pictures.
    """
    if calibration is None:
        raise UserError(
            "Got dtype int8 without calibration images, expected real ones to find the ranges of "
            "the activations with: pass calibration= a folder, a parquet file or batches."
        )
    if not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    source, count = calibration.images, calibration.num_images
    if isinstance(source, str | Path):
        prepare = preprocessing or preprocessing_of(cast("VisionModel", model))
        return _prepared(prepare, str(source), count)
    return _first(source, count)


def _prepared(preprocessing: Preprocessing, name: str, count: int) -> Tensor:
    transform = eval_transform(preprocessing)
    pictures = [each for each in _pictures(name, count) if not isinstance(each, BadImage)]
    if not pictures:
        raise UserError(f"None of the pictures of {name} can be read; name others.")
    return torch.stack([transform(picture) for picture in pictures])


def _pictures(name: str, count: int) -> Iterator[Image.Image | BadImage]:
    folder = expanded(name)
    if not folder.is_dir() or any(folder.glob("*.parquet")):
        yield from load_split(name, "all").some(count)
        return
    # Labels don't matter here, and pictures of one kind lie side by side.
    found = list(find_images([str(folder)]))
    for index in np.linspace(0, len(found) - 1, min(count, len(found)), dtype=int):
        each = found[index]
        try:
            yield each if isinstance(each, BadImage) else open_image(each)
        except BadImage as error:
            yield error


def _first(batches: Iterable[object], count: int) -> Tensor:
    parts: list[Tensor] = []
    had = 0
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        images = _images_of(batch)[: count - had]
        if parts and images.shape[1:] != parts[0].shape[1:]:
            raise UserError(
                f"Got calibration images of shapes {tuple(parts[0].shape[1:])} and "
                f"{tuple(images.shape[1:])}, expected one; prepare them all alike."
            )
        parts.append(images.detach().to("cpu", torch.float32))
        had += len(images)
        if had >= count:
            break
    if not had:
        raise UserError("Got no calibration images, expected one batch at least.")
    return torch.cat(parts)


def _images_of(batch: object) -> Tensor:
    if isinstance(batch, Batch):
        return batch.images
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if not isinstance(batch, Tensor) or batch.ndim != 4 or not batch.is_floating_point():
        got = f"shape {tuple(batch.shape)} in {batch.dtype}" if isinstance(batch, Tensor) else batch
        raise UserError(
            f"Got a batch of {got!s:.80}, expected images (B, C, H, W) of floating-point numbers, "
            "preprocessed."
        )
    return batch
