"""Data sets that the Hugging Face `datasets` library loads, by hub name or from a local path."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt.data.image import BadImage, ImageSource
from cvt.data.labels import BadLabel, Classes, Label, as_label, declared_classes
from cvt.data.sets import ImageSet, RowSet, labelled_splits
from cvt.data.sources import split_of
from cvt.errors import UserError, first_line
from cvt.files import expanded, file_inside

if TYPE_CHECKING:
    from datasets import Dataset

_SAVED = ("state.json", "dataset_dict.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def hub_splits(
    name: str, cache_dir: Path | None, *, for_training: bool = True
) -> dict[str, ImageSet]:
    """Returns the splits of a data set with one image column and one column of class labels.

    Classes are those of the train split; other splits are matched by name. No code of the data set
    is run.

    Args:
        name: A folder that `save_to_disk` wrote or that `datasets.load_dataset` reads, or a hub
            name (fetched unless it is in the cache). A folder that exists wins.
        cache_dir: Where `datasets` keeps what it fetches; its own default if None.
    """
    loaded, origin = _load(name, cache_dir)
    if not loaded or (for_training and "train" not in loaded):
        missing = "train split" if for_training else "split for training, validation or test"
        raise UserError(f"The data set {name} has no {missing}; name one that has.")
    sets: dict[str, HubSet] = {}
    classes = None
    for split in sorted(loaded, key="train".__ne__):
        features, source = loaded[split].features, f"{name} {split}"
        image, label = _image_and_label(features, source)
        own = declared_classes(features[label].names or [], f"the column {label} of {source}")
        classes = classes or own
        labels, images = _two_columns(loaded[split], image, label)
        columns = [([as_label(each) for each in labels], own.names)]
        sets[split] = HubSet(columns, classes, images, image, origin, split)
    return labelled_splits({split: sets[split] for split in loaded}, name, origin.notes)


def _load(name: str, cache_dir: Path | None) -> tuple[dict[str, "Dataset"], "Origin"]:
    """Returns the rows of each split that is used."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            "hfds/ data sets need the datasets library; install it with: pip install 'cvt[hf]'."
        ) from None
    origin = _find_origin(name, cache_dir)
    options: dict[str, Any] = {"cache_dir": str(cache_dir) if cache_dir else None}
    if "trust_remote_code" in signature(datasets.load_dataset).parameters:  # up to version 3
        options["trust_remote_code"] = False
    folder = origin.folder
    try:
        if folder and any((folder / each).exists() for each in _SAVED):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder or name), **options)
    except Exception as error:  # what it raises for data of the wrong kind is of every kind
        where = folder or f"the hub, since there is no such folder in {Path.cwd()}"
        raise UserError(
            f"Cannot load the data set {name} from {where} ({first_line(error)}); check the name "
            "and the connection."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {"train": loaded}
    return _known_splits(loaded, origin)


def _known_splits(
    loaded: Mapping[Any, Any], origin: "Origin"
) -> tuple[dict[str, "Dataset"], "Origin"]:
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


def _image_and_label(features: Any, source: str) -> tuple[str, str]:
    """Returns the names of the image column and of the column of class labels."""
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


def _two_columns(rows: "Dataset", image: str, label: str) -> tuple[list[Any], "Dataset"]:
    """Returns the labels, and the rows with the image as it is stored."""
    from datasets import Image

    try:
        labels = rows.select_columns([label]).with_format(None)[:][label]
        return labels, rows.select_columns([image]).cast_column(image, Image(decode=False))
    except Exception as error:  # a damaged file makes pyarrow raise nearly anything
        raise UserError(f"Cannot read the column {label} ({first_line(error)}).") from error


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, and which files its rows may name.

    Args:
        name: What the user called it.
        folder: The local folder, or None for one of the hub.
        caches: Folders into which `datasets` fetches and unpacks files.
    """

    name: str
    folder: Path | None
    caches: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def file(self, path: str, name: str) -> Path:
        """Returns a file that a row names; `BadImage` if it is none of the data set's own."""
        own = () if self.folder is None else (self.folder,)
        for root in (*own, *self.caches) if Path(path).is_absolute() else own:
            with suppress(ValueError):  # of which UserError is one
                return file_inside(root, str((root / path).relative_to(root)))
        raise BadImage(
            f"{name} names the file {path!r}, which is none of the data set's own; leave it out."
        )


def _find_origin(name: str, cache_dir: Path | None) -> Origin:
    """Decides between a local folder, which wins wherever it exists, and a name of the hub."""
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
            "looked for."
        )
        return Origin(name, folder, kept, (said,) * looks_like_hub)
    if not looks_like_hub or os.path.exists(path):
        raise UserError(
            f"There is no folder {path} to load as a data set, and no name on the hub is written "
            "so, expected a folder or a name such as owner/name."
        )
    return Origin(name, None, kept)


class HubSet(RowSet):
    """Rows of a `datasets.Dataset`, decoded by us rather than by `datasets`.

    Args:
        rows: A dataset whose image `column` is cast to `Image(decode=False)`.
    """

    def __init__(
        self,
        columns: Iterable[tuple[Sequence[Label | BadLabel], Sequence[str]]],
        classes: Classes,
        rows: "Dataset",
        column: str,
        origin: Origin,
        split: str,
    ) -> None:
        super().__init__(columns, classes)
        self.rows, self.column, self.origin, self.split = rows, column, origin, split

    def name(self, index: int) -> str:
        return f"{self.origin.name} {self.split} row {index}"

    def source(self, index: int, name: str) -> ImageSource:
        try:
            cell = self.rows[index][self.column] or {}
        except Exception as error:  # as above
            raise BadImage(f"Cannot read {name} ({first_line(error)}).") from error
        content, path = cell.get("bytes"), cell.get("path")
        return self.origin.file(path, name) if content is None and path else content or b""
