"""The splits of a parquet file or of a folder of parquet files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cvt.data.folder import SPLIT_OF_NAME
from cvt.data.image_set import ImageSet, Joined
from cvt.data.labels import BadLabel, Classes, classes_of, labelled_splits, numbered
from cvt.data.parquet_file import ParquetRows, ParquetSet, read_parquet
from cvt.errors import UserError

_FILE_NAME = re.compile(r"([a-z]+)(?:[^a-z].*)?\.parquet")
_SHARD = re.compile(r"-of-(\d+)\.parquet$")


def parquet_splits(path: Path, *, for_training: bool = True) -> dict[str, ImageSet]:
    """Returns the splits of a parquet file (all "train") or of a folder of parquet files.

    In a folder the file name says the split: `train.parquet`, `train-00000-of-00002.parquet`,
    `validation.parquet`, `test.parquet`. Each file has a column `image` of `{bytes, path}` and a
    column `label` of class names, or of whole numbers that the schema's `huggingface` metadata
    names. The compressed bytes stay in memory; nothing is decoded here.

    A row whose label is none of the train split's classes is kept as a bad one.

    Args:
        for_training: There has to be a train split; without one, all splits give the classes. To
            be measured, files whose names say no split are one.

    Raises:
        UserError: A file cannot be used (see `read_parquet`), a shard or the train file is
            missing, or no row of a split has a label that can be used.
    """
    files = {"train": [path]} if not os.path.isdir(path) else _split_files(path, for_training)
    rows = {split: [read_parquet(file) for file in members] for split, members in files.items()}
    every = [each for members in rows.values() for each in members]
    classes = _classes(rows.get("train", every), path)
    splits: dict[str, ImageSet] = {}
    bad: dict[str, dict[int, BadLabel]] = {}
    for split, members in rows.items():
        parts, bad[split] = [], {}
        for each in members:
            labels, odd = numbered(each.labels, classes, each.class_names)
            start = sum(map(len, parts))
            bad[split] |= {start + row: why for row, why in odd.items()}
            parts.append(ParquetSet(each, labels, odd, classes))
        splits[split] = Joined(parts)
    splits = labelled_splits(splits, bad, str(path))
    if os.path.isdir(path):
        for images in splits.values():
            images.notes += _unused(path, files)
    return splits


def _unused(folder: Path, files: dict[str, list[Path]]) -> tuple[str, ...]:
    used = {file for members in files.values() for file in members}
    others = [file.name for file in sorted(folder.glob("*.parquet")) if file not in used]
    if not others:
        return ()
    return (
        f"{len(others)} parquet files in {folder} are not used, because their names begin with no "
        f"split: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}.",
    )


def _split_files(folder: Path, for_training: bool) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        match = _FILE_NAME.fullmatch(file.name.lower())
        if match and match[1] in SPLIT_OF_NAME:
            found.setdefault(SPLIT_OF_NAME[match[1]], []).append(file)
    if not found and not for_training:
        return {"train": sorted(folder.glob("*.parquet"))}
    if for_training and "train" not in found:
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


def _classes(train: Sequence[ParquetRows], path: Path) -> Classes:
    """Takes the names from the metadata; without them, the labels name themselves."""
    if train[0].class_names:
        return Classes(train[0].class_names)
    return classes_of((label for rows in train for label in rows.labels), str(path))
