"""What every data set looks like from outside: labels at once, pictures one at a time."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, open_image
from cvt.errors import UserError

SPLITS = ("train", "val", "test")

MOST_BYTES = 2**30
"""Bytes of one image's file in an archive, or behind an address."""

_NAMES = 1000


class ImageSet(ABC):
    """Labelled pictures; the labels are known without decoding a single one of them.

    Attributes:
        classes: Class names; a label is a position in them.
        labels: One whole number per picture, int64, shape (N,); -1 where the picture is known to be
            bad.
        is_decoded: Whether the pictures are in memory as pixels.
        notes: What the user should be told of the data, a sentence each: files that are not used,
            labels that were taken in a way that is not the only one.
        unreadable: A sentence for each folder or file that could not be looked into.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    is_decoded: bool = False
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call a picture: its path, or file and row."""

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Decodes one picture to RGB.

        Raises:
            BadImage: This picture is broken; the others may well be good.
        """

    def some(self, count: int) -> Iterator[Image.Image | BadImage]:
        """Decodes up to `count` pictures, evenly spread; a bad one is yielded as its sentence."""
        for index in np.linspace(0, len(self) - 1, min(count, len(self)), dtype=int):
            try:
                yield self.image(int(index))
            except BadImage as error:
                yield error

    def fingerprint(self) -> str:
        """Returns a digest of all labels and of the file names of up to 1000 pictures."""
        digest = hashlib.sha256(self.labels.tobytes())
        for index in np.linspace(0, len(self) - 1, min(_NAMES, len(self)), dtype=int):
            name = self.name(int(index)).rpartition("/")[2]
            digest.update(name.encode(errors="surrogatepass"))  # not all names are text
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Returns the pictures at `indices`, in that order, without copying them."""
        return _Subset(self, np.asarray(indices, dtype=np.int64))


class _Subset(ImageSet):
    def __init__(self, parent: ImageSet, indices: np.ndarray) -> None:
        self.parent = parent
        self.indices = indices
        self.classes = parent.classes
        self.labels = parent.labels[indices]
        self.is_decoded = parent.is_decoded
        self.notes, self.unreadable = parent.notes, parent.unreadable

    def name(self, index: int) -> str:
        return self.parent.name(int(self.indices[index]))

    def image(self, index: int) -> Image.Image:
        return self.parent.image(int(self.indices[index]))


class Joined(ImageSet):
    """Several sets with the same classes, one after the other."""

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        assert all(part.classes == parts[0].classes for part in parts)
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.classes = parts[0].classes
        self.labels = np.concatenate([part.labels for part in parts])
        self.is_decoded = all(part.is_decoded for part in parts)
        self.notes, self.unreadable = notes_of(parts), unreadable_of(parts)

    def name(self, index: int) -> str:
        part, index = self._locate(index)
        return part.name(index)

    def image(self, index: int) -> Image.Image:
        part, index = self._locate(index)
        return part.image(index)

    def _locate(self, index: int) -> tuple[ImageSet, int]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        start = int(self.ends[number - 1]) if number else 0
        return self.parts[number], index - start


def check_labels(images: ImageSet) -> None:
    """Makes sure that all labels are positions of classes, or -1.

    Raises:
        UserError: One is not; the message names the picture.
    """
    outside = np.flatnonzero((images.labels < -1) | (images.labels >= len(images.classes)))
    if len(outside):
        index = int(outside[0])
        raise UserError(
            f"{images.name(index)} has the label {images.labels[index]}, expected 0 to "
            f"{len(images.classes) - 1} for {len(images.classes)} classes; correct it."
        )


def notes_of(parts: Iterable[ImageSet]) -> tuple[str, ...]:
    """Returns what there is to be told of several sets, each sentence once."""
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def unreadable_of(parts: Iterable[ImageSet]) -> tuple[str, ...]:
    """Returns what could not be looked into in several sets, each sentence once."""
    return tuple(dict.fromkeys(each for part in parts for each in part.unreadable))


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A data set ready for training: what to learn from, what to watch, what to report.

    Args:
        name: What the user called the data.
        train: Pictures to learn from.
        val: Pictures to choose checkpoints by.
        test: Pictures that neither of these may see, or None if the data has none.
        val_was_cut: Whether `val` was cut out of the training pictures because the data came
            without a validation split of its own.
        notes: What the user should be told of the data, those of all its sets.
        unreadable: What could not be looked into, in all its sets.
    """

    name: str
    train: ImageSet
    val: ImageSet
    test: ImageSet | None = None
    val_was_cut: bool = False
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same for all the splits."""
        return self.train.classes


# --- Pictures that are held decoded, as one array.


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


# --- Pictures that are files, opened one at a time.


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


# --- Cutting a share out of a set so that every class is on both sides.


def stratified_split(
    images: ImageSet, fraction: float, seed: int, name: str
) -> tuple[ImageSet, ImageSet]:
    """Returns (what remains, what was cut out), both in the order of `images`.

    From a class of n pictures, `round(fraction * n)` are cut out, but at least one and never all:
    scikit-learn's split, which balances whole sets, can leave a small class out of one side.

    Args:
        fraction: Share of each class to cut out, in (0, 1).
        seed: What is drawn depends on this and the labels alone.
        name: What a message calls the data.

    Raises:
        UserError: The fraction is out of range, or a class has fewer than two pictures.
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"Got a split fraction of {fraction}, expected a number between 0 and 1, such as 0.1."
        )
    random = np.random.default_rng(seed)
    is_cut = np.zeros(len(images), dtype=bool)
    for label, class_name in enumerate(images.classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < 2:
            raise UserError(
                f"Class {class_name!r} of {name} has too few images to split: got {len(members)}, "
                "expected at least 2; add some, remove the class, or provide a validation split."
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        is_cut[random.choice(members, count, replace=False)] = True
    return images.subset(np.flatnonzero(~is_cut)), images.subset(np.flatnonzero(is_cut))
