"""Which row a bare state dict belongs to, judged by its names and shapes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cvt.errors import UserError
from cvt.parts.contract_spec import Spec
from cvt.parts.spec import BackboneSpec
from cvt.systems.baselines import BaselineSpec
from cvt.systems.catalog import ROWS, SYSTEMS, make_network
from cvt.systems.system import System
from cvt.weights.ends import first_conv, in_chans, num_classes, tables
from cvt.weights.shapes import facts_of_tensors
from cvt.weights.strict import diff


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
        source: Where the state dict comes from, for the message.
        systems: Those that it may belong to.
        file_name: What may name the row, with anything between its words.

    Raises:
        UserError: It belongs to no row; the message says what was found.
    """
    check_whole(state_dict, source=source)
    fits: dict[str, Spec] = {}
    nearest, fewest = "", ""
    for name, row in _candidates(state_dict, systems):
        spec = spec_of_tensors(row, state_dict)
        difference = _difference(spec, state_dict)
        if not difference:
            fits[name] = spec
        elif not nearest or difference.count("\n") < fewest.count("\n"):
            nearest, fewest = name, difference
    if fits:
        best = min(fits, key=lambda name: _rank(name, fits[name], file_name))
        return best, fits[best]
    facts = facts_of_tensors(state_dict)
    found = str(facts) if facts.dims else f"{len(state_dict)} tensors of other names or shapes"
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
    """Refuses the stages alone.

    Raises:
        UserError: The final norm is missing, as in a bare `CvtModel` of transformers.
    """
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
    facts = facts_of_tensors(state_dict)
    for name, row in ((name, row) for system in systems for name, row in system.rows.items()):
        if isinstance(row, BackboneSpec):
            own = [(stage.embed_dim, stage.depth) for stage in row.stages]
            fits = own == list(zip(facts.dims, facts.depths, strict=True))
        else:
            stem = f"{first_conv(row)}.weight"
            fits = stem in state_dict and (isinstance(row, BaselineSpec) or not facts.dims)
        if fits:
            yield name, row


def _difference(spec: Spec, state_dict: Mapping[str, Tensor]) -> str:
    with torch.device("meta"):
        return diff(make_network(spec).state_dict(), state_dict)


def _rank(name: str, spec: Spec, file_name: str) -> tuple[int, bool, int]:
    """What sorts rows of the same shapes, the best first."""
    is_named = _letters(name) in _letters(file_name)
    return -len(name) * is_named, spec.img_size != ROWS[name].img_size, list(ROWS).index(name)


def _img_size(state_dict: Mapping[str, Tensor], spec: Spec) -> tuple[int, int]:
    own = tables(spec, spec.img_size)
    if _agree(state_dict, own):
        return spec.img_size
    name, (grid, num_prefix) = list(own.items())[-1]
    if name not in state_dict or state_dict[name].ndim != 3:
        return spec.img_size
    side = math.isqrt(max(state_dict[name].shape[1] - num_prefix, 0))
    pixels = side * spec.img_size[0] // grid[0]
    try:
        square = tables(spec, (pixels, pixels))
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


def _letters(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words.lower())
