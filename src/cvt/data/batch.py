"""What a loader yields, and how it comes from single pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from cvt.data.seeding import generators_kept
from cvt.data.transforms import Transform


@dataclass(frozen=True)
class Batch:
    """The good pictures of a batch, B of them, and a sentence about each bad one.

    Args:
        images: float32, shape (B, C, H, W); B is 0 if every picture is bad.
        labels: int64, shape (B,).
        indices: Position of each picture in the image set, int64, shape (B,).
        bad: One sentence for each picture that was skipped.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    bad: tuple[str, ...] = ()

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory; the DataLoader calls this."""
        pinned = (each.pin_memory() for each in (self.images, self.labels, self.indices))
        return Batch(*pinned, self.bad)


class Sample(NamedTuple):
    """A picture on its way into a batch; `image` is a sentence if it is bad."""

    index: int
    label: int
    image: Tensor | str


def batch_of(samples: Sequence[Sample], transform: Transform) -> Batch:
    """Puts samples together; `transform` tells the shape of a batch of no pictures."""
    good = [sample for sample in samples if isinstance(sample.image, Tensor)]
    # In a loading process, torch's own function writes straight into memory that is shared.
    images = default_collate([sample.image for sample in good]) if good else _no_images(transform)
    return Batch(
        images,
        torch.tensor([sample.label for sample in good], dtype=torch.int64),
        torch.tensor([sample.index for sample in good], dtype=torch.int64),
        tuple(sample.image for sample in samples if isinstance(sample.image, str)),
    )


def _no_images(transform: Transform) -> Tensor:
    """Returns shape (0, C, H, W); only the transform knows what C, H and W are."""
    with generators_kept():
        return transform(Image.new("RGB", (8, 8)))[None][:0]
