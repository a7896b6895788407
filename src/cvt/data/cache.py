"""Decoded images, kept for the epochs to come, in a file that ends with the processes using it."""

import mmap
import multiprocessing
import os
import shutil
import struct
import tempfile
import weakref
import zlib
from contextlib import suppress
from typing import IO

import numpy as np
from PIL import Image

from cvt.data.sets import DataSplits

MOST_BYTES = 4 << 30
"""What a machine's processes keep together, if that is no more than a quarter of the free space."""

_SAID_FROM = 64 << 20  # bytes
_HEAD = struct.Struct("<III")  # width, height, checksum
_ENDS, _IS_FULL, _FIRST = 0, 1, 2
_BUDGET_FULL, _DISK_FULL = 1, 2
_WHY_FULL = ("", "as much as may be", "where the disk is full")


class Kept:
    """Images by their number, as RGB, up to a number of bytes in all.

    They lie in a file of the temporary folder that has no name, so that nothing is left of it when
    its processes have ended, however they end. Processes that are forked share it; to another one
    it comes as None. Pages that are not in use are the system's to drop. An image that is not there
    any more as it was written, as its checksum tells, is not given out.

    Args:
        count: How many images there are.
        most: Bytes.

    Raises:
        OSError: There is no temporary folder that can be written.
    """

    def __init__(self, count: int, most: int) -> None:
        self.most = most
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = multiprocessing.Lock()  # of no use to threads, which do not load
        memory = mmap.mmap(-1, 8 * (_FIRST + count))
        self._facts = np.frombuffer(memory, np.int64)
        self._places = self._facts[_FIRST:]  # where each begins, plus 1; 0 is nowhere

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def get(self, index: int) -> Image.Image | None:
        """Returns an image that was put there, if it still is."""
        place = int(self._places[index]) - 1
        if place < 0:
            return None
        with suppress(OSError, struct.error):
            width, height, checksum = _HEAD.unpack(os.pread(self._number, _HEAD.size, place))
            content = os.pread(self._number, width * height * 3, place + _HEAD.size)
            if len(content) == width * height * 3 and zlib.crc32(content) == checksum:
                return Image.frombytes("RGB", (width, height), content)
        self._places[index] = 0
        return None

    def put(self, index: int, image: Image.Image) -> None:
        """Keeps an image, if there is room."""
        if self._facts[_IS_FULL]:
            return
        content = image.tobytes()
        size = _HEAD.size + len(content)
        if not self._lock.acquire(timeout=1):  # its holder was killed
            return
        place = int(self._facts[_ENDS])
        if fits := place + size <= self.most:
            self._facts[_ENDS] += size
        self._lock.release()
        if not fits:
            self._facts[_IS_FULL] = _BUDGET_FULL
            return
        head = _HEAD.pack(*image.size, zlib.crc32(content))
        try:
            if os.pwrite(self._number, head + content, place) == size:
                self._places[index] = place + 1
                return
        except OSError:
            pass
        self._facts[_IS_FULL] = _DISK_FULL

    @property
    def num_bytes(self) -> int:
        """Bytes that its images take."""
        return int(self._facts[_ENDS])

    @property
    def why_full(self) -> str:
        """Why no more images are kept, in words that continue a sentence; "" if there is room."""
        return _WHY_FULL[int(self._facts[_IS_FULL])]

    @property
    def _number(self) -> int:
        return self._file.fileno()


class Cache:
    """What a run keeps of its training and its validation images, and the sentence about it.

    Args:
        splits: Sets in memory are not kept.
        epochs: Of a single one, nothing is kept.
        val_bytes: What a validation image takes.
        processes: How many there are on this machine, each with a cache of its own.
    """

    def __init__(self, splits: DataSplits, epochs: int, val_bytes: int, processes: int) -> None:
        self.train = self.val = None
        self._said = False
        if epochs == 1 or splits.train.is_decoded or not hasattr(os, "pread"):  # Windows
            return
        try:
            self.folder = tempfile.gettempdir()
            most = min(MOST_BYTES, shutil.disk_usage(self.folder).free // 4) // processes
            for_val = min(most // 2, len(splits.val) * (val_bytes + _HEAD.size))
            self.val = Kept(len(splits.val), for_val)
            self.train = Kept(len(splits.train), most - for_val)
        except OSError:  # there is nothing to write to
            self.val = None

    def news(self) -> str | None:
        """Returns, once, how much is kept, if that is much or not everything."""
        parts = [each for each in (self.train, self.val) if each is not None]
        size = sum(part.num_bytes for part in parts)
        full = next((part.why_full for part in parts if part.why_full), "")
        if self._said or not (full or size >= _SAID_FROM):
            return None
        self._said = True
        others = f", {full}; the others are decoded every time" if full else ""
        return (
            f"Decoded images are kept for the epochs to come until the run ends: "
            f"{size / 2**30:.1f} GB in {self.folder}{others}."
        )
