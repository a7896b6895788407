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
    """

    def __init__(
        self, paths: Sequence[str], labels: Sequence[int] | np.ndarray, classes: Sequence[str]
    ) -> None:
        assert len(paths) == len(labels)
        self.paths = paths
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int) -> Image.Image:
        return open_image(self.paths[index])
