"""Loading a state dict whole or not at all, and fitting one to a changed model beforehand."""

from collections.abc import Mapping

from timm.models import adapt_input_conv
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.contract import VisionModel
from cvt.parts.position import resize_table
from cvt.parts.spec import BackboneSpec
from cvt.weights.layouts import StateDict

_SHOWN = 12
_FIRST_CONV = "stages.0.embed.proj.weight"


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
            f"model's name and its changes:\n{difference}"
        )
    model.load_state_dict(dict(state_dict))


def diff(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Returns the differences of two state dicts, one a line; an empty string if there are none."""
    missing = [f"- {name} {_shape(expected[name])}" for name in expected if name not in got]
    too_much = [f"+ {name} {_shape(got[name])}" for name in got if name not in expected]
    reshaped = [
        f"~ {name} {_shape(got[name])}, expected {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in got and got[name].shape != tensor.shape
    ]
    return "\n".join(line for lines in (missing, too_much, reshaped) for line in _capped(lines))


def adapt(
    state_dict: Mapping[str, Tensor],
    model: VisionModel,
    *,
    img_size: tuple[int, int] | None = None,
) -> StateDict:
    """Fits a checkpoint to a model with another head, other input channels or image size.

    The head is the model's own, fresh one where the number of classes differs, or where the
    checkpoint has none. The first convolution is summed or repeated over its input channels, as
    timm does. Position tables are interpolated to the model's grids. All else stays, for
    `load_strict` to judge.

    Args:
        img_size: The (H, W) that the checkpoint's position tables are made for; None: the model's.
    """
    adapted, own = dict(state_dict), model.state_dict()
    if _num_classes(adapted) != _num_classes(own):
        adapted = {name: t for name, t in adapted.items() if not name.startswith("head.")}
        adapted |= {name: t for name, t in own.items() if name.startswith("head.")}
    weight = adapted.get(_FIRST_CONV)
    if weight is not None and weight.ndim == 4 and weight.shape[1] != model.in_chans:
        adapted[_FIRST_CONV] = adapt_input_conv(model.in_chans, weight, base_chans=weight.shape[1])
    if img_size is not None and tuple(img_size) != model.spec.img_size:
        _move_tables(adapted, model, img_size)
    return adapted


def _num_classes(state_dict: Mapping[str, Tensor]) -> int:
    return state_dict["head.weight"].shape[0] if "head.weight" in state_dict else 0


def _move_tables(state_dict: StateDict, model: VisionModel, img_size: tuple[int, int]) -> None:
    """Interpolates each position table that is as large as `img_size` asks for."""
    before, after = _grids(model.spec, img_size), _grids(model.spec, model.spec.img_size)
    for index, (row, grid, new_grid) in enumerate(
        zip(model.spec.stages, before, after, strict=True)
    ):
        name, num_prefix = f"stages.{index}.pos_embed.table", int(row.cls_token)
        table = state_dict.get(name)
        if table is not None and table.shape[1] == num_prefix + grid[0] * grid[1]:
            state_dict[name] = resize_table(table, grid, new_grid, num_prefix)


def _grids(spec: BackboneSpec, img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """The grid of each stage's position table at an image size."""
    incoming = [img_size, *spec.grids(img_size)[:-1]]
    return [row.grid_after_embed(size) for row, size in zip(spec.stages, incoming, strict=True)]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _capped(lines: list[str]) -> list[str]:
    if len(lines) <= _SHOWN:
        return lines
    return [*lines[:_SHOWN], f"{lines[0][0]} ... and {len(lines) - _SHOWN} more"]
