"""Int8: real images to find its ranges with and to judge it on, and PyTorch's own."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cvt.data.formats import SUFFIXES
from cvt.data.image import BadImage, Sizing, open_image
from cvt.data.load import load_split
from cvt.data.loader import Batch
from cvt.data.transforms import eval_transform
from cvt.data.walk import find_images, is_pattern
from cvt.errors import UserError
from cvt.evaluation.answers import preprocessing_of
from cvt.files import expanded
from cvt.inference.agreement import checked_agreement
from cvt.inference.rewrite import Deployed, choose_target, rewrite
from cvt.parts.model import VisionModel
from cvt.weights.record import Preprocessing

Images = str | Path | Tensor | Iterable[Tensor | Batch | tuple[Tensor, ...] | list[Tensor]]
"""A path or name of data, or batches as a model gets them, with or without labels behind."""


@dataclass(frozen=True)
class Calibration:
    """Images, and how many of them are used.

    Args:
        images: A folder of images (in folders of classes or not), a parquet file or a folder of
            such, a name as for `cvt train --data`; or batches (B, C, H, W), preprocessed.
        num_images: At most so many: evenly spread over data, the first ones of batches.
    """

    images: Images
    num_images: int = 300

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise UserError(f"Got num_images {self.num_images}, expected 1 or more.")


Calibrating = Calibration | Images


def check_calibration(dtype: str | None, calibration: Calibrating | None, is_needed: bool) -> None:
    """Refuses images without int8, and int8 without images where they are needed."""
    if dtype != "int8" and calibration is not None:
        raise UserError(
            f"Got calibration images with dtype {dtype}, expected them with int8 alone; leave them "
            "out, or take int8."
        )
    if dtype == "int8" and calibration is None and is_needed:
        raise UserError(
            "Got dtype int8 without calibration images, expected real ones to find the ranges of "
            "the activations with; give a folder or parquet file of them as the calibration."
        )


def calibration_images(
    model: nn.Module,
    calibration: Calibrating | None,
    preprocessing: Preprocessing | None = None,
) -> Tensor:
    """Returns images (N, C, H, W) in float32, the same ones every time.

    Files are prepared as the model's checkpoint or configuration says, if nothing else is said;
    those that can't be read are passed over.
    """
    check_calibration("int8", calibration, is_needed=True)
    if not isinstance(calibration, Calibration):
        calibration = Calibration(cast("Images", calibration))
    source, count = calibration.images, calibration.num_images
    if not isinstance(source, str | Path):
        return _first(source, count)
    preprocessing = preprocessing or preprocessing_of(cast("VisionModel", model))
    found = some_images(str(source), count, eval_transform(preprocessing).sizing)
    images, _ = prepared(found, preprocessing, str(source))
    return torch.stack(images)


def prepared(
    found: Iterable[Image.Image | BadImage], preprocessing: Preprocessing, name: str
) -> tuple[list[Tensor], list[str]]:
    """Returns images (C, H, W) as a model gets them, and one sentence for each that is bad."""
    prepare = eval_transform(preprocessing)
    images: list[Tensor] = []
    bad: list[str] = []
    for each in found:
        if isinstance(each, BadImage):
            bad.append(str(each))
        else:
            images.append(prepare(each))
    if not images:
        raise UserError(f"Got no image in {name!r} that can be read, expected one at least.")
    return images, bad


def some_images(
    name: str, count: int, sizing: Sizing | None = None
) -> Iterator[Image.Image | BadImage]:
    """Decodes up to `count` images, evenly spread; a bad one is yielded as its sentence.

    Args:
        name: A folder, file or pattern of images, or else data as `cvt train --data` takes it.
    """
    path = expanded(name)
    has_images = path.is_dir() and not any(path.glob("*.parquet"))
    if not (has_images or path.suffix.lower() in SUFFIXES or is_pattern(str(path))):
        yield from load_split(name, "all").some(count, sizing)
        return
    # Labels don't matter here, and images of one class lie side by side.
    found = list(find_images([str(path)]))
    for index in np.linspace(0, len(found) - 1, min(count, len(found)), dtype=int):
        each = found[index]
        try:
            yield each if isinstance(each, BadImage) else open_image(each, sizing=sizing)
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


# --- A rewritten network with linear maps in int8, in PyTorch, by torchao.

# A product of fewer numbers than these costs less than finding their ranges.
_NARROWEST = 32


def on_int8(
    model: nn.Module,
    names: Sequence[str],
    device: torch.device | str | None,
    calibration: Calibrating | None,
) -> Deployed:
    """Returns the rewritten network whose linear maps compute in int8, all else in float32.

    Weights have a scale for each output, activations one for each token, found when they come:
    nothing is calibrated, and images are only for the `agreement`. The classifier stays in float32.

    On a CPU this is for trying out what int8 does to the answers, or for its quarter of the
    memory: with AVX2 alone, torch's int8 product took twenty times as long as that in float32
    (CvT-13's first linear map of the MLP, Zen 3, torch 2.15, torchao 0.18). For speed on a CPU
    take `engine="openvino"`.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from torchao.quantization.quant_api import quantize_
    except ImportError:
        raise UserError(
            "Int8 in PyTorch needs torchao; install it with: pip install 'cvt[torchao]'."
        ) from None
    images = None if calibration is None else calibration_images(model, calibration)
    _, where = choose_target(model, torch.float32, device)
    kept = [name for name in names if name != "pack"]
    deployed = rewrite(model, kept, torch.float32, where)
    reference = None if images is None else rewrite(model, kept, torch.float32, where)
    names_of_heads = ("head", "head_dist", "fc", "classifier")
    heads = {id(getattr(deployed.network, name, None)) for name in names_of_heads}

    def is_wanted(module: nn.Module, name: str) -> bool:
        if type(module) is not nn.Linear or id(module) in heads:
            return False
        return min(module.in_features, module.out_features) >= _NARROWEST

    quantize_(deployed, Int8DynamicActivationInt8WeightConfig(), is_wanted)
    deployed.kind = "int8"
    if images is not None and reference is not None:
        deployed.agreement = checked_agreement(reference, deployed, images.to(where))
    return deployed
