"""Data sets that the Hugging Face `datasets` library loads, by hub name or from a local path."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cvt.data.folder import SPLIT_OF_NAME
from cvt.data.image import open_image
from cvt.data.image_set import ImageSet
from cvt.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


class HubSet(ImageSet):
    """Rows of a `datasets.Dataset`, decoded by us rather than by `datasets`.

    Args:
        rows: A dataset whose image column is cast to `Image(decode=False)`.
        column: The name of that column.
        labels: Position of each row's class in `classes`, shape (N,).
        source: What messages call the data; a picture is "`source` row 12".
    """

    def __init__(
        self, rows: "Dataset", column: str, labels: np.ndarray, classes: Sequence[str], source: str
    ) -> None:
        self.rows = rows
        self.column = column
        self.labels = labels
        self.classes = tuple(classes)
        self.source = source

    def name(self, index: int) -> str:
        return f"{self.source} row {index}"

    def image(self, index: int) -> Image.Image:
        cell = self.rows[index][self.column] or {}
        if cell.get("bytes") is None and cell.get("path"):
            return open_image(cell["path"], name=self.name(index))
        return open_image(cell.get("bytes") or b"", name=self.name(index))


def hub_splits(name: str, cache_dir: Path | None) -> dict[str, ImageSet]:
    """Returns the splits of a data set with one image column and one column of class labels.

    Args:
        name: A hub name (fetched unless it is in the cache), a folder that `save_to_disk` wrote, or
            any local path that `datasets.load_dataset` reads.
        cache_dir: Where `datasets` keeps what it fetches; its own default if None.

    Raises:
        UserError: `datasets` is missing, the data cannot be found or fetched, it has no train
            split, no image column or no column of class labels, or a row has no class.
    """
    splits: dict[str, ImageSet] = {}
    for published, rows in _load(name, cache_dir).items():
        split = SPLIT_OF_NAME.get(published)
        if split:
            splits[split] = _hub_set(rows, f"{name} {published}")
    if "train" not in splits:
        raise UserError(f"The data set {name} has no train split; name one that has.")
    return splits


def _load(name: str, cache_dir: Path | None) -> "dict[str, Dataset]":
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hfds/ data sets need the datasets library; install it with: pip install 'cvt[hf]'."
        ) from None
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, cache_dir=str(cache_dir) if cache_dir else None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"Cannot load the data set {name} ({reason}); check the name and the connection."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return {"train": loaded}
    return {str(split): rows for split, rows in loaded.items()}


def _hub_set(rows: "Dataset", source: str) -> HubSet:
    from datasets import ClassLabel, Image

    images = [name for name, kind in rows.features.items() if isinstance(kind, Image)]
    labels = [name for name, kind in rows.features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels:
        raise UserError(
            f"{source} has the columns {', '.join(rows.features)}, expected one of type Image and "
            "one of type ClassLabel."
        )
    classes = rows.features[labels[0]].names
    numbers = np.asarray(rows.with_format("numpy")[labels[0]][:], dtype=np.int64)
    outside = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(outside):
        raise UserError(
            f"{source} row {outside[0]} has the label {numbers[outside[0]]}, expected 0 to "
            f"{len(classes) - 1}; leave out pictures without a class."
        )
    undecoded = rows.cast_column(images[0], Image(decode=False))
    return HubSet(undecoded, images[0], numbers, classes, source)
