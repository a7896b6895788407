"""Fills the gaps of a config from the data, the device and the weights it starts from."""

import math
import os
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from cvt.data import BadImage, DataSplits
from cvt.errors import UserError
from cvt.train import presets
from cvt.train.config import TrainConfig, known
from cvt.train.device import choose_precision, may_gain_from_bf16
from cvt.weights.record import Preprocessing, Record

SMALL_SIDE = 64
WHOLE_SIDE = 384
_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What presets are chosen by.

    Args:
        num_images: Training pictures.
        median_side: Median of their short sides, in pixels.
    """

    name: str
    num_images: int
    median_side: int


def measure(splits: DataSplits) -> DataFacts:
    """Looks at a few training pictures, evenly spread.

    Raises:
        UserError: Not one of them can be read.
    """
    found = list(splits.train.some(_LOOKED_AT))
    sides = [min(image.size) for image in found if not isinstance(image, BadImage)]
    if not sides:
        raise UserError(f"None of the images looked at in {splits.name} can be read: {found[0]}")
    side = int(np.median(sides))
    return DataFacts(name=splits.name, num_images=len(splits.train), median_side=side)


def derive(
    config: TrainConfig, facts: DataFacts, device: torch.device, start: Record | None = None
) -> TrainConfig:
    """Returns the config with every gap filled that the run needs.

    From scratch the learning rate follows from the batch: `lr = base_lr * batch_size / 512` (DeiT,
    arXiv 2012.12877, section 6), `batch_size` being that of all processes together. Weights to
    start from get the same peak whatever the batch, unless there is a `base_lr`. `start` is their
    record: its model and its input size hold. Precision `auto` is left where only a try decides.

    Raises:
        UserError: The config names another model than the weights are of, freezes a network that
            starts from nothing, gives epochs and updates that contradict each other, or says how
            to distil without a teacher.
    """
    if start is not None:
        config = _start_from(config, start)
    elif config.freeze == "backbone":
        raise UserError("Got freeze backbone without weights to keep; give some by --weights.")
    _check_distillation(config)
    given_epochs, given_optim = config.epochs, config.optim
    for preset in _presets(config, facts, device):
        config = _fill(config, preset)
    if config.optim.lr is not None and given_optim.base_lr is None:
        config = replace(config, optim=replace(config.optim, base_lr=None))
    side = 32 if facts.median_side <= 32 else SMALL_SIDE
    batch_size = _or(config.batch_size, 1)
    config = replace(
        config,
        epochs=_epochs(config, given_epochs, facts),
        image_size=_or(config.image_size, side),
        num_workers=_or(config.num_workers, _share_of_cores()),
        device=str(device),
        precision=_precision(config.precision, device),
    )
    optim = config.optim
    lr = _or(optim.lr, _or(optim.base_lr, 0.0) * batch_size / 512)
    return replace(config, optim=replace(optim, lr=lr, min_lr=_or(optim.min_lr, lr / 100)))


def preprocessing_for(config: TrainConfig, in_chans: int, start: Record | None) -> Preprocessing:
    """Returns how pictures are brought to the network, in training and ever after.

    Weights to start from bring their own, at the config's size. Otherwise small pictures are used
    whole and scaled to -1..1; photographs lose an eighth at the border and are normalised by
    ImageNet's mean, as the paper's are; from 384 pixels on they too are used whole, also where
    the weights to start from saw fewer pixels, as in the paper's fine-tuning.
    """
    side = known(config.image_size)
    size = (in_chans, side, side)
    if start is not None and start.preprocessing.input_size[0] == in_chans:
        theirs = replace(start.preprocessing, input_size=size)
        grows = side >= WHOLE_SIDE > start.preprocessing.size[0]
        return replace(theirs, crop_pct=1.0, crop_mode="squash") if grows else theirs
    if side <= SMALL_SIDE or in_chans != 3:
        half = (0.5,) * in_chans
        return Preprocessing(input_size=size, mean=half, std=half, crop_pct=1.0, crop_mode="squash")
    if side >= WHOLE_SIDE:
        return Preprocessing(input_size=size, crop_pct=1.0, crop_mode="squash")
    return Preprocessing(input_size=size)


def _start_from(config: TrainConfig, start: Record) -> TrainConfig:
    if config.model not in (None, start.model):
        raise UserError(
            f"Got model {config.model!r} and weights of {start.model!r}; leave the model out, or "
            "give weights of that model."
        )
    size = _or(config.image_size, start.preprocessing.input_size[1])
    return replace(config, model=start.model, image_size=size)


def _check_distillation(config: TrainConfig) -> None:
    given = [
        f"distill.{each.name} {value}"
        for each in fields(config.distill)
        if (value := getattr(config.distill, each.name)) not in (None, "none")
    ]
    if given and config.teacher is None:
        raise UserError(
            f"Got {' and '.join(given)} without a teacher to learn from; name one by --teacher, "
            "or leave it out."
        )


def _precision(name: str, device: torch.device) -> Any:
    if name == "auto" and may_gain_from_bf16(device):
        return name
    return choose_precision(name, device)


def _epochs(config: TrainConfig, given: int | None, facts: DataFacts) -> int:
    """The epochs that the run's updates reach into, or the epochs themselves."""
    if config.updates is None:
        return _or(config.epochs, 1)
    per_epoch = max(facts.num_images // _or(config.batch_size, 1), 1)
    epochs = math.ceil(config.updates / per_epoch)
    if given not in (None, epochs):
        raise UserError(
            f"Got epochs {given} and updates {config.updates}, which end in epoch {epochs}; give "
            "one of them."
        )
    return epochs


def _share_of_cores() -> int:
    """The cores that this process may use, shared with those that torchrun started beside it."""
    may_use = getattr(os, "sched_getaffinity", None)
    cores = len(may_use(0)) if may_use else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _presets(config: TrainConfig, facts: DataFacts, device: torch.device) -> list[TrainConfig]:
    """The tables that apply; where two have a value, the earlier one's is taken."""
    chosen = []
    if config.weights:
        chosen += [presets.PROBING if config.freeze == "backbone" else presets.FINE_TUNING]
        if config.optim.base_lr is not None:
            chosen = [replace(each, optim=replace(each.optim, lr=None)) for each in chosen]
    on_cpu = device.type == "cpu"
    if facts.name == "digits":
        chosen += [presets.DIGITS]
    elif facts.median_side <= SMALL_SIDE:
        chosen += [presets.SMALL_ON_CPU] * on_cpu + [presets.SMALL]
    else:
        chosen += [presets.PHOTOGRAPHS_ON_CPU] * on_cpu + [presets.PHOTOGRAPHS]
    chosen = [_within(preset, facts) for preset in chosen]
    if config.weights or _or(config.image_size, SMALL_SIDE) < SMALL_SIDE:
        # Weights have their network; and what is changed in a row is for larger pictures.
        chosen = [replace(preset, model_args={}) for preset in chosen]
    return [*chosen, *[presets.TAUGHT] * config.is_taught, presets.ALWAYS]


def _within(preset: TrainConfig, facts: DataFacts) -> TrainConfig:
    """Keeps a preset's batch no larger than the training pictures are many."""
    if preset.batch_size is None:
        return preset
    return replace(preset, batch_size=max(2, min(preset.batch_size, facts.num_images)))


def _fill(config: Any, preset: Any) -> Any:
    """Takes the preset's value for every field that is None; changes to a row go with the row.

    That is so where the caller names the very row as well: naming a default changes nothing.
    """
    filled = {}
    for each in fields(config):
        mine, other = getattr(config, each.name), getattr(preset, each.name)
        if is_dataclass(mine):
            filled[each.name] = _fill(mine, other)
        elif mine is None:
            filled[each.name] = other
    if isinstance(config, TrainConfig) and not config.model_args:
        is_its_row = preset.model is not None and config.model in (None, preset.model)
        filled["model_args"] = preset.model_args if is_its_row else {}
    return replace(config, **filled)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
