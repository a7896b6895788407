"""From what was said to a complete config: layers of plain data, each laid over the one before.

First what is usual for the data and the device, as recipes that `default_recipes` chooses; then
recipes and files that the caller names, in their order; then flags. What is still open follows from
those: the learning rate from the batch, the epochs from the updates. A layer that says something in
another way (`minutes` for `epochs`, `optim.base_lr` for `optim.lr`) takes the place of the first.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cvt.data import BadImage, DataSplits
from cvt.errors import UserError, did_you_mean
from cvt.files import expanded
from cvt.plain import from_plain, layer_from_plain, read_yaml_file
from cvt.runtime import (
    PRECISIONS,
    choose_precision,
    may_gain_from_bf16,
    num_cores,
    number_format,
)
from cvt.training.config import GROUPS, Layer, TrainConfig
from cvt.weights.published import DEMO
from cvt.weights.record import Preprocessing, Record

LENGTHS = ("epochs", "updates", "minutes")
SMALL_SIDE = 64
_FAST_ENOUGH = 128
WHOLE_SIDE = 384
_LOOKED_AT = 64


# --- Layers: what somebody said, and which of two holds.


def said(plain: Layer, what: str) -> dict[str, Any]:
    """Returns the fields that plain data name, checked, number formats by their one name."""
    precision = plain.get("precision") if isinstance(plain, Mapping) else None
    if isinstance(precision, str | torch.dtype):
        plain = {**plain, "precision": number_format(precision, PRECISIONS, "precision")}
    return layer_from_plain(TrainConfig, plain, what)


def recipe_folders() -> list[Path]:
    """Where recipes may lie: inside an installed library, beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    return [package / "recipes", package.parents[1] / "recipes"]


def shipped_recipes() -> dict[str, Path]:
    """Returns the recipes that come with the library, by name; those of the defaults left out."""
    found = [path for folder in recipe_folders() for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in found}


