"""Images in webdataset shards, read one at a time from wherever they lie."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, open_image
from cvt.data.image_set import ImageSet
from cvt.data.labels import BadLabel, Classes
from cvt.data.shard import Shard


class ShardSet(ImageSet):
    """The samples of several shards, one shard after the other.

    Being able to go to any sample, it is shuffled over all shards and stopped and gone on with
    like files in folders. A file is open for one read only: a thousand shards times many loading
    processes would be more open files than a system allows.

    Args:
        shards: The shards as read.
        labels: Position of each sample's class in `classes`, -1 for a bad one, shape (N,).
        bad: Why some samples have none.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        labels: np.ndarray,
        bad: Mapping[int, BadLabel],
        classes: Classes,
    ) -> None:
        counts = [len(shard.keys) for shard in shards]
        assert len(labels) == sum(counts)
        self.labels = labels
        self.bad = bad
        self.classes = classes.names
        self.notes = classes.notes
        self.paths = tuple(str(shard.path) for shard in shards)
        # Arrays, because lists of a million members are copied by every forked process.
        self.shard_of = np.repeat(np.arange(len(shards)), counts)
        self.places = np.array([place for shard in shards for place in shard.places], np.int64)
        # One text of all keys: an array of texts gives each the room of the longest.
        keys = [key.encode(errors="surrogateescape") for shard in shards for key in shard.keys]
        self.keys = b"".join(keys)
        self.key_ends = np.cumsum([0, *map(len, keys)])

    def name(self, index: int) -> str:
        start, end = self.key_ends[index : index + 2]
        key = self.keys[start:end].decode(errors="surrogateescape")
        return f"{self.paths[self.shard_of[index]]} sample {key}"

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        if index in self.bad:
            raise BadImage(f"{name} {self.bad[index].why}.")
        start, size = self.places[index].tolist()
        try:
            with open(self.paths[self.shard_of[index]], "rb", buffering=0) as file:
                file.seek(start)
                content = file.read(size)
        except OSError as error:
            raise BadImage(f"Cannot read {name}: {error.strerror or error}.") from error
        return open_image(content, name=name)
