"""Data sets that the Hugging Face `datasets` library loads, by hub name or from a local path."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cvt.data.image import BadImage, open_image
from cvt.data.labels import (
    BadLabel,
    Classes,
    as_label,
    declared_classes,
    labelled_splits,
    numbered,
)
from cvt.data.sets import ImageSet
from cvt.data.sources import split_of
from cvt.errors import UserError
from cvt.files import expanded, file_inside

if TYPE_CHECKING:
    from datasets import Dataset
from collections.abc import Iterator, Sequence

from cvt.data.streams import Row, StreamSet


class HubSet(ImageSet):
    """Rows of a `datasets.Dataset`, decoded by us rather than by `datasets`.

    Args:
        rows: A dataset whose image column is cast to `Image(decode=False)`.
        column: The name of that column.
        labels: Position of each row's class in `classes`, -1 for a bad one, shape (N,).
        bad: Why some rows have none.
        origin: Where the data come from.
        split: What messages call the rows, behind the name of the data.
    """

    def __init__(
        self,
        rows: "Dataset",
        column: str,
        labels: np.ndarray,
        bad: Mapping[int, BadLabel],
        classes: Classes,
        origin: "Origin",
        split: str,
    ) -> None:
        self.rows = rows
        self.column = column
        self.labels = labels
        self.bad = bad
        self.classes = classes.names
        self.origin = origin
        self.split = split

    def name(self, index: int) -> str:
        return f"{self.origin.name} {self.split} row {index}"

    def image(self, index: int) -> Image.Image:
        name = self.name(index)
        if index in self.bad:
            raise BadImage(f"{name} {self.bad[index].why}.")
        try:
            cell = self.rows[index][self.column] or {}
        except Exception as error:  # a damaged file makes pyarrow raise nearly anything
            raise BadImage(f"Cannot read {name} ({first_line(error)}).") from error
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and path:
            return open_image(self.origin.file(path, name), name=name)
        return open_image(content or b"", name=name)


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, and which files and addresses its rows may name.

    Args:
        name: What the user called it.
        folder: The local folder, or None for one of the hub.
        caches: Folders into which `datasets` fetches and unpacks files.
        notes: What the user should be told.
    """

    name: str
    folder: Path | None
    caches: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def file(self, path: str, name: str) -> Path:
        """Returns a file that a row names, if it is one of the data set's own.

        Raises:
            BadImage: It lies elsewhere.
        """
        own = () if self.folder is None else (self.folder,)
        for root in (*own, *self.caches) if Path(path).is_absolute() else own:
            with suppress(ValueError):  # of which UserError is one
                return file_inside(root, str((root / path).relative_to(root)))
        raise BadImage(
            f"{name} names the file {path!r}, which is none of the data set's own; leave it out."
        )

    def address(self, address: str, name: str) -> str:
        """Returns an address that a row of a stream names, if it leads to the data set itself.

        `zip://a.png::hf://datasets/NAME@main/a.zip` is a file inside of one.

        Raises:
            BadImage: It leads elsewhere.
        """
        *inner, outer = address.split("::")
        is_own = all(each.partition("://")[0] in _ARCHIVES for each in inner)
        if "://" not in outer and self.folder is not None:
            self.file(outer, name)
        elif self.folder is not None or not outer.startswith(
            (f"hf://datasets/{self.name}@", f"hf://datasets/{self.name}/")
        ):
            is_own = False
        if not is_own or "/../" in outer:
            raise BadImage(
                f"{name} names the address {address!r}, which leads out of the data set; leave "
                "it out."
            )
        return address


