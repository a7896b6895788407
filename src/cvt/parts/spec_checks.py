"""Checks that the fields of every spec share: each refuses with one sentence."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_args

from cvt.errors import UserError, did_you_mean


def image_size(value: Any) -> tuple[int, int]:
    """Returns a side, or (height, width), as (height, width) in pixels."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UserError(f"img_size={value!r} must be a side or (height, width) in pixels.")
    return pair


def per_stage(name: str, value: Any, num_stages: int) -> list[Any]:
    """Returns one value a stage, of one for all or a list with one each."""
    if not isinstance(value, list | tuple):
        return [value] * num_stages
    if len(value) != num_stages:
        raise UserError(
            f"{name}={value!r} has {len(value)} values for {num_stages} stages; "
            "give one for all or one for each."
        )
    return list(value)


def check_keys(plain: Mapping[str, Any], spec: Any) -> None:
    """Refuses a key that is no field of the dataclass `spec`."""
    known = {field.name for field in fields(spec)}
    for name in plain:
        if name not in known:
            raise UserError(f"Unknown key {name!r} in a spec.{did_you_mean(name, known)}")


def check_count(spec: Any, name: str, least: int) -> None:
    """Refuses a field that is no whole number of at least `least`."""
    value = getattr(spec, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}.")


def check_rate(spec: Any, name: str) -> None:
    """Refuses a field that is no probability."""
    value = getattr(spec, name)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r} must be a probability between 0 and 1.")


def check_flag(spec: Any, name: str) -> None:
    """Refuses a field that is neither true nor false."""
    if not isinstance(getattr(spec, name), bool):
        raise UserError(f"{name}={getattr(spec, name)!r} must be true or false.")


def check_choice(spec: Any, name: str, choices: Any) -> None:
    """Refuses a field that is not among a `Literal`'s values (the nearest is named)."""
    value, options = getattr(spec, name), get_args(choices)
    if value not in options:
        hint = did_you_mean(str(value), options)
        raise UserError(f"{name}={value!r} is not one of {', '.join(map(repr, options))}.{hint}")


def check_heads(spec: Any, dim: str = "embed_dim", heads: str = "num_heads") -> None:
    """Refuses a width that its heads cannot share."""
    if getattr(spec, dim) % getattr(spec, heads):
        raise UserError(
            f"{dim}={getattr(spec, dim)} does not divide into {heads}={getattr(spec, heads)}; "
            "choose a number of heads that divides the width."
        )


def check_positive(spec: Any, name: str) -> None:
    """Refuses a field that is no number above 0."""
    value = getattr(spec, name)
    if not isinstance(value, int | float) or value <= 0:
        raise UserError(f"{name}={value!r} must be a number above 0.")


def check_fields(changes: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses a change of a field that a model does not have (the nearest is named)."""
    for name in changes:
        if name not in known:
            raise UserError(f"Unknown field {name!r} of a model.{did_you_mean(name, known)}")
