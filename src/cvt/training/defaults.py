"""Fills the gaps of a config from the data, the device and the weights it starts from."""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvt.data import BadImage, DataSplits
from cvt.errors import UserError, did_you_mean
from cvt.files import expanded
from cvt.runtime import choose_precision, may_gain_from_bf16
from cvt.training.config import (
    AugmentConfig,
    DistillConfig,
    MixConfig,
    OptimConfig,
    TrainConfig,
    known,
    read_config,
)
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
        chosen += [PROBING if config.freeze == "backbone" else FINE_TUNING]
        if config.optim.base_lr is not None:
            chosen = [replace(each, optim=replace(each.optim, lr=None)) for each in chosen]
    on_cpu = device.type == "cpu"
    if facts.name == "digits":
        chosen += [DIGITS]
    elif facts.median_side <= SMALL_SIDE:
        chosen += [SMALL_ON_CPU] * on_cpu + [SMALL]
    else:
        chosen += [PHOTOGRAPHS_ON_CPU] * on_cpu + [PHOTOGRAPHS]
    chosen = [_within(preset, facts) for preset in chosen]
    if config.weights or _or(config.image_size, SMALL_SIDE) < SMALL_SIDE:
        # Weights have their network; and what is changed in a row is for larger pictures.
        chosen = [replace(preset, model_args={}) for preset in chosen]
    return [*chosen, *[TAUGHT] * config.is_taught, ALWAYS]


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


# --- What a run does when nobody says otherwise: a table for each kind of data.
#
# A preset is a `TrainConfig` whose values fill the gaps of the caller's.

# Scans of 8x8 pixels, enlarged twofold so that a crop can shift and stretch them by parts of a
# pixel; a stem of stride 2 then gives every pixel a token. Mirroring would make other shapes of
# digits, and colour has no meaning here. Measured, see the slow test.
DIGITS = TrainConfig(
    model="cvt_nano_32",
    image_size=16,
    epochs=30,
    batch_size=64,
    num_workers=0,
    optim=OptimConfig(base_lr=16e-3, weight_decay=0.05, warmup_epochs=2.0, clip_grad=1.0),
    augment=AugmentConfig(
        crop="random_resized",
        scale=(0.6, 1.0),
        ratio=(0.8, 1.25),
        hflip=0.0,
        color_jitter=0.0,
        auto_augment="off",
        re_prob=0.0,
    ),
    mix=MixConfig(mixup=0.0, cutmix=0.0, smoothing=0.1),
)

# Pictures of up to 64 pixels, such as CIFAR: a random part of 8 % of 32x32 pixels shows nothing,
# so the whole picture is shifted instead. Mixing and erasing take the place of more data.
SMALL = TrainConfig(
    model="cvt_mini_32",
    epochs=100,
    batch_size=256,
    optim=OptimConfig(base_lr=1e-3, weight_decay=0.05, warmup_epochs=5.0, clip_grad=1.0),
    augment=AugmentConfig(
        crop="pad", hflip=0.5, color_jitter=0.0, auto_augment="rand-m5-mstd0.5-inc1", re_prob=0.25
    ),
    mix=MixConfig(mixup=0.2, cutmix=1.0, smoothing=0.1),
)

# The paper's ImageNet recipe (facts: microsoft/CvT f851e68, YAML): DeiT's rule of 5e-4 for 512
# images, which is the YAML's 2e-3 at 2048; the paper's 0.02 is a misprint of that. Clipping is
# not in it, but is harmless at this norm and guards small batches.
PHOTOGRAPHS = TrainConfig(
    model="cvt_13",
    image_size=224,
    epochs=300,
    batch_size=256,
    optim=OptimConfig(base_lr=5e-4, weight_decay=0.05, warmup_epochs=5.0, clip_grad=5.0),
    augment=AugmentConfig(
        crop="random_resized",
        scale=(0.08, 1.0),
        hflip=0.5,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
    ),
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
)

# Without an accelerator the presets above would take days: a small network sees fewer, smaller
# pictures, and short runs do better without mixing. Small pictures are decoded so quickly that
# worker processes only take cores from the network: on two, 324 images/s without and 244 with.
SMALL_ON_CPU = TrainConfig(
    model="cvt_nano_32",
    epochs=10,
    batch_size=64,
    num_workers=0,
    optim=OptimConfig(base_lr=8e-3, warmup_epochs=1.0),
    augment=AugmentConfig(auto_augment="off", re_prob=0.0),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)
