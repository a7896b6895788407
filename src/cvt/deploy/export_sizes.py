"""Which sizes of images an exported file takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from cvt.errors import UserError, did_you_mean
from cvt.parts.contract_spec import Spec

AXES = ("batch", "height", "width")

Range = tuple[int, int | None]
"""The smallest and the largest size of an axis; None: there is no largest."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images (batch, channels, height, width) that a file takes; float32, whatever it computes in.

    Args:
        height: In pixels, as the width.
        usual: The (height, width) that the model is made for.
    """

    batch: Range
    channels: int
    height: Range
    width: Range
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

    def of(self, name: str) -> Range:
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

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that goes to JSON and comes back through `from_dict`."""
        return {"dtype": "float32", **asdict(self)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """Rebuilds what `to_dict` wrote."""
        ranges = {name: (plain[name][0], plain[name][1]) for name in AXES}
        height, width = plain["usual"]
        return cls(channels=plain["channels"], usual=(height, width), **ranges)

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

    Raises:
        UserError: An unknown axis, a size that the network does not take, or a batch of two minds.
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
    free: Range = (lowest, None)
    return Sizes(
        batch=(1, None) if "batch" in dynamic else (batch_size or 1, batch_size or 1),
        channels=spec.in_chans,
        height=free if "height" in dynamic else (size[0], size[0]),
        width=free if "width" in dynamic else (size[1], size[1]),
        usual=size,
    )


def smallest_free_side(spec: Spec, size: tuple[int, int]) -> int:
    """Returns the side from which one graph holds for all sizes.

    A grid of one row, and one that strided keys make it, is broadcast: another graph. From three
    rows on the keys, at stride 2, have two. Where the usual size has fewer rows, its number counts.
    """
    side = min(size)
    rows = min(3, *(min(grid) for grid in spec.grids((side, side))))
    fits = (each for each in range(max(spec.min_size, 1), side) if _rows(spec, each) >= rows)
    return next(fits, side)


def _rows(spec: Spec, side: int) -> int:
    return min(min(grid) for grid in spec.grids((side, side)))