def find_recipe(name: str) -> Path:
    """Returns the file of this path; or the shipped recipe of this name, if there is no such file.

    The defaults are recipes too: `defaults/small` is one.
    """
    path = expanded(name)
    if path.is_file():
        return path
    for folder in recipe_folders():
        shipped = folder / f"{name.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    recipes = shipped_recipes()
    raise UserError(
        f"There is no config file {name}, and no recipe of that name among {', '.join(recipes)}."
        f"{did_you_mean(path.stem, recipes)}"
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Reads a recipe by its name, or a YAML file, and returns the fields that it names."""
    path = find_recipe(name)
    plain = read_yaml_file(path, f"The config {path}")
    layer = said(plain, str(path))
    # A recipe of ours may name the most of both, and so does the whole config of a run.
    is_whole = {each.name for each in fields(TrainConfig)} <= set(plain)
    if not is_whole and not any(folder in path.parents for folder in recipe_folders()):
        check_length(layer)
    return layer


def read_layers(names: Iterable[str], flags: Layer, whole: Layer | None = None) -> dict[str, Any]:
    """Reads recipes, by name, and files in order and lays the flags on top; the later one holds.

    Args:
        whole: A complete config, between them.
    """
    check_length(flags)
    return fast_filled(reduce(overlay, [*map(read_recipe, names), whole or {}, flags], {}))


def check_length(layer: Layer) -> None:
    """Refuses minutes beside another length, where somebody says both at once."""
    for name in ("epochs", "updates"):
        if layer.get("minutes") is not None and layer.get(name) is not None:
            raise UserError(
                f"Got minutes {layer['minutes']:g} and {name} {layer[name]}, of which each is the "
                "length of the run; give one of them."
            )


def overlay(lower: Layer, upper: Layer) -> dict[str, Any]:
    """Returns two layers as one; where both name a field, the upper one's value holds.

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
    is_fast = lower.get("fast") or upper.get("fast")
    lower = _without_rivals(lower, upper, (*LENGTHS, *["fast"] * bool(is_fast)))
    lower_optim, upper_optim = lower.get("optim", {}), upper.get("optim", {})
    lower["optim"] = _without_rivals(lower_optim, upper_optim, ("base_lr", "lr"))
    return _merge(lower, upper)


# What a fast run does not do, with the values by which it is not done.
_NOT_FAST = {
    "epochs": (1,),
    "updates": (1,),
    "minutes": (),
    "patience": (),
    "teacher": (),
    "ema_decay": (0,),
    "freeze": ("backbone",),
    "head": ("probed",),
}


def fast_filled(layer: Layer) -> dict[str, Any]:
    """Returns a layer with what `fast` says besides: a run of one update, which is the fit."""
    if not layer.get("fast") or "resume" in layer:
        return dict(layer)
    for name, values in _NOT_FAST.items():
        value = layer.get(name)
        if value is not None and value not in values:
            raise UserError(
                f"Got fast with {name} {value!r}, but it fits the classifier alone, at once; leave "
                f"{name} out, or give head probed instead of fast."
            )
    if layer.get("weights") == "none":
        raise UserError("Got fast without weights, whose features it needs; leave weights out.")
    implied = {"updates": 1, "freeze": "backbone", "head": "probed"}
    return {"weights": DEMO, **layer, **implied}


def _without_derived(layer: Layer) -> dict[str, Any]:
    """Drops what a run's own config holds only because `derive` worked it out."""
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


def _without_rivals(lower: Layer, upper: Layer, rivals: tuple[str, ...]) -> dict[str, Any]:
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


# --- What is usual for the data and the device, and what follows from it.


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What default recipes are chosen by; `median_side`, in pixels, is of the short sides."""

    name: str
    num_images: int
    median_side: int


def measure(splits: DataSplits) -> DataFacts:
    """Looks at a few training images, evenly spread."""
    found = list(splits.train.some(_LOOKED_AT))
    sides = [min(image.size) for image in found if not isinstance(image, BadImage)]
    if not sides:
        raise UserError(f"None of the images looked at in {splits.name} can be read: {found[0]}")
    side = int(np.median(sides))
    return DataFacts(name=splits.name, num_images=len(splits.train), median_side=side)


START = "cvt_micro_96.tiny_imagenet"
"""What a run starts from where nobody names a model or weights: small, and trained on photos."""

_START_SIDES = {32: 48, 64: 64}
_LARGEST_START_SIDE = 96


def with_start(asked: Layer, facts: DataFacts) -> dict[str, Any]:
    """Returns what was said, with the weights that come along where it names no start.

    Weights `none` are none; a model by name has fresh ones. The side follows from the images'.
    """
    if asked.get("weights") == "none":
        return {name: value for name, value in asked.items() if name != "weights"}
    if facts.name == "digits" or asked.keys() & {"model", "model_args", "weights"}:
        return dict(asked)
    sides = (side for most, side in _START_SIDES.items() if facts.median_side <= most)
    side = next(sides, _LARGEST_START_SIDE)
    return {"image_size": side, **asked, "weights": START}


def told_start(asked: Layer, config: TrainConfig) -> tuple[list[str], list[str]]:
    """Returns why a run starts where it does, and what would be better, where nobody chose."""
    if config.weights != START or "weights" in asked:
        return [], []
    why = (
        f"It starts from {START}, which knows 200 kinds of things: what it sees in photographs is "
        "worth more than fresh weights (--weights none) learn in that time."
    )
    more = "--minutes 30" if config.minutes else "more --epochs"
    better = (
        f"Better with more time ({more}), or, with a network connection, from larger weights "
        "(--weights cvt_13.msft_in1k, with --fast on a CPU)."
    )
    return [why], [better]


def default_recipes(asked: Layer, facts: DataFacts, device: torch.device) -> list[str]:
    """Returns the names of the recipes that apply, each to be laid over the one before."""
    if facts.name == "digits":
        chosen = ["digits"]
    else:
        kind = "small" if facts.median_side <= SMALL_SIDE else "photographs"
        chosen = [f"defaults/{kind}"] + [f"defaults/{kind}_on_cpu"] * (device.type == "cpu")
    if "weights" in asked:
        probing = asked.get("freeze") == "backbone"
        chosen += ["defaults/probing" if probing else "defaults/fine_tuning"]
        chosen += ["defaults/shipped_start"] * (asked["weights"] == START and device.type == "cpu")
    return chosen


def derive(
    asked: Layer, facts: DataFacts, device: torch.device, start: Record | None = None
) -> TrainConfig:
    """Returns the complete config of a run.

    From scratch the learning rate follows from the batch: `lr = base_lr * batch_size / 512` (DeiT,
    arXiv 2012.12877, section 6), `batch_size` being that of all processes together. Weights to
    start from get the same peak whatever the batch, unless there is a `base_lr`. Precision `auto`
    is left where only a try decides.

    Args:
        asked: What was said, all layers of it as one.
        start: The record of the weights to start from: its model and its input size hold.
    """
    if start is not None:
        asked = _start_from(asked, start, facts)
    elif asked.get("freeze") == "backbone":
        raise UserError("Got freeze backbone without weights to keep; give some by --weights.")
    elif asked.get("head") == "probed":
        raise UserError("Got head probed without weights to probe; give some by --weights.")
    config = overlay(_defaults(asked, facts, device), asked)
    config.setdefault("image_size", 32 if facts.median_side <= 32 else SMALL_SIDE)
    # The cores that this process may use are shared with those that torchrun started beside it.
    cores = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    config.setdefault("num_workers", max(1, min(16, cores)))
    config["epochs"] = _epochs(config, facts)
    optim = config["optim"]
    lr = optim["lr"] if "lr" in optim else optim["base_lr"] * config["batch_size"] / 512
    config["optim"] = {"min_lr": lr / 100, **optim, "lr": lr}
    config["distill"] = _distillation(config)
    config["device"] = str(device)
    if config.setdefault("precision", "auto") != "auto" or not may_gain_from_bf16(device):
        config["precision"] = choose_precision(config["precision"], device)
    return from_plain(TrainConfig, config, "the config")


def _start_from(asked: Layer, start: Record, facts: DataFacts) -> dict[str, Any]:
    if asked.get("model", start.model).partition(".")[0] != start.model:
        raise UserError(
            f"Got model {asked['model']!r} and weights of {start.model!r}; leave the model out, or "
            "give weights of that model."
        )
    side = start.preprocessing.input_size[1]
    if asked.get("fast"):
        side = _fast_side(side, facts)
    return {"image_size": side, **asked, "model": start.model}


def _fast_side(side: int, facts: DataFacts) -> int:
    """Half as many pixels again where weights saw few and the images have them.

    A network that is not trained on sees objects as large as in training in images that are larger
    than the crops of that (FixRes, arXiv 1906.06423), and more of them. From 64 to 96 pixels gave
    `cvt_micro_96.tiny_imagenet` 0.5 to 2.7 points of test top-1 on four sets of photographs and
    took 1.0 on a fifth.
    """
    larger = side * 3 // 2 // 16 * 16
    return larger if side < _FAST_ENOUGH and side < larger <= facts.median_side else side


def _defaults(asked: Layer, facts: DataFacts, device: torch.device) -> dict[str, Any]:
    """The default recipes as one layer, to the measure of the data.

    Weights have their network, and what is changed in a row is for larger images: those changes
    go. So they do where the caller changes the row.
    """
    layer = reduce(overlay, map(read_recipe, default_recipes(asked, facts, device)))
    layer["batch_size"] = max(2, min(layer["batch_size"], facts.num_images))
    is_small = asked.get("image_size", SMALL_SIDE) < SMALL_SIDE
    if "weights" in asked or is_small or asked.get("model_args"):
        layer.pop("model_args", None)
    return layer


def _epochs(config: Layer, facts: DataFacts) -> int | None:
    """The epochs that the run's updates reach into, or the epochs themselves, if they count."""
    given, updates = config.get("epochs"), config.get("updates")
    if updates is None:
        return given
    per_epoch = max(facts.num_images // config["batch_size"], 1)
    epochs = math.ceil(updates / per_epoch)
    if given not in (None, epochs):
        raise UserError(
            f"Got epochs {given} and updates {updates}, which end in epoch {epochs}; give one of "
            "them."
        )
    return epochs


def _distillation(config: Layer) -> dict[str, Any] | None:
    """How the teacher teaches, if there is one; without, only `kind` none may be said."""
    distill = config.get("distill", {})
    if "teacher" in config:
        return distill
    given = [f"distill.{name} {value}" for name, value in distill.items() if value != "none"]
    if given:
        raise UserError(
            f"Got {' and '.join(given)} without a teacher to learn from; name one by --teacher, "
            "or leave it out."
        )
    return None


def preprocessing_for(config: TrainConfig, in_chans: int, start: Record | None) -> Preprocessing:
    """Returns how images are brought to the network, in training and ever after.

    Weights to start from bring their own, at the config's size. Otherwise small images are used
    whole and scaled to -1..1; photographs lose an eighth at the border and are normalised by
    ImageNet's mean, as the paper's are; from 384 pixels on they too are used whole, also where
    the weights to start from saw fewer pixels, as in the paper's fine-tuning.
    """
    side = config.image_size
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


# --- A run that goes on: what was said over the config that it was started with.

# What may differ when a run goes on, because it does not change what is computed.
_FREE = (
    "resume",
    "force",
    "device",
    "num_workers",
    "data_dir",
    "download",
    "accum_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
)


def resumed(stored: TrainConfig, asked: Layer) -> TrainConfig:
    """Returns the stored config with what the caller may change, such as device and workers.

    With `force` all changes are taken over. Nothing is fetched that is not asked for anew, and
    what `auto` chose then holds.
    """
    config: dict[str, Any] = {**said(stored.to_dict(), "the stored config"), "download": False}
    for top, value in asked.items():
        if value == "auto":
            continue
        prefix, old, new = "", config, {top: value}
        if top in GROUPS:
            prefix, old, new = f"{top}.", config.setdefault(top, {}), value
        for name, each in new.items():
            if each != old.get(name) and name not in _FREE and not asked.get("force"):
                raise UserError(
                    f"Got {prefix}{name} {each!r}, but the run to resume was started with "
                    f"{old.get(name)!r}; leave it out, start a new run, or change it all the same "
                    "with --force."
                )
        old.update(new)
    return from_plain(TrainConfig, config, "the config")


def same_chunks(config: TrainConfig, chunks: int, world_size: int) -> TrainConfig:
    """Returns the config with the accumulation steps that keep a batch's chunks as they were."""
    if chunks % world_size and not config.force:
        raise UserError(
            f"Got {world_size} processes for a run whose batches have {chunks} chunks, expected a "
            f"divisor of {chunks}; start as many, or go on all the same with --force."
        )
    return replace(config, accum_steps=max(chunks // world_size, 1))
