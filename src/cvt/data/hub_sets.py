"""Data sets that the Hugging Face `datasets` library loads, by hub name or from a local path."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    loaded = load_hub(name, cache_dir, streaming=False)
    return {split: _hub_set(rows, f"{name} {split}") for split, rows in loaded.items()}


def load_hub(name: str, cache_dir: Path | None, *, streaming: bool) -> dict[str, Any]:
    """Returns a `Dataset` for each split of ours, or an `IterableDataset` with `streaming`.

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
    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            cache = str(cache_dir) if cache_dir else None
            loaded = datasets.load_dataset(name, cache_dir=cache, streaming=streaming)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(
            f"Cannot load the data set {name} ({reason}); check the name and the connection."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    splits = {SPLIT_OF_NAME.get(str(split), ""): rows for split, rows in loaded.items()}
    splits.pop("", None)
    if "train" not in splits:
        raise UserError(f"The data set {name} has no train split; name one that has.")
    return splits


def image_and_label(features: Any, source: str) -> tuple[str, str]:
    """Returns the names of the image column and of the column of class labels.

    Raises:
        UserError: There is no such column.
    """
    from datasets import ClassLabel, Image

    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    if not images or not labels:
        raise UserError(
            f"{source} has the columns {', '.join(features)}, expected one of type Image and "
            "one of type ClassLabel."
        )
    return images[0], labels[0]


def _hub_set(rows: "Dataset", source: str) -> ImageSet:
    from datasets import Image

    image, label = image_and_label(rows.features, source)
    classes = rows.features[label].names
    numbers = np.asarray(rows.with_format("numpy")[label][:], dtype=np.int64)
    outside = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(outside):
        raise UserError(
            f"{source} row {outside[0]} has the label {numbers[outside[0]]}, expected 0 to "
            f"{len(classes) - 1}; leave out pictures without a class."
        )
    undecoded = rows.cast_column(image, Image(decode=False))
    return HubSet(undecoded, image, numbers, classes, source)