_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def find_origin(name: str, cache_dir: Path | None) -> Origin:
    """Decides between a local folder, which wins wherever it exists, and a name of the hub.

    Raises:
        UserError: It is neither.
    """
    from datasets import config
    from huggingface_hub import constants

    path = expanded(name)
    caches = (cache_dir, config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    kept = tuple(Path(each).absolute() for each in caches if each is not None)
    looks_like_hub = _HUB_NAME.fullmatch(name) is not None
    if os.path.isdir(path):
        folder = path.absolute()
        said = (
            f"Read the folder {folder}: it exists, and a data set of the hub called {name} is not "
            "looked for.",
        )
        return Origin(name, folder, kept, said if looks_like_hub else ())
    if not looks_like_hub or os.path.exists(path):
        raise UserError(
            f"There is no folder {path} to load as a data set, and no name on the hub is written "
            "so, expected a folder or a name such as owner/name."
        )
    return Origin(name, None, kept)


def first_line(error: Exception) -> str:
    """Returns what another library says, for a message."""
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


def hub_splits(
    name: str, cache_dir: Path | None, *, for_training: bool = True
) -> dict[str, ImageSet]:
    """Returns the splits of a data set with one image column and one column of class labels.

    Classes are those of the train split; other splits are matched by name.

    Args:
        name: A folder that `save_to_disk` wrote or that `datasets.load_dataset` reads, or a hub
            name (fetched unless it is in the cache). A folder that exists wins.
        cache_dir: Where `datasets` keeps what it fetches; its own default if None.
        for_training: There has to be a train split.

    Raises:
        UserError: `datasets` is missing, the data cannot be found or fetched, it has no train
            split, no image column or no column of class labels, or no row of a split has a label
            that can be used.
    """
    loaded, origin = load_hub(name, cache_dir, streaming=False, for_training=for_training)
    sets: dict[str, ImageSet] = {}
    bad: dict[str, dict[int, BadLabel]] = {}
    classes = None
    for split in sorted(loaded, key="train".__ne__):
        source = f"{name} {split}"
        image, label = image_and_label(loaded[split].features, source)
        own = class_names(loaded[split].features, label, source)
        classes = classes or own
        rows, images = _two_columns(loaded[split], image, label)
        numbers, bad[split] = numbered([as_label(each) for each in rows], classes, own.names)
        sets[split] = HubSet(images, image, numbers, bad[split], classes, origin, split)
    sets = labelled_splits({split: sets[split] for split in loaded}, bad, name)
    next(iter(sets.values())).notes += origin.notes
    return sets


def _two_columns(rows: "Dataset", image: str, label: str) -> tuple[list[Any], "Dataset"]:
    """Returns the labels, and the rows with the image as it is stored."""
    from datasets import Image

    try:
        labels = rows.select_columns([label]).with_format(None)[:][label]
        return labels, rows.select_columns([image]).cast_column(image, Image(decode=False))
    except Exception as error:  # as above
        raise UserError(f"Cannot read the column {label} ({first_line(error)}).") from error


def load_hub(
    name: str, cache_dir: Path | None, *, streaming: bool, for_training: bool
) -> tuple[dict[str, Any], Origin]:
    """Returns a `Dataset` for each split of ours, or an `IterableDataset` with `streaming`.

    No code of the data set is run.

    Raises:
        UserError: `datasets` is missing, the data cannot be found or fetched, or it has no train
            split.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{'hfids' if streaming else 'hfds'}/ data sets need the datasets library; install it "
            "with: pip install 'cvt[hf]'."
        ) from None
    origin = find_origin(name, cache_dir)
    options: dict[str, Any] = {"cache_dir": str(cache_dir) if cache_dir else None}
    if "trust_remote_code" in signature(datasets.load_dataset).parameters:  # up to version 3
        options["trust_remote_code"] = False
    folder = origin.folder
    try:
        if folder and any((folder / each).exists() for each in _SAVED):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder or name), streaming=streaming, **options)
    except Exception as error:  # what it raises for data of the wrong kind is of every kind
        where = folder or f"the hub, since there is no such folder in {Path.cwd()}"
        raise UserError(
            f"Cannot load the data set {name} from {where} ({first_line(error)}); check the name "
            "and the connection."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    splits, origin = _known_splits(loaded, origin)
    if not splits or (for_training and "train" not in splits):
        missing = "train split" if for_training else "split for training, validation or test"
        raise UserError(f"The data set {name} has no {missing}; name one that has.")
    return splits, origin


def _known_splits(loaded: Mapping[Any, Any], origin: Origin) -> tuple[dict[str, Any], Origin]:
    """Returns the splits that are used, and a note about the others."""
    splits: dict[str, Any] = {}
    others = []
    for published, rows in loaded.items():
        split = split_of(str(published))
        if split in splits:
            raise UserError(
                f"The data set {origin.name} has several {split} splits, of which {published} is "
                "one; save the one that is meant, and give its folder."
            )
        if split is None:
            others.append(str(published))
        else:
            splits[split] = rows
    if others:
        said = f"These splits of {origin.name} are not used: {', '.join(others)}."
        origin = replace(origin, notes=(*origin.notes, said))
    return splits, origin


_SAVED = ("state.json", "dataset_dict.json")


def image_and_label(features: Any, source: str) -> tuple[str, str]:
    """Returns the names of the image column and of the column of class labels.

    Raises:
        UserError: There is no such column.
    """
    from datasets import ClassLabel, Image

    if features is None:
        raise UserError(f"{source} does not say what its columns are; name data that does.")
    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels:
        raise UserError(
            f"{source} has the columns {', '.join(features)}, expected one of type Image and "
            "one of type ClassLabel."
        )
    return images[0], labels[0]


def class_names(features: Any, label: str, source: str) -> Classes:
    """Returns the names of a column of class labels."""
    return declared_classes(features[label].names or [], f"the column {label} of {source}")


# --- Data sets of the Hugging Face hub that are read while they are used, not fetched before.

# Rows that wait in memory to be mixed with others, the number that timm takes: half a gigabyte of
# photographs of 110 kB.
SHUFFLE_BUFFER = 4096


def hub_stream_splits(
    name: str, cache_dir: Path | None, *, for_training: bool = True
) -> dict[str, ImageSet]:
    """Returns the splits of a data set as streams.

    Args:
        name: As for `cvt.data.hub.hub_splits`.
        cache_dir: Where `datasets` keeps what little it fetches; its own default if None.
        for_training: There have to be a train and a validation split.

    Raises:
        UserError: As `hub_splits` does, or there is no validation split, or it is not known how
            many images a split has.
    """
    splits, origin = load_hub(name, cache_dir, streaming=True, for_training=for_training)
    if for_training and "val" not in splits:
        raise UserError(
            f"The stream {name} has no validation split, and none can be cut out of a stream; "
            "name data that has one, or load it whole by writing hfds/ instead of hfids/."
        )
    sets: dict[str, ImageSet] = {}
    classes = None
    for split in sorted(splits, key="train".__ne__):
        sets[split] = _stream(splits[split], origin, split, classes)
        classes = classes or sets[split].classes
    next(iter(sets.values())).notes += origin.notes
    return {split: sets[split] for split in splits}


def _stream(rows: Any, origin: Origin, split: str, classes: tuple[str, ...] | None) -> StreamSet:
    from datasets import Dataset, Image

    source = f"{origin.name} {split}"
    count = None
    if isinstance(rows, Dataset):  # written by `save_to_disk`
        count, rows = len(rows), rows.to_iterable_dataset()
    if rows.features is None:
        raise UserError(
            f"The stream {source} does not say what its columns are; load it whole by writing "
            "hfds/ instead of hfids/."
        )
    image, label = image_and_label(rows.features, source)
    count = count or _promised(rows, split) or _counted(rows, label, origin, source)
    undecoded = rows.select_columns([image, label]).cast_column(image, Image(decode=False))
    own = class_names(rows.features, label, source)
    known = Classes(classes or own.names)
    numbers, _ = numbered(list(range(len(own.names))), known, own.names)
    opener = _Opener(undecoded, image, label, source, origin, numbers.tolist())
    return StreamSet(opener, count, known.names, source)


def _promised(rows: Any, split: str) -> int | None:
    """Returns what the data set's card says."""
    splits = rows.info.splits or {}
    return getattr(splits.get(str(rows.split)), "num_examples", None)


def _counted(rows: Any, label: str, origin: Origin, source: str) -> int:
    if origin.folder is None:
        raise UserError(
            f"It is not known how many images the stream {source} has; write the number as "
            "num_examples into the card of the data set, or load it whole by writing hfds/ "
            "instead of hfids/."
        )
    return sum(1 for _ in rows.select_columns([label]))


class _Opener:
    """Turns the rows of an `IterableDataset` into ours.

    Args:
        stream: Two columns, of which the image is cast to `Image(decode=False)`.
        numbers: What each of its labels is among our classes, -1 for none.
    """

    def __init__(
        self,
        stream: Any,
        image: str,
        label: str,
        source: str,
        origin: Origin,
        numbers: Sequence[int],
    ) -> None:
        self.stream = stream
        self.image = image
        self.label = label
        self.source = source
        self.origin = origin
        self.numbers = numbers

    def __call__(self, seed: int | None) -> Iterator[Row]:
        stream = self.stream
        if seed is not None:
            stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for number, row in enumerate(stream):
            cell, label = row[self.image] or {}, row[self.label]
            path = cell.get("path")
            name = f"{self.source} {path or f'image {number}'}"
            is_known = isinstance(label, int) and 0 <= label < len(self.numbers)
            source = self._source(cell.get("bytes"), path, name)
            yield Row(number, source, self.numbers[label] if is_known else -1, name)

    def _source(self, content: bytes | None, path: str | None, name: str) -> bytes | str | BadImage:
        if content is not None or not path:
            return content or b""
        try:
            if "://" in path:
                return self.origin.address(path, name)
            return str(self.origin.file(path, name))
        except BadImage as error:
            return error
