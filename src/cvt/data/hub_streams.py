"""Data sets of the Hugging Face hub that are read while they are used, not fetched before."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cvt.data.hub_sets import Origin, class_names, image_and_label, load_hub
from cvt.data.image import BadImage
from cvt.data.image_set import ImageSet
from cvt.data.labels import Classes, numbered
from cvt.data.stream_set import Row, StreamSet
from cvt.errors import UserError

# Rows that wait in memory to be mixed with others, the number that timm takes: half a gigabyte of
# photographs of 110 kB.
SHUFFLE_BUFFER = 4096


def hub_stream_splits(
    name: str, cache_dir: Path | None, *, for_training: bool = True
) -> dict[str, ImageSet]:
    """Returns the splits of a data set as streams.

    Args:
        name: As for `cvt.data.hub_sets.hub_splits`.
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
