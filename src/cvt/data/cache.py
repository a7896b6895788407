"""Small pictures, decoded once and kept for every epoch and every loading process."""

import mmap
from typing import Any

import numpy as np
from PIL import Image

from cvt.data.image import BadImage
from cvt.data.sets import ImageSet
from cvt.data.streams import StreamSet

# Of 32 pixels, decoding takes longer than everything else that is done to a picture; of 224,
# a third of the time, and there would be no room for many of them.
_LARGEST_SIDE = 64
_MOST_BYTES = 2 << 30
_LOOKED_AT = 8


def remembered(images: ImageSet) -> ImageSet:
    """Returns the set with its pictures kept once decoded, if they are few and small enough.

    That is: the first of them that can be read has sides of at most 64 pixels, and all of them at
    its size take no more than 2 GiB.
    """
    if images.is_decoded or isinstance(images, StreamSet):
        return images
    for index in range(min(len(images), _LOOKED_AT)):
        try:
            width, height = images.image(index).size
        except BadImage:
            continue
        fits = max(width, height) <= _LARGEST_SIDE and len(images) * width * height * 3
        return Remembered(images, (width, height)) if 0 < fits <= _MOST_BYTES else images
    return images


class Remembered(ImageSet):
    """A set whose pictures of one size are decoded only the first time that they are asked for.

    Loading processes, which are new in every epoch, share the memory with the one that forked
    them; it is taken page by page, as pictures come in. A process that was not forked starts with
    a memory of its own.

    Args:
        images: The set itself.
        size: Width and height of the pictures that are kept.
    """

    def __init__(self, images: ImageSet, size: tuple[int, int]) -> None:
        self.images = images
        self.size = size
        self.labels = images.labels
        self.classes = images.classes
        self.notes, self.unreadable = images.notes, images.unreadable
        self._take_memory()

    def _take_memory(self) -> None:
        shape = (len(self.images), self.size[1], self.size[0], 3)
        memory = np.frombuffer(mmap.mmap(-1, shape[0] * (1 + int(np.prod(shape[1:])))), np.uint8)
        self.is_known = memory[: shape[0]]
        self.pixels = memory[shape[0] :].reshape(shape)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def image(self, index: int) -> Image.Image:
        if self.is_known[index]:
            return Image.fromarray(self.pixels[index])
        image = self.images.image(index)
        if image.size == self.size:
            self.pixels[index] = np.asarray(image)
            self.is_known[index] = 1
        return image

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "is_known": None, "pixels": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_memory()
