"""Loading a state dict whole or not at all, and fitting one to a changed model beforehand."""

from collections.abc import Mapping

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.contract import VisionModel
from cvt.parts.position import resize_table
from cvt.systems.catalog import make_network, row_of
from cvt.weights.ends import classifiers, first_conv, in_chans, num_classes, tables
from cvt.weights.layouts import StateDict
from cvt.weights.record import Record

_SHOWN = 12
_COUNTER = ".num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Loads every tensor; names and shapes have to agree both ways, or nothing is loaded.

    Args:
        source: Where the state dict comes from, for the message.

    Raises:
        UserError: They don't agree; the message lists what is missing (`-`), what is too much
            (`+`) and what has another shape (`~`). The model is as it was.
    """
    difference = diff(model.state_dict(), state_dict)
    if difference:
        raise UserError(
            f"{source} does not fit the model, expected the same names and shapes; check the "
            "model's name and its changes:",
            details=difference.splitlines(),
        )
    model.load_state_dict(dict(state_dict))


def diff(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Returns the differences of two state dicts, one a line; an empty string if there are none.

    The counters of BatchNorms may be missing: torch itself sets them to 0 then.
    """
    missing = [
        f"- {name} {_shape(expected[name])}"
        for name in expected
        if name not in got and not name.endswith(_COUNTER)
    ]
    too_much = [f"+ {name} {_shape(got[name])}" for name in got if name not in expected]
    reshaped = [
        f"~ {name} {_shape(got[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in got and got[name].shape != tensor.shape
    ]
    return "\n".join(line for lines in (missing, too_much, reshaped) for line in _capped(lines))


def check_described(state_dict: Mapping[str, Tensor], record: Record, *, source: str) -> StateDict:
    """Compares a checkpoint's tensors with the network that its record describes.

    No memory is spent on the network, so that the file alone bounds what a load takes. The counters
    of BatchNorms, which inference never reads, are filled in where the file has none.

    Args:
        source: Where both come from, for the message.

    Raises:
        UserError: Names or shapes differ, or a tensor holds other than finite floating point
            numbers; or the record contradicts itself.
    """
    check_record(record, source)
    with torch.device("meta"):
        expected = make_network(record.spec).state_dict()
    whole = {
        name: torch.zeros((), dtype=torch.long) for name in expected if name.endswith(_COUNTER)
    } | dict(state_dict)
    difference = diff(expected, whole)
    if difference:
        raise UserError(
            f"The tensors in {source} are not those of the model that it describes, expected the "
            "same names and shapes; copy or download it again:",
            details=difference.splitlines(),
        )
    for name, tensor in whole.items():
        if expected[name].is_floating_point() and tensor.dtype not in _FLOATS:
            raise UserError(
                f"Got {str(tensor.dtype).removeprefix('torch.')} for {name!r} in {source}, "
                "expected floating point numbers, such as the weights before they were quantised."
            )
    broken = [name for name, tensor in whole.items() if not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"{len(broken)} of {len(whole)} tensors in {source} hold NaN or infinity, the first "
            f"{broken[0]!r}, as a training that diverged leaves them; take an earlier checkpoint."
        )
    return whole


def check_record(record: Record, source: str) -> None:
    """Refuses a record whose spec is no change of its row, or whose pictures don't fit its spec.

    Args:
        source: Where it comes from or goes to, for the message.
    """
    if type(row_of(record.model)) is not type(record.spec):
        raise UserError(
            f"Got a {type(record.spec).__name__} for {record.model} in {source}, expected a "
            f"{type(row_of(record.model)).__name__}; take the record that the model was saved with."
        )
    channels = record.preprocessing.input_size[0]
    if channels != record.spec.in_chans:
        raise UserError(
            f"Got a preprocessing of {channels} channels for a model of {record.spec.in_chans} in "
            f"{source}, expected as many."
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # The sum of finite numbers may overflow, that of others is never finite.
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def adapt(
    state_dict: Mapping[str, Tensor],
    model: VisionModel,
    *,
    img_size: tuple[int, int] | None = None,
) -> StateDict:
    """Fits a checkpoint to a model with another head, other input channels or image size.

    The classifiers are the model's own, fresh ones where the number of classes differs, or where
    the checkpoint has none. The first convolution is summed or repeated over its input channels,
    as timm does. Position tables, frozen ones too, are interpolated to the model's grids. All
    else stays, for `load_strict` to judge.

    Args:
        img_size: The (H, W) that the checkpoint's position tables are made for; None: the model's.

    Raises:
        UserError: Other input channels for T2T-ViT, whose first layer is no convolution.
    """
    adapted, own = dict(state_dict), model.state_dict()
    if num_classes(adapted, model.spec) != num_classes(own, model.spec):
        heads = classifiers(model.spec)
        adapted = {name: t for name, t in adapted.items() if _module(name) not in heads}
        adapted |= {name: t for name, t in own.items() if _module(name) in heads}
    _adapt_channels(adapted, model)
    if img_size is not None and tuple(img_size) != model.spec.img_size:
        adapt_tables(adapted, model, img_size)
    return adapted


def adapt_tables(state_dict: StateDict, model: VisionModel, img_size: tuple[int, int]) -> None:
    """Interpolates, in place, each position table that is as large as `img_size` asks for."""
    before, after = tables(model.spec, img_size), tables(model.spec, model.spec.img_size)
    mode = getattr(model.spec, "pos_interpolation", "bicubic")
    for name, (grid, num_prefix) in before.items():
        table = state_dict.get(name)
        if table is not None and table.shape[1] == num_prefix + grid[0] * grid[1]:
            state_dict[name] = resize_table(table, grid, after[name][0], num_prefix, mode)


def _adapt_channels(state_dict: StateDict, model: VisionModel) -> None:
    had, conv = in_chans(state_dict, model.spec), first_conv(model.spec)
    if had == model.in_chans:
        return
    if conv is None:
        raise UserError(
            f"Got in_chans={model.in_chans} for weights of {had} channels, expected {had}: "
            "T2T-ViT's soft split normalises all channels of a window together, so that its "
            "weights fit no other number; make the images that wide, or train anew."
        )
    name = f"{conv}.weight"
    state_dict[name] = adapt_input_conv(model.in_chans, state_dict[name], base_chans=had)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _capped(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN:
        return lines
    return [*lines[:_SHOWN], f"{lines[0][0]} ... and {len(lines) - _SHOWN} more"]
