"""Pictures in webdataset shards, read one at a time from wherever they lie."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, open_image
from cvt.data.image_set import ImageSet
from cvt.data.shard import Shard


class ShardSet(ImageSet):
    """The samples of several shards, one shard after the other.

    Being able to go to any sample, it is shuffled over all shards and stopped and gone on with
    like files in folders. A file is open for one read only: a thousand shards times many loading
    processes would be more open files than a system allows.

    Args:
        shards: The shards as read.
        labels: Position of each sample's class in `classes`, -1 for a bad one, shape (N,).
    """

    def __init__(self, shards: Sequence[Shard], labels: np.ndarray, classes: Sequence[str]) -> None:
        counts = [len(shard.keys) for shard in shards]
        assert len(labels) == sum(counts)
        self.labels = labels
        self.classes = tuple(classes)
        self.paths = tuple(str(shard.path) for shard in shards)
        # Arrays, because lists of a million members are copied by every forked process.
        self.shard_of = np.repeat(np.arange(len(shards)), counts)
        self.places = np.array([place for shard in shards for place in shard.places], np.int64)
        self.keys = np.array([key.encode() for shard in shards for key in shard.keys])
        starts = np.cumsum([0, *counts])
        self.bad = {
            int(start) + number: sentence
            for start, shard in zip(starts, shards, strict=False)
            for number, sentence in shard.bad.items()
        }

    def name(self, index: int) -> str:
        return f"{self.paths[self.shard_of[index]]} sample {self.keys[index].decode()}"

    def image(self, index: int) -> Image.Image:
        if index in self.bad:
            raise BadImage(self.bad[index])
        start, size = self.places[index].tolist()
        name = self.name(index)
        try:
            with open(self.paths[self.shard_of[index]], "rb", buffering=0) as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise BadImage(f"Cannot read {name}: {error.strerror or error}.") from error
        return open_image(content, name=name)
