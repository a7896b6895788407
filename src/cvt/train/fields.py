"""Checks the values of a config against the annotations of its fields, and their ranges."""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cvt.errors import UserError

_LEAST = {
    "epochs": 1,
    "updates": 1,
    "batch_size": 2,
    "accum_steps": 1,
    "image_size": 1,
    "seed": 0,
    "num_workers": 0,
    "repeats": 1,
    "keep_checkpoints": 1,
}
_MOST = {"num_workers": 1024, "image_size": 4096, "repeats": 1024}
_ABOVE_ZERO = ("base_lr", "lr", "checkpoint_minutes", "tau")
_NOT_NEGATIVE = ("min_lr", "weight_decay", "warmup_epochs", "clip_grad", "mixup", "cutmix")
_SHARES = (
    "drop_path_rate",
    "smoothing",
    "hflip",
    "re_prob",
    "val_fraction",
    "alpha",
)
_NOT_QUITE_ONE = ("momentum", "ema_decay")


def check_fields(config: Any, prefix: str) -> None:
    """Checks the kinds and ranges of all fields of a dataclass, nested groups included.

    Args:
        prefix: What stands before a field's name in messages, such as `optim.`.

    Raises:
        UserError: A value is not what its field's annotation or range asks for.
    """
    hints = get_type_hints(type(config))
    for each in fields(config):
        name, value = prefix + each.name, getattr(config, each.name)
        if is_dataclass(value):
            check_fields(value, name + ".")
        elif not _is_a(value, hints[each.name]):
            raise UserError(f"Got {name} {value!r}, expected {_describe(hints[each.name])}.")
        elif value is not None:
            _check_range(name, each.name, value)


def _check_range(name: str, field_name: str, value: Any) -> None:
    if field_name in _LEAST and value < _LEAST[field_name]:
        raise UserError(f"Got {name} {value}, expected {_LEAST[field_name]} or more.")
    if field_name in _MOST and value > _MOST[field_name]:
        raise UserError(f"Got {name} {value}, expected {_MOST[field_name]:,} at most.")
    if field_name in _ABOVE_ZERO and not 0 < value < float("inf"):
        raise UserError(f"Got {name} {value}, expected a number above 0.")
    if field_name in _NOT_NEGATIVE and not 0 <= value < float("inf"):
        raise UserError(f"Got {name} {value}, expected a number of 0 or more.")
    if field_name in _SHARES and not 0 <= value <= 1:
        raise UserError(f"Got {name} {value}, expected a number from 0 to 1.")
    if field_name in _NOT_QUITE_ONE and not 0 <= value < 1:
        raise UserError(f"Got {name} {value}, expected a number from 0 to less than 1.")
    if field_name == "layer_decay" and not 0 < value <= 1:
        raise UserError(f"Got {name} {value}, expected a number above 0, up to 1.")


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field's annotation; whole numbers pass as floats."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        fits = isinstance(value, tuple) and len(value) == len(get_args(hint))
        return fits and all(_is_a(item, float) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, origin or hint)


def _describe(hint: Any) -> str:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    kinds = []
    for option in options:
        if get_origin(option) is Literal:
            kinds += map(str, get_args(option))
        elif option is not type(None):
            kinds.append(words.get(option, "two numbers" if get_origin(option) else str(option)))
    return " or ".join(kinds)
