"""Sets of labelled images: the labels are known at once, the images are decoded one at a time."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, ImageSource, Sizing, open_image, sized
from cvt.data.labels import BadLabel, Classes, Label, numbered
from cvt.errors import UserError

SPLITS = ("train", "val", "test")

_NAMES = 1000


class ImageSet(ABC):
    """Labelled images; the labels are known without decoding a single one of them.

    Args:
        labels: Positions in `classes`, int64, shape (N,); -1 where the image is known to be bad.
        notes: What the user should be told of the data, a sentence each: files that are not used,
            labels that could be taken in more than one way.
        unreadable: A sentence for each folder or file that could not be looked into.
    """

    is_decoded: bool = False  # whether the images are in memory as pixels
    notes: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        *,
        notes: Sequence[str] = (),
        unreadable: Sequence[str] = (),
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = tuple(classes)
        self.notes, self.unreadable = tuple(notes), tuple(unreadable)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call an image: its path, or file and row."""

    @abstractmethod
    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        """Decodes one image to RGB, at its own size or that of `sizing`.

        `BadImage` is raised for it alone.
        """

    def some(self, count: int, sizing: Sizing | None = None) -> Iterator[Image.Image | BadImage]:
        """Decodes up to `count` images, evenly spread; a bad one is yielded as its sentence."""
        for index in np.linspace(0, len(self) - 1, min(count, len(self)), dtype=int):
            try:
                yield self.image(int(index), sizing)
            except BadImage as error:
                yield error

    def fingerprint(self) -> str:
        """Returns a digest of all labels and of the file names of up to 1000 images."""
        digest = hashlib.sha256(self.labels.tobytes())
        for index in np.linspace(0, len(self) - 1, min(_NAMES, len(self)), dtype=int):
            name = self.name(int(index)).rpartition("/")[2]
            digest.update(name.encode(errors="surrogatepass"))  # not all names are text
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray) -> "ImageSet":
        """Returns the images at `indices`, in that order, without copying them."""
        return _Subset(self, np.asarray(indices, dtype=np.int64))


class _Subset(ImageSet):
    def __init__(self, parent: ImageSet, indices: np.ndarray) -> None:
        super().__init__(parent.labels[indices], parent.classes, **told_of([parent]))
        self.parent, self.indices = parent, indices
        self.is_decoded = parent.is_decoded

    def name(self, index: int) -> str:
        return self.parent.name(int(self.indices[index]))

    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        return self.parent.image(int(self.indices[index]), sizing)