PHOTOGRAPHS_ON_CPU = TrainConfig(
    model="cvt_nano_32",
    model_args={"embed_kernel": [7, 3, 3], "embed_stride": [4, 2, 2], "embed_padding": [3, 1, 1]},
    image_size=128,
    epochs=30,
    batch_size=32,
    optim=OptimConfig(base_lr=8e-3, warmup_epochs=2.0, clip_grad=1.0),
    augment=AugmentConfig(scale=(0.35, 1.0), auto_augment="off", color_jitter=0.2, re_prob=0.0),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# Weights to start from. How far an update of Adam's goes hardly depends on the batch, and small
# data sets have small batches: scaled by them, the rate of a recipe for large batches would
# leave the weights where they are. So the peak is one for all batches, and the layers near the
# pictures, of which a deep network has many, learn more slowly (BEiT, arXiv 2106.08254). Measured
# from `demo` on ten classes of Tiny ImageNet and on digits (CHANGELOG.md has figures), where
# twice this did a little better still; not on the paper's networks, which are deeper.
FINE_TUNING = TrainConfig(
    epochs=20,
    optim=OptimConfig(
        lr=2e-3, weight_decay=0.05, warmup_epochs=1.0, layer_decay=0.75, clip_grad=1.0
    ),
    augment=AugmentConfig(scale=(0.35, 1.0)),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# A classifier alone, on features that stay as they are, takes more than ten times as much.
PROBING = TrainConfig(
    epochs=20,
    optim=OptimConfig(lr=3e-2, weight_decay=0.0, warmup_epochs=1.0, layer_decay=1.0, clip_grad=1.0),
    augment=AugmentConfig(scale=(0.35, 1.0)),
    mix=MixConfig(mixup=0.0, cutmix=0.0),
)

# What no kind of data asks to be different.
ALWAYS = TrainConfig(
    ema_decay=0.0,
    optim=OptimConfig(opt="adamw", momentum=0.9, layer_decay=1.0),
    augment=AugmentConfig(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), re_mode="pixel", repeats=1),
    mix=MixConfig(loss="ce"),
)

# Where there is a teacher: the defaults of DeiT's code (facts: facebookresearch/deit 7e160fe,
# main.py), of the kind that its paper finds best. For the soft kind the paper (arXiv 2012.12877,
# section 6.1) has alpha 0.1 and tau 3.
TAUGHT = TrainConfig(distill=DistillConfig(kind="hard", alpha=0.5, tau=1.0))


# --- Recipes and other config files: where they are, and what holds where several say something.

Layer = Mapping[str, Any]


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the library, by name.

    In an installed library they lie inside the package, in a checkout beside `src`.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        files = sorted(folder.glob("*.yaml"))
        if files:
            return {file.stem: file for file in files}
    return {}


def find_config(name: str) -> Path:
    """Returns the file of this path; or the shipped recipe of this name, if there is no such file.

    Raises:
        UserError: There is neither.
    """
    path = expanded(name)
    if path.is_file():
        return path
    recipes = shipped_recipes()
    if name.removesuffix(".yaml") in recipes:
        return recipes[name.removesuffix(".yaml")]
    raise UserError(
        f"There is no config file {name}, and no recipe of that name among {', '.join(recipes)}."
        f"{did_you_mean(path.stem, recipes)}"
    )


def read_layers(names: Iterable[str], flags: Layer) -> dict[str, Any]:
    """Reads config files in order and lays the flags on top, for `TrainConfig.from_dict`.

    Args:
        names: Paths and names of recipes; what a later one says holds.
        flags: What was said on the command line, which holds above all files.

    Raises:
        UserError: A file is not there or wrong; the message names it.
    """
    return reduce(overlay, [*(read_config(find_config(name)) for name in names), flags], {})


def overlay(lower: Layer, upper: Layer) -> dict[str, Any]:
    """Returns two layers as one; where both name a key, the upper one's value holds.

    What the lower one merely derived from other values goes, so that it is derived again. So does
    what the upper one says in another way (`updates` instead of `epochs`, `optim.base_lr` instead
    of `optim.lr`), and what was changed in a row (`model_args`) that the upper one replaces.
    """
    if not upper:
        return dict(lower)
    lower = _without_derived(lower)
    for network in ("model", "teacher"):
        old, new = lower.get(network), upper.get(network)
        if None not in (old, new) and old != new:
            lower.pop(f"{network}_args", None)
    lower = _without_rivals(lower, upper, ("epochs", "updates"))
    lower_optim, upper_optim = lower.get("optim", {}), upper.get("optim", {})
    lower["optim"] = _without_rivals(lower_optim, upper_optim, ("base_lr", "lr"))
    return _merge(lower, upper)


def _without_derived(layer: Layer) -> dict[str, Any]:
    """Drops what a run's own config holds only because `cvt.training.defaults` worked it out."""
    layer, optim = dict(layer), dict(layer.get("optim", {}))
    if layer.get("updates") is not None:
        layer.pop("epochs", None)
    base_lr, batch_size = optim.get("base_lr"), layer.get("batch_size")
    lr, min_lr = optim.get("lr"), optim.get("min_lr")
    if base_lr and batch_size and lr and math.isclose(lr, base_lr * batch_size / 512):
        del optim["lr"]
        if min_lr and math.isclose(min_lr, lr / 100):
            del optim["min_lr"]
    return {**layer, "optim": optim}


def _without_rivals(lower: Layer, upper: Layer, rivals: tuple[str, str]) -> dict[str, Any]:
    is_said = any(upper.get(name) is not None for name in rivals)
    return {name: value for name, value in lower.items() if not (is_said and name in rivals)}


def _merge(lower: Layer, upper: Layer) -> dict[str, Any]:
    merged = dict(lower)
    for name, value in upper.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[name] = value
    return merged
