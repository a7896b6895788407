"""The graph that every format starts from: the images it takes, its tracing, what it says."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import torch
from torch import nn
from torch._dynamo.exc import UserError as TorchUserError
from torch.export import Dim, ExportedProgram

from cvt.errors import UserError, did_you_mean, first_line
from cvt.inference.passes import chosen_passes
from cvt.inference.rewrite import SizeRange, image_shape, rewrite, traced
from cvt.parts.model import VisionModel
from cvt.parts.spec import Spec
from cvt.plain import from_others, read_json
from cvt.runtime import number_format
from cvt.weights.checkpoint import METADATA_KEY, record_of
from cvt.weights.record import Record

# --- Which sizes of images an exported file takes.

_PLACE = {"batch": 0, "height": 2, "width": 3}
AXES = tuple(_PLACE)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images (batch, channels, height, width) that a file takes; float32, whatever it computes in.

    Args:
        height: In pixels, as the width.
        usual: The (height, width) that the model is made for.
    """

    batch: SizeRange
    channels: int
    height: SizeRange
    width: SizeRange
    usual: tuple[int, int]

    @property
    def free(self) -> tuple[str, ...]:
        """The axes that are not fixed."""
        return tuple(name for name in AXES if self.of(name)[0] != self.of(name)[1])

    @property
    def shape(self) -> tuple[int | str, int, int | str, int | str]:
        """The shape of the images, free axes by their names."""
        batch, height, width = (name if name in self.free else self.of(name)[0] for name in AXES)
        return batch, self.channels, height, width

    def of(self, name: str) -> SizeRange:
        """Returns the range of an axis."""
        return getattr(self, name)

    def sentence(self) -> str:
        """Returns the sizes in words, as in `(batch, 3, 224, 224), batch from 1`."""
        limits = "".join(f", {name} from {self.of(name)[0]}" for name in self.free)
        return f"({', '.join(map(str, self.shape))}){limits}"

    def examples(self) -> list[tuple[int, int, int, int]]:
        """Returns shapes to try: the usual one; another batch and size, and the smallest, if free.

        The other sizes are odd, since even ones hide how a half is rounded.
        """
        height, width = self.usual
        narrower = width * 3 // 4 | 1
        other_width = narrower if narrower > self.width[0] else width * 3 // 2 | 1
        other = self._fitting(3, height * 5 // 4 | 1, other_width)
        smallest = self._fitting(1, self.height[0], self.width[0])
        return list(dict.fromkeys((self._fitting(2, height, width), other, smallest)))

    def _fitting(self, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        batch, height, width = (
            max(size, self.of(name)[0]) if name in self.free else self.of(name)[0]
            for name, size in zip(AXES, (batch, height, width), strict=True)
        )
        return batch, self.channels, height, width


def choose_sizes(
    spec: Spec, size: tuple[int, int], batch_size: int | None, dynamic: Sequence[str]
) -> Sizes:
    """Returns what a file is to take.

    Args:
        size: The (height, width) that the images usually have, and always if these are not free.
        batch_size: How many images a call takes; None: any number if "batch" is free, else one.
        dynamic: The free ones of `AXES`.
    """
    for name in dynamic:
        if name not in AXES:
            raise UserError(
                f"Got dynamic {name!r}, expected some of {', '.join(AXES)}."
                f"{did_you_mean(str(name), AXES)}"
            )
    if batch_size is not None and "batch" in dynamic:
        raise UserError(
            f"Got batch_size {batch_size} and a free batch; leave batch_size out, or take 'batch' "
            "out of dynamic."
        )
    if batch_size is not None and batch_size < 1:
        raise UserError(f"Got batch_size {batch_size}, expected 1 or more.")
    spec.grids(size)
    lowest = smallest_free_side(spec, size)
    free: SizeRange = (lowest, None)
    return Sizes(
        batch=(1, None) if "batch" in dynamic else (batch_size or 1, batch_size or 1),
        channels=spec.in_chans,
        height=free if "height" in dynamic else (size[0], size[0]),
        width=free if "width" in dynamic else (size[1], size[1]),
        usual=size,
    )


def smallest_free_side(spec: Spec, size: tuple[int, int]) -> int:
    """Returns the side from which on one graph holds for all sizes.

    A grid of a single row is broadcast, which is another graph, and so is one that strided keys
    reduce to a row. From three rows on the keys, at stride 2, have two. Where the usual size has
    fewer rows, its number counts.
    """

    def rows(side: int) -> int:
        return min(min(grid) for grid in spec.grids((side, side)))

    usual = min(size)
    enough = min(3, rows(usual))
    fits = (side for side in range(max(spec.min_size, 1), usual) if rows(side) >= enough)
    return next(fits, usual)


def trace(
    model: nn.Module, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> ExportedProgram:
    """Traces a model's inference form, without weights or kernels that are one machine's.

    Images go in and answers come out in float32. Where the size is fixed, position tables are
    interpolated to it here and not in the graph. A network that can't be one graph for all the
    sizes is refused.
    """
    if not {"height", "width"} & {*sizes.free} and hasattr(model, "set_input_size"):
        spec = getattr(model, "spec", None)
        if spec is not None and spec.img_size != sizes.usual:
            model = copy.deepcopy(model)
            cast("VisionModel", model).set_input_size(sizes.usual)
    network = rewrite(model, chosen_passes(("kernels", "pack")), dtype, device)
    batch, channels, height, width = sizes.examples()[0]
    if "width" in sizes.free:
        width += width // 2  # sizes that are equal by chance are taken for the same
    images = torch.zeros(batch, channels, height, width, device=device)
    try:
        named = {_PLACE[name]: Dim(name, min=sizes.of(name)[0]) for name in sizes.free}
        return traced(network, images, named)
    except TorchUserError as error:
        if not sizes.free:
            raise
        failure = error
    # What torch cannot prove to hold for all sizes may do so; the check tries several.
    try:
        tried = {_PLACE[name]: Dim.DYNAMIC(min=sizes.of(name)[0]) for name in sizes.free}
        program = traced(network, images, tried)
        if _holds_from(program, sizes):
            return program
    except TorchUserError as error:
        failure = error
    raise UserError(
        f"{type(model).__name__} cannot be one graph for every {' and '.join(sizes.free)} "
        f"({first_line(failure).rstrip('.!')}); leave some out of dynamic."
    ) from failure


def free_places(program: ExportedProgram) -> dict[int, str]:
    """Returns which of the images' axes are free, with their names."""
    shape = image_shape(program)
    return {place: name for name, place in _PLACE.items() if not isinstance(shape[place], int)}


def _holds_from(program: ExportedProgram, sizes: Sizes) -> bool:
    """Whether the tracing kept the smallest sizes; torch says 2 of a batch that may be 1."""
    shape = image_shape(program)
    for axis in sizes.free:
        size = cast("torch.SymInt", shape[_PLACE[axis]])
        if program.range_constraints[size.node.expr].lower > max(2, sizes.of(axis)[0]):
            return False
    return True


# --- What an exported file says about itself: the record of its model, and what images it takes.

INPUT_KEY = "cvt_input"
KEYS = (METADATA_KEY, INPUT_KEY)


@dataclass(frozen=True)
class Metadata:
    """What travels with an exported file, as JSON under the keys `cvt` and `cvt_input`.

    Args:
        record: As in a checkpoint: preprocessing (to the size exported), class names, licence, ...
        dtype: What it computes in.
    """

    record: Record
    sizes: Sizes
    dtype: str

    @property
    def about_input(self) -> dict[str, Any]:
        """The images that the file takes, as plain data."""
        return {"dtype": "float32", **asdict(self.sizes), "computes_in": self.dtype}

    def to_strings(self) -> dict[str, str]:
        """Returns the JSON by its keys, in ASCII."""
        said = {METADATA_KEY: self.record.to_dict(), INPUT_KEY: self.about_input}
        return {key: json.dumps(each) for key, each in said.items()}

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, source: str) -> Self:
        """Reads what `to_strings` wrote."""
        record = record_of(strings, source=source)
        try:
            plain = read_json(strings[INPUT_KEY], INPUT_KEY)
            sizes = from_others(Sizes, plain, INPUT_KEY)
            return cls(record, sizes, number_format(plain["computes_in"]))
        except (UserError, LookupError) as error:
            raise UserError(
                f"{source} does not say which images it takes, expected a file that `cvt export` "
                "wrote; export it again."
            ) from error