class Joined(ImageSet):
    """Several sets with the same classes, one after the other."""

    def __init__(self, parts: Sequence[ImageSet]) -> None:
        assert all(part.classes == parts[0].classes for part in parts)
        labels = np.concatenate([part.labels for part in parts])
        super().__init__(labels, parts[0].classes, **told_of(parts))
        self.parts = tuple(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.is_decoded = all(part.is_decoded for part in parts)

    def name(self, index: int) -> str:
        part, row = located(self.ends, index)
        return self.parts[part].name(row)

    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        part, row = located(self.ends, index)
        return self.parts[part].image(row, sizing)


def located(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Returns which part an image is in, and where in it, for parts that end at `ends`."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


class ArraySet(ImageSet):
    """Small images in memory.

    Args:
        images: uint8, shape (N, H, W) for grey or (N, H, W, 3) for RGB.
        source: What messages call the data; an image is "`source` image 12".
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
        super().__init__(labels, classes)
        self.images, self.source = images, source

    def name(self, index: int) -> str:
        return f"{self.source} image {index}"

    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        return sized(Image.fromarray(self.images[index]).convert("RGB"), sizing)


class FileSet(ImageSet):
    """One image per file; nothing is opened before it is asked for."""

    def __init__(
        self,
        paths: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        classes: Sequence[str],
        **told: Sequence[str],
    ) -> None:
        assert len(paths) == len(labels)
        super().__init__(labels, classes, **told)
        self.paths = paths

    def name(self, index: int) -> str:
        return self.paths[index]

    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        return open_image(self.paths[index], sizing=sizing)


class RowSet(ImageSet):
    """Rows of tables and archives, whose labels may be missing or of no class.

    Args:
        columns: The labels of each part of the rows, and what whole numbers among them stand for
            where that part says so itself (`cvt.data.labels.numbered`).
    """

    def __init__(
        self,
        columns: Iterable[tuple[Sequence[Label | BadLabel], Sequence[str] | None]],
        classes: Classes,
    ) -> None:
        self.bad: dict[int, BadLabel] = {}  # why some rows have no class
        numbers = [np.empty(0, np.int64)]
        for labels, own_names in columns:
            start = sum(map(len, numbers))
            some, bad = numbered(labels, classes, own_names)
            self.bad |= {start + row: why for row, why in bad.items()}
            numbers.append(some)
        super().__init__(np.concatenate(numbers), classes.names, notes=classes.notes)

    @abstractmethod
    def source(self, index: int, name: str) -> ImageSource:
        """Returns the bytes of a row's image, or its file; raises `BadImage` if it has neither."""

    def image(self, index: int, sizing: Sizing | None = None) -> Image.Image:
        name = self.name(index)
        if index in self.bad:
            raise BadImage(f"{name} {self.bad[index].why}.")
        return open_image(self.source(index, name), name=name, sizing=sizing)


def labelled_splits(
    splits: Mapping[str, RowSet], source: str, notes: Sequence[str] = ()
) -> dict[str, ImageSet]:
    """Returns the splits that have labels; one for validation or test without any gets a note.

    It is a mistake if no training image has a label, or if all labels of another split are of
    other classes than those of the training images.
    """
    first_split = "train" if "train" in splits else next(iter(splits))
    kept: dict[str, ImageSet] = {}
    unused = []
    for split, images in splits.items():
        if (images.labels >= 0).any():
            kept[split] = images
        elif split != first_split and all(each.is_missing for each in images.bad.values()):
            unused.append(f"The {split} split of {source} has no labels, and is not used.")
        else:
            row, first = next(iter(images.bad.items()), (0, None))
            example = f": {images.name(row)} {first.why}" if first else ""
            raise UserError(
                f"Not one image of the {split} split of {source} has a label that can be "
                f"used{example}; correct the labels."
            )
    for images in kept.values():
        images.notes = (*images.notes, *unused, *notes)
    return kept


def check_labels(images: ImageSet) -> None:
    """Makes sure that all labels are positions of classes, or -1; an error names the image."""
    outside = np.flatnonzero((images.labels < -1) | (images.labels >= len(images.classes)))
    if len(outside):
        index = int(outside[0])
        raise UserError(
            f"{images.name(index)} has the label {images.labels[index]}, expected 0 to "
            f"{len(images.classes) - 1} for {len(images.classes)} classes; correct it."
        )


def told_of(parts: Collection[ImageSet]) -> dict[str, tuple[str, ...]]:
    """Returns the `notes` of several sets and what was `unreadable`, each sentence once."""
    return {
        kind: tuple(dict.fromkeys(each for part in parts for each in getattr(part, kind)))
        for kind in ("notes", "unreadable")
    }


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A data set ready for training: what to learn from, what to watch, what to report.

    Args:
        val: Images to choose checkpoints by.
        test: Images that neither of these may see, or None if the data has none.
        val_was_cut: Whether `val` was cut out of the training images because the data came
            without a validation split of its own.
        notes: As in each set; so is `unreadable`.
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


def stratified_split(
    images: ImageSet, fraction: float, seed: int, name: str
) -> tuple[ImageSet, ImageSet]:
    """Returns (what remains, what was cut out), both in the order of `images`.

    From a class of n images, `round(fraction * n)` are cut out, but at least one and never all:
    scikit-learn's split, which balances whole sets, can leave a small class out of one side.

    Args:
        fraction: In (0, 1).
        seed: What is drawn depends on this and the labels alone.
        name: What a message calls the data.
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
