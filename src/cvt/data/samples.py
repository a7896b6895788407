"""From the members of a batch to its pictures, each with randomness of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from cvt.data.batch import Batch, Sample, batch_of
from cvt.data.image import BadImage
from cvt.data.image_set import ImageSet
from cvt.data.seeding import generators_kept, seed_all
from cvt.data.stream_set import Row, decoded
from cvt.data.transforms import Transform


class Samples(ABC):
    """What turns the members of a batch into pictures, and pictures into a batch.

    Args:
        transform: From a picture to a tensor.
        seed: What a random transform does depends on this, the epoch and the picture's number.
        epoch: Counted from 0.
    """

    def __init__(self, transform: Transform, seed: int, epoch: int) -> None:
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    @abstractmethod
    def load(self, member: Any) -> Sample:
        """Decodes and transforms one picture; a bad one becomes a sentence."""

    def seed_for(self, number: int) -> None:
        """Makes the transform that comes next depend on nothing but this number."""
        seed_all(self.seed, self.epoch, number)

    def __getitems__(self, members: Sequence[Any]) -> list[Sample]:
        with generators_kept():
            return [self.load(member) for member in members]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Puts pictures together."""
        return batch_of(samples, self.transform)


class NumberedSamples(Samples):
    """Pictures of a set; number `n` is picture `n % N`, in its variation `n // N`."""

    def __init__(self, image_set: ImageSet, transform: Transform, seed: int, epoch: int) -> None:
        super().__init__(transform, seed, epoch)
        self.image_set = image_set

    def load(self, member: int) -> Sample:
        index = member % len(self.image_set)
        label = int(self.image_set.labels[index])
        try:
            image = self.image_set.image(index)
        except BadImage as error:
            return Sample(index, label, str(error))
        self.seed_for(member)
        return Sample(index, label, self.transform(image))


class RowSamples(Samples):
    """Pictures of a stream of `count`, out of the rows as they came."""

    def __init__(self, count: int, transform: Transform, seed: int, epoch: int) -> None:
        super().__init__(transform, seed, epoch)
        self.count = count

    def load(self, member: Row) -> Sample:
        index, image = member.number % self.count, decoded(member)
        if isinstance(image, BadImage):
            return Sample(index, member.label, str(image))
        self.seed_for(member.number)
        return Sample(index, member.label, self.transform(image))
