"""Webdataset shards: a folder of tar archives, or a pattern that stands for several."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvt.data.folder import SPLIT_OF_NAME
from cvt.data.image_set import ImageSet
from cvt.data.shard import Shard, read_shard
from cvt.data.shard_set import ShardSet
from cvt.errors import UserError

_CHOICE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_CLASSES = 1_000_000
_INFO_FILE, _CLASSES_FILE = "_info.json", "classes.txt"


def shard_splits(path: Path) -> dict[str, ImageSet]:
    """Returns the splits of a folder of `.tar` shards, of one shard, or of a pattern like
    `train-{000..009}.tar`.

    In a folder, the splits are what timm's `_info.json` says, or the subfolders called `train`,
    `val` and so on, or what the shards' names say, such as `imagenet1k-train-0001.tar`; shards
    without any such word, and all those of a pattern that does not tell, are "train". Class names
    are the lines of `classes.txt` or the list `classes` in `_info.json`; without them classes are
    called by their number, or by the names that the samples give.

    Raises:
        UserError: There are no shards, one is missing or unreadable as a whole, there is no train
            split, or not one sample has a label.
    """
    folder = path if path.is_dir() else path.parent
    info = _read_info(folder)
    files = _split_files(path, info)
    if "train" not in files:
        raise UserError(
            f"{path} holds shards of {', '.join(files)} but none of train; add them, or give the "
            "shards of one split as a pattern."
        )
    keys = {split: _split_info(info, split).get("alt_label") or "label" for split in files}
    shards = {
        split: [read_shard(file, keys[split]) for file in members]
        for split, members in files.items()
    }
    classes = _class_names(folder, info, [each for some in shards.values() for each in some])
    return {
        split: ShardSet(some, _numbered(some, classes), classes) for split, some in shards.items()
    }


def expand_braces(pattern: str) -> list[str]:
    """Returns what a pattern stands for: `{00..11}` counts, `{a,b}` enumerates.

    Numbers keep the width of the first, leading zeros included.
    """
    found = _CHOICE.search(pattern)
    if found is None:
        return [pattern]
    counted = _RANGE.fullmatch(found[1])
    if counted:
        first, last = (int(number) for number in counted.groups())
        choices = [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [each for choice in choices for each in expand_braces(before + choice + after)]


def _split_files(path: Path, info: dict[str, Any]) -> dict[str, list[Path]]:
    if not path.is_dir():
        files = [Path(each) for each in expand_braces(str(path))]
        missing = [file for file in files if not file.is_file()]
        if missing or not files:
            raise UserError(
                f"There is no shard {missing[0] if missing else path}, {len(missing)} of "
                f"{len(files)} are missing; check the path and the numbers."
            )
        splits = _by_name(files)
        return splits if len(splits) > 1 else {"train": files}
    if info.get("splits"):
        named = {name: _listed(path, name, info) for name in info["splits"]}
        return {SPLIT_OF_NAME[name]: named[name] for name in named if name in SPLIT_OF_NAME}
    folders = {each.name: each for each in sorted(path.iterdir()) if each.is_dir()}
    splits = {
        SPLIT_OF_NAME[name]: _tars(folders[name]) for name in folders if name in SPLIT_OF_NAME
    }
    splits = {split: files for split, files in splits.items() if files} or _by_name(_tars(path))
    if not splits:
        raise UserError(f"{path} holds no .tar shards; check the path.")
    return splits


def _tars(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if not file.name.startswith("."))


def _by_name(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Sorts shards into splits by a word in their names; if none has one, all are "train"."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.stem.lower())
        split = next((SPLIT_OF_NAME[word] for word in words if word in SPLIT_OF_NAME), "")
        splits.setdefault(split, []).append(file)
    unknown = splits.pop("", [])
    if unknown and splits:
        raise UserError(
            f"The name of the shard {unknown[0]} does not say its split, but others do; rename it."
        )
    return splits or ({"train": unknown} if unknown else {})


def _listed(folder: Path, name: str, info: dict[str, Any]) -> list[Path]:
    files = [folder / file for file in _split_info(info, name).get("filenames", ())]
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise UserError(
            f"{folder / _INFO_FILE} lists {len(files)} shards of {name}, of which {len(missing)} "
            f"are missing{f', such as {missing[0].name}' if missing else ''}; fetch them."
        )
    return files


def _read_info(folder: Path) -> dict[str, Any]:
    for name in (_INFO_FILE, _INFO_FILE.lstrip("_")):
        try:
            info = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot read {folder / name} as JSON ({error}).") from error
        if isinstance(info, dict):
            return info
    return {}


def _split_info(info: dict[str, Any], split: str) -> dict[str, Any]:
    for name, facts in (info.get("splits") or {}).items():
        if name == split or SPLIT_OF_NAME.get(name) == split:
            return facts
    return {}


def _class_names(folder: Path, info: dict[str, Any], shards: Sequence[Shard]) -> tuple[str, ...]:
    names = info.get("classes")
    if isinstance(names, list) and names:
        return tuple(map(str, names))
    if (folder / _CLASSES_FILE).is_file():
        lines = (folder / _CLASSES_FILE).read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    seen = {label for shard in shards for label in shard.labels}
    numbers = [label for label in seen if isinstance(label, int)]
    if max(numbers, default=0) > _MOST_CLASSES:
        raise UserError(
            f"A sample in {folder} has the label {max(numbers)}, expected numbers from 0 on; "
            f"correct it, or name the classes in {folder / _CLASSES_FILE}."
        )
    if numbers:
        return tuple(str(label) for label in range(max(numbers) + 1))
    found = tuple(sorted(label for label in seen if isinstance(label, str)))
    if not found:
        raise UserError(
            f"Not one sample of {shards[0].path} has a label, expected files .cls or .json with "
            "a number; name what the first sample holds: "
            f"{next(iter(shards[0].bad.values()), 'nothing')}"
        )
    return found


def _numbered(shards: Sequence[Shard], classes: tuple[str, ...]) -> np.ndarray:
    """Returns the position of each label in `classes`; a sample with another label is dropped."""
    numbers: dict[int | str | None, int] = {name: label for label, name in enumerate(classes)}
    numbers |= {label: label for label in range(len(classes))}
    for shard in shards:
        for number, label in enumerate(shard.labels):
            if label is not None and label not in numbers:
                shard.drop(number, f"has the label {label!r}, none of the {len(classes)} classes.")
    return np.array(
        [numbers.get(label, -1) for shard in shards for label in shard.labels], dtype=np.int64
    )
