"""Recipes and other config files: where they are, and what holds where several say something."""

import math
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from cvt.errors import UserError, did_you_mean
from cvt.files import expanded
from cvt.train.config import read_config

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
    """Drops what a run's own config holds only because `cvt.train.defaults` worked it out."""
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
