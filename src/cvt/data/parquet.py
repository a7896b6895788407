"""The splits of a parquet file or of a folder of parquet files."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvt.data.folder import SPLIT_OF_NAME
from cvt.data.image_set import ImageSet, Joined
from cvt.data.parquet_file import ParquetRows, ParquetSet, read_parquet
from cvt.errors import UserError

_FILE_NAME = re.compile(r"([a-z]+)(?:[^a-z].*)?\.parquet")
_SHARD = re.compile(r"-of-(\d+)\.parquet$")


def parquet_splits(path: Path) -> dict[str, ImageSet]:
    """Returns the splits of a parquet file (all "train") or of a folder of parquet files.

    In a folder the file name says the split: `train.parquet`, `train-00000-of-00002.parquet`,
    `validation.parquet`, `test.parquet`. Each file has a column `image` of `{bytes, path}` and a
    column `label` of class names, or of whole numbers that the schema's `huggingface` metadata
    names. The compressed bytes stay in memory; nothing is decoded here.

    Raises:
        UserError: A file cannot be used (see `read_parquet`), a shard or the train file is
            missing, or a label is not one of the train split's classes.
    """
    files = {"train": [path]} if path.is_file() else _split_files(path)
    rows = {split: [read_parquet(file) for file in members] for split, members in files.items()}
    classes = _class_names(rows["train"])
    return {
        split: Joined([ParquetSet(each, _numbered(each, classes), classes) for each in members])
        for split, members in rows.items()
    }


def _split_files(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        match = _FILE_NAME.fullmatch(file.name.lower())
        if match and match[1] in SPLIT_OF_NAME:
            found.setdefault(SPLIT_OF_NAME[match[1]], []).append(file)
    if "train" not in found:
        raise UserError(
            f"{folder} holds parquet files but none called train*.parquet; "
            "rename them after their split, or give the path of one file."
        )
    for split, files in found.items():
        shard = _SHARD.search(files[0].name)
        if shard and len(files) != int(shard[1]):
            raise UserError(
                f"{folder} holds {len(files)} of the {int(shard[1])} shards of {split}; "
                "fetch the missing ones."
            )
    return found


def _class_names(train: Sequence[ParquetRows]) -> tuple[str, ...]:
    """Takes the names from the metadata; without them, the labels name themselves."""
    if train[0].class_names:
        return train[0].class_names
    seen = {label for rows in train for label in rows.labels}
    numbers = [label for label in seen if isinstance(label, int)]
    if numbers:
        return tuple(str(label) for label in range(max(numbers) + 1))
    return tuple(sorted(label for label in seen if isinstance(label, str)))


def _numbered(rows: ParquetRows, classes: tuple[str, ...]) -> np.ndarray:
    numbers: dict[str | int | None, int] = {name: label for label, name in enumerate(classes)}
    numbers |= {label: label for label in range(len(classes))}
    for row, label in enumerate(rows.labels):
        if label not in numbers:
            raise UserError(
                f"{rows.file} row {row} has the label {label!r}, expected one of the "
                f"{len(classes)} classes of the train split; correct or remove it."
            )
    return np.asarray([numbers[label] for label in rows.labels], dtype=np.int64)
