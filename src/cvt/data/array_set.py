"""Pictures that are held decoded, as one array."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cvt.data.image_set import ImageSet


class ArraySet(ImageSet):
    """Small pictures in memory.

    Args:
        images: uint8, shape (N, H, W) for grey or (N, H, W, 3) for RGB.
        labels: Position of each picture's class in `classes`, shape (N,).
        source: What messages call the data; a picture is "`source` image 12".
    """

    is_decoded = True

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        source: str,
    ) -> None:
        assert images.dtype == np.uint8
        assert len(images) == len(labels)
        self.images = images
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.source = source

    def name(self, index: int) -> str:
        return f"{self.source} image {index}"

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")
