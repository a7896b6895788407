"""Checks that the fields of every spec share: each refuses with one sentence."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

from cvt.errors import UserError, did_you_mean
from cvt.plain import Range

# Beyond what has been built by anybody, so that a typing error or a stranger's file is told.
Width = Annotated[int, Range(1, 16384)]
Depth = Annotated[int, Range(0, 512)]
Kernel = Annotated[int, Range(1, 512)]
Padding = Annotated[int, Range(0, 512)]
Side = Annotated[int, Range(1, 4096)]
Channels = Annotated[int, Range(1, 4096)]
Classes = Annotated[int, Range(0, 1_000_000)]
Rate = Annotated[float, Range(0, 1)]
Ratio = Annotated[float, Range(above=0, most=64)]
Epsilon = Annotated[float, Range(above=0, most=1)]

MOST_STAGES = 16


def image_size(value: Any) -> Any:
    """Returns a side as (height, width) in pixels; all else as it is."""
    return (value, value) if isinstance(value, int) else value


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


def check_heads(spec: Any, dim: str = "embed_dim", heads: str = "num_heads") -> None:
    """Refuses a width that its heads cannot share."""
    if getattr(spec, dim) % getattr(spec, heads):
        raise UserError(
            f"{dim}={getattr(spec, dim)} does not divide into {heads}={getattr(spec, heads)}; "
            "choose a number of heads that divides the width."
        )


def check_fields(changes: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses a change of a field that a model does not have (the nearest is named)."""
    for name in changes:
        if name not in known:
            raise UserError(f"Unknown field {name!r} of a model.{did_you_mean(name, known)}")
