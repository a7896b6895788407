"""Pictures that are files, opened one at a time."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cvt.data.image import open_image
from cvt.data.image_set import ImageSet


class FileSet(ImageSet):
    """One picture per file; nothing is opened before it is asked for.

    Args:
        paths: The files.
        labels: Position of each file's class in `classes`, shape (N,).
        notes: What was found beside them and is not used.
        unreadable: What could not be read of the folders that they are from.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        *,
        notes: Sequence[str] = (),
        unreadable: Sequence[str] = (),
    ) -> None:
        assert len(paths) == len(labels)
        self.paths = paths
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.notes = tuple(notes)
        self.unreadable = tuple(unreadable)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image.Image:
        return open_image(self.paths[index])
