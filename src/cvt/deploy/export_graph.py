"""The rewritten network as one graph, from `torch.export`; every format starts from it."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as TorchUserError
from torch.export import Dim, ExportedProgram

from cvt.deploy.export_sizes import Sizes
from cvt.deploy.passes import chosen_passes
from cvt.deploy.rewrite import rewrite
from cvt.errors import UserError
from cvt.parts.contract import VisionModel

_PLACE = {"batch": 0, "height": 2, "width": 3}


def trace(
    model: nn.Module, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> ExportedProgram:
    """Traces a model's inference form, which has no weights or kernels of one machine's.

    Images go in and answers come out in float32. Where the size is fixed, position tables are
    interpolated to it here and not in the graph.

    Raises:
        UserError: The network cannot be one graph for all the sizes.
    """
    if "height" not in sizes.free and "width" not in sizes.free:
        model = _at_size(model, sizes.usual)
    network = rewrite(model, chosen_passes(("kernels", "pack")), dtype, device)
    batch, channels, height, width = sizes.examples()[0]
    if "width" in sizes.free:
        width += width // 2  # sizes that are equal by chance are taken for the same
    images = torch.zeros(batch, channels, height, width, device=device)
    try:
        return _traced(network, images, _named(sizes))
    except TorchUserError as error:
        if not sizes.free:
            raise
        reason = str(error).partition("\n")[0]
    # What torch cannot prove to hold for all sizes may do so; the check tries several.
    try:
        program = _traced(network, images, _tried(sizes))
    except TorchUserError as error:
        raise _not_one_graph(model, sizes, str(error).partition("\n")[0]) from error
    if not _holds_from(program, sizes):
        raise _not_one_graph(model, sizes, reason)
    return program


def image_shape(program: ExportedProgram) -> Sequence[int | torch.SymInt]:
    """Returns the shape of the images that a program takes; a free size is no int."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (each for each in program.graph.nodes if each.name == name)
    return node.meta["val"].shape


def free_places(program: ExportedProgram) -> dict[int, str]:
    """Returns which of the images' axes are free, with their names."""
    shape = image_shape(program)
    return {place: name for name, place in _PLACE.items() if not isinstance(shape[place], int)}


def _traced(network: nn.Module, images: Tensor, free: dict[int, Any]) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(network, (images,), dynamic_shapes=(free,), strict=False)


def _named(sizes: Sizes) -> dict[int, Any]:
    return {_PLACE[name]: Dim(name, min=sizes.of(name)[0]) for name in sizes.free}


def _tried(sizes: Sizes) -> dict[int, Any]:
    return {_PLACE[name]: Dim.DYNAMIC(min=sizes.of(name)[0]) for name in sizes.free}


def _holds_from(program: ExportedProgram, sizes: Sizes) -> bool:
    """Whether the tracing kept the smallest sizes; torch says 2 of a batch that may be 1."""
    shape = image_shape(program)
    found = (cast("torch.SymInt", shape[_PLACE[axis]]) for axis in sizes.free)
    ranges = (program.range_constraints[size.node.expr] for size in found)
    return all(
        each.lower <= max(2, sizes.of(axis)[0])
        for each, axis in zip(ranges, sizes.free, strict=True)
    )


def _not_one_graph(model: nn.Module, sizes: Sizes, reason: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot be one graph for every {' and '.join(sizes.free)} "
        f"({reason.rstrip('.!')}); leave some out of dynamic."
    )


def _at_size(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    spec = getattr(model, "spec", None)
    if spec is None or spec.img_size == size or not hasattr(model, "set_input_size"):
        return model
    resized = cast("VisionModel", copy.deepcopy(model))
    resized.set_input_size(size)
    return resized
