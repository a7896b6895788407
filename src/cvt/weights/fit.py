"""Which row a bare state dict belongs to, judged by its names and shapes."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from cvt.errors import UserError
from cvt.parts.model import VisionModel
from cvt.parts.position import resize_table
from cvt.parts.spec import Spec
from cvt.systems.catalog import ROWS, SYSTEMS, make_network, row_of
from cvt.systems.system import System
from cvt.weights.layouts import StateDict
from cvt.weights.record import Record


def num_classes(state_dict: Mapping[str, Tensor], spec: Spec) -> int:
    """Returns how many classes the (first) classifier tells apart; 0 without one.

    The spec's are taken where timm does not say which module of its network that is.
    """
    if not spec.classifiers:
        return spec.num_classes
    weight = state_dict.get(f"{spec.classifiers[0]}.weight")
    return 0 if weight is None or not weight.ndim else weight.shape[0]


def in_chans(state_dict: Mapping[str, Tensor], spec: Spec) -> int:
    """Returns how many channels an image has; the spec's where no tensor tells it."""
    if spec.first_conv is not None:
        weight = state_dict.get(f"{spec.first_conv}.weight")
        return spec.in_chans if weight is None or weight.ndim != 4 else weight.shape[1]
    norm = state_dict.get("stages.0.embed.norm1.weight")
    window = spec.staged.stages[0].embed_kernel ** 2 if spec.staged else 1
    return spec.in_chans if norm is None or not norm.ndim else max(norm.shape[0] // window, 1)


def shape_facts(state_dict: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Returns what shapes tell of stages, one entry a stage: not strides, heads and activation."""
    words = ("widths", "depths", "embedding kernels", "projection kernels", "class tokens")
    facts: dict[str, list[Any]] = {word: [] for word in words}
    while (stem := f"stages.{len(facts['widths'])}.") + "embed.proj.weight" in state_dict:
        embed = state_dict[f"{stem}embed.proj.weight"]
        conv = state_dict.get(f"{stem}blocks.0.attn.q.conv.weight")
        depth = 0
        while f"{stem}blocks.{depth}.norm1.weight" in state_dict:
            depth += 1
        facts["widths"].append(embed.shape[0] if embed.ndim else 0)
        facts["depths"].append(depth)
        facts["embedding kernels"].append(embed.shape[-1] if embed.ndim == 4 else 0)
        facts["projection kernels"].append(0 if conv is None or not conv.ndim else conv.shape[-1])
        facts["class tokens"].append("yes" if f"{stem}cls_token" in state_dict else "no")
    return facts


_SHOWN = 12
_COUNTER = ".num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_strict(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Loads every tensor; names and shapes have to agree both ways, or nothing is loaded."""
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
    kinds = (missing, too_much, reshaped)
    for lines in kinds:
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"{lines[0][0]} ... and {len(lines) - _SHOWN} more"]
    return "\n".join(line for lines in kinds for line in lines)


def check_described(state_dict: Mapping[str, Tensor], record: Record, *, source: str) -> StateDict:
    """Compares a checkpoint's tensors with the network that its record describes.

    No memory is spent on the network, so that the file alone bounds what a load takes. The counters
    of BatchNorms, which inference never reads, are filled in where the file has none.
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
    """Refuses a record whose spec is no change of its row, or whose images don't fit its spec."""
    expected, got = row_of(record.model).family, record.spec.family
    if expected != got:
        raise UserError(
            f"Got a network of {got} for {record.model} in {source}, expected {expected}; take the "
            "record that the model was saved with."
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
    state_dict: Mapping[str, Tensor], model: VisionModel, *, img_size: tuple[int, int] | None = None
) -> StateDict:
    """Fits a checkpoint to a model with another head, other input channels or image size.

    The classifiers are the model's own, fresh ones where the number of classes differs, or where
    the checkpoint has none. The first convolution is summed or repeated over its input channels,
    as timm does. Position tables, frozen ones too, are interpolated to the model's grids; those of
    timm's networks as timm does it for its own weights. All else stays, for `load_strict` to judge.

    Args:
        img_size: The (H, W) that the checkpoint's position tables are made for; None: the model's.
    """
    adapted, own = dict(state_dict), model.state_dict()
    if num_classes(adapted, model.spec) != num_classes(own, model.spec):
        of_heads = tuple(f"{each}." for each in model.spec.classifiers)
        adapted = {name: t for name, t in adapted.items() if not name.startswith(of_heads)}
        adapted |= {name: t for name, t in own.items() if name.startswith(of_heads)}
    _adapt_channels(adapted, model)
    if img_size is not None and tuple(img_size) != model.spec.img_size:
        if model.spec.made_by_timm:
            return resized_by_timm(adapted, model)
        adapt_tables(adapted, model, img_size)
    return adapted


def resized_by_timm(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Brings the tables of a network of timm's to its image size by timm's own filter, if any."""
    home = sys.modules[type(model).__module__]
    resize = getattr(home, "checkpoint_filter_fn", None)  # no public name: a test watches it
    return state_dict if resize is None else resize(state_dict, model)


def adapt_tables(state_dict: StateDict, model: VisionModel, img_size: tuple[int, int]) -> None:
    """Interpolates, in place, each position table that is as large as `img_size` asks for."""
    spec: Spec = model.spec
    before, after = spec.tables(img_size), spec.tables(spec.img_size)
    for name, (grid, num_prefix) in before.items():
        table = state_dict.get(name)
        if table is not None and table.shape[1] == num_prefix + grid[0] * grid[1]:
            state_dict[name] = resize_table(
                table, grid, after[name][0], num_prefix, spec.pos_interpolation
            )


def _adapt_channels(state_dict: StateDict, model: VisionModel) -> None:
    had, conv = in_chans(state_dict, model.spec), model.spec.first_conv
    if had == model.in_chans:
        return
    if conv is None:
        raise UserError(
            f"Got in_chans={model.in_chans} for weights of {had} channels, expected {had}: "
            "no convolution alone reads its images (T2T-ViT's soft split normalises all channels "
            "of a window together), so that the weights fit no other number; make the images that "
            "wide, or train anew."
        )
    name = f"{conv}.weight"
    state_dict[name] = adapt_input_conv(model.in_chans, state_dict[name], base_chans=had)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def recognise_variant(
    state_dict: Mapping[str, Tensor],
    *,
    source: str,
    systems: Sequence[System] = SYSTEMS,
    file_name: str = "",
) -> tuple[str, Spec]:
    """Returns the row that a state dict in our names belongs to, and its spec.

    The spec has the number of classes (0 without a head), input channels and image size of the
    tensors; what shapes don't tell, such as heads, strides and activation, is the row's. Where
    rows have the same shapes, as ViT and DeiT do, the one that the file's name spells is taken,
    then one made for the same image size, then the first of the catalogue.

    Args:
        systems: Those that it may belong to.
        file_name: What may name the row, with anything between its words.
    """
    check_whole(state_dict, source=source)
    fits: dict[str, Spec] = {}
    nearest, fewest = "", ""
    for name, row in _candidates(state_dict, systems):
        spec = spec_of_tensors(row, state_dict)
        with torch.device("meta"):
            difference = diff(make_network(spec).state_dict(), state_dict)
        if not difference:
            fits[name] = spec
        elif not nearest or difference.count("\n") < fewest.count("\n"):
            nearest, fewest = name, difference
    if fits:
        best = min(fits, key=lambda name: _rank(name, fits[name], file_name))
        return best, fits[best]
    found = f"{len(state_dict)} tensors of other names or shapes"
    facts = shape_facts(state_dict)
    if stages := len(facts["widths"]):
        each = (f"{word} {'/'.join(map(str, values))}" for word, values in facts.items())
        found = f"{stages} stages of {next(each)} and {', '.join(each)}"
    near = f" The nearest is {nearest}, which differs in" if nearest else ""
    raise UserError(
        f"{source} is none of the {len(ROWS)} models that `cvt models` lists: got {found}; "
        f"expected the shapes of one of them, or a file that describes its model itself.{near}",
        details=fewest.splitlines(),
    )


def spec_of_tensors(spec: Spec, state_dict: Mapping[str, Tensor]) -> Spec:
    """Returns a spec with the classes, input channels and image size of a state dict.

    The image size is read off the position tables: the spec's own where they agree with it, a
    square otherwise; where no square does, the spec's own stays, for a strict load to complain of.
    """
    return spec.change(
        num_classes=num_classes(state_dict, spec),
        in_chans=in_chans(state_dict, spec),
        img_size=_img_size(state_dict, spec),
    )


def check_whole(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Refuses the stages alone."""
    if "norm.weight" not in state_dict and any(name.startswith("stages.") for name in state_dict):
        raise UserError(
            f"{source} lacks norm.weight and norm.bias, the final norm, as a file cut short "
            "does, and a bare CvtModel of transformers; expected the whole network, such as a "
            "CvtForImageClassification."
        )


def _candidates(
    state_dict: Mapping[str, Tensor], systems: Sequence[System]
) -> Iterator[tuple[str, Spec]]:
    """The rows that a glance leaves, before networks are built to compare every shape."""
    facts = shape_facts(state_dict)
    found = list(zip(facts["widths"], facts["depths"], strict=True))
    for name, row in ((name, row) for system in systems for name, row in system.rows.items()):
        if row.staged is not None:
            fits = found == [(stage.embed_dim, stage.depth) for stage in row.staged.stages]
        else:
            fits = f"{row.first_conv}.weight" in state_dict and (row.made_by_timm or not found)
        if fits:
            yield name, row


def _rank(name: str, spec: Spec, file_name: str) -> tuple[int, bool, int]:
    """What sorts rows of the same shapes, the best first."""
    spelled, said = (re.sub(r"[^a-z0-9]", "", each.lower()) for each in (name, file_name))
    is_named = spelled in said
    return -len(name) * is_named, spec.img_size != ROWS[name].img_size, list(ROWS).index(name)


def _img_size(state_dict: Mapping[str, Tensor], spec: Spec) -> tuple[int, int]:
    own = spec.tables(spec.img_size)
    if _agree(state_dict, own):
        return spec.img_size
    name, (grid, num_prefix) = list(own.items())[-1]
    if name not in state_dict or state_dict[name].ndim != 3:
        return spec.img_size
    side = math.isqrt(max(state_dict[name].shape[1] - num_prefix, 0))
    pixels = side * spec.img_size[0] // grid[0]
    try:
        square = spec.tables((pixels, pixels))
    except UserError:  # a network of this kind sees no image that small
        return spec.img_size
    return (pixels, pixels) if _agree(state_dict, square) else spec.img_size


def _agree(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, tuple[tuple[int, int], int]]
) -> bool:
    return all(
        name in state_dict and state_dict[name].shape[1:2] == (num_prefix + grid[0] * grid[1],)
        for name, (grid, num_prefix) in expected.items()
    )
