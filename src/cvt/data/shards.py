"""Webdataset shards: a folder of tar archives, or a pattern that stands for several."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cvt.data.folder import SPLIT_OF_NAME
from cvt.data.image_set import ImageSet
from cvt.data.labels import (
    BadLabel,
    Classes,
    classes_of,
    declared_classes,
    labelled_splits,
    numbered,
)
from cvt.data.shard import Shard, read_shard
from cvt.data.shard_set import ShardSet
from cvt.errors import UserError
from cvt.files import file_inside, read_small
from cvt.plain import MOST_TEXT, from_plain, read_json_file

MOST_SHARDS = 100_000
"""Shards that a pattern may stand for."""

_MOST_PATTERN = 4096  # letters, as many as a path may have
_ARCHIVE = re.compile(r"\.(?:tar|tgz|tar\.[a-z0-9]+)$")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_INFO_FILE, _CLASSES_FILE = "_info.json", "classes.txt"


@dataclass(frozen=True)
class _SplitInfo:
    """What timm's `_info.json` says of a split, as far as it is used."""

    filenames: tuple[str, ...] = ()
    alt_label: str | None = None


@dataclass(frozen=True)
class _Info:
    """What it says of the whole."""

    splits: dict[str, _SplitInfo] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None

    def split(self, name: str) -> _SplitInfo:
        """What it says of our "train", "val" or "test"."""
        called = (each for each in self.splits if name in (each, SPLIT_OF_NAME.get(each)))
        return self.splits.get(next(called, ""), _SplitInfo())


def shard_splits(path: Path, *, for_training: bool = True) -> dict[str, ImageSet]:
    """Returns the splits of a folder of `.tar` shards, of one shard, or of a pattern like
    `train-{000..009}.tar`.

    In a folder, the splits are what timm's `_info.json` says, or the subfolders called `train`,
    `val` and so on, or what the shards' names say, such as `imagenet1k-train-0001.tar`; shards
    without any such word, and all those of a pattern that does not tell, are "train". Class names
    are the lines of `classes.txt` or the list `classes` in `_info.json`; without them classes are
    called by their number, or by the names that the samples give.

    Args:
        for_training: There has to be a train split; without one, all splits give the classes.

    Raises:
        UserError: There are no shards, one is missing or unreadable as a whole, there is no train
            split, or not one sample has a label.
    """
    folder = path if os.path.isdir(path) else path.parent
    info = _read_info(folder)
    files = _split_files(path, info)
    if for_training and "train" not in files:
        raise UserError(
            f"{path} holds shards of {', '.join(files)} but none of train; add them, or give the "
            "shards of one split as a pattern."
        )
    shards = {
        split: [read_shard(file, info.split(split).alt_label or "label") for file in members]
        for split, members in files.items()
    }
    every = [each for some in shards.values() for each in some]
    classes = _classes(folder, info, shards.get("train", every))
    splits: dict[str, ImageSet] = {}
    bad: dict[str, dict[int, BadLabel]] = {}
    for split, some in shards.items():
        labels, bad[split] = numbered([each for shard in some for each in shard.labels], classes)
        splits[split] = ShardSet(some, labels, bad[split], classes)
    splits = labelled_splits(splits, bad, str(path))
    if os.path.isdir(path):
        notes = _unused(path, {file for members in files.values() for file in members})
        for images in splits.values():
            images.notes += notes
    return splits


def _unused(folder: Path, used: set[Path]) -> tuple[str, ...]:
    """Returns what is to be said of archives that lie beside the shards."""
    others = [each for each in sorted(folder.iterdir()) if _ARCHIVE.search(each.name.lower())]
    names = [each.name for each in others if each not in used and not each.name.startswith(".")]
    if not names:
        return ()
    return (
        f"{len(names)} archives in {folder} are not used: {', '.join(names[:5])}"
        f"{', ...' if len(names) > 5 else ''}; shards are uncompressed, and all of them lie "
        "together or in folders of splits, or in _info.json.",
    )


def expand_braces(pattern: str) -> list[str]:
    """Returns what a pattern stands for: `{00..11}` counts, `{a,b}` enumerates.

    Numbers keep the width of the first, leading zeros included.

    Raises:
        UserError: It stands for more than `MOST_SHARDS`.
    """
    if len(pattern) > _MOST_PATTERN:
        raise UserError(
            f"Got a pattern of {len(pattern):,} letters, expected at most {_MOST_PATTERN:,}."
        )
    waiting, found = [pattern], {}
    while waiting:
        each = waiting.pop()
        choice = _CHOICE.search(each)
        if choice is None:
            found[each] = None
            continue
        before, after = each[: choice.start()], each[choice.end() :]
        waiting += [f"{before}{one}{after}" for one in reversed(_choices(choice[1], pattern))]
        if len(waiting) + len(found) > MOST_SHARDS:
            raise _too_many(pattern)
    return list(found)


def _choices(inside: str, pattern: str) -> Sequence[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        return inside.split(",")
    if max(map(len, counted.groups())) > 9:
        raise _too_many(pattern)
    first, last = (int(number) for number in counted.groups())
    if last - first >= MOST_SHARDS:
        raise _too_many(pattern)
    if last < first:
        raise UserError(f"The pattern {pattern} counts from {first} down to {last}; turn it round.")
    return [f"{number:0{len(counted[1])}}" for number in range(first, last + 1)]


def _too_many(pattern: str) -> UserError:
    return UserError(
        f"The pattern {pattern} stands for more than {MOST_SHARDS:,} shards; correct its braces."
    )


def _pattern_files(path: Path) -> list[Path]:
    """Returns the shards that a pattern stands for; whatever exists is no pattern."""
    if os.path.exists(path):
        return [path]
    parts = path.parts
    real = next((end for end in range(len(parts), 0, -1) if os.path.exists(Path(*parts[:end]))), 0)
    rest = "/".join(parts[real:])
    return [Path(*parts[:real], each) for each in expand_braces(rest)]


def _split_files(path: Path, info: _Info) -> dict[str, list[Path]]:
    if not os.path.isdir(path):
        files = _pattern_files(path)
        missing = [file for file in files if not os.path.isfile(file)]
        if missing or not files:
            raise UserError(
                f"There is no shard {missing[0] if missing else path}, {len(missing)} of "
                f"{len(files)} are missing; check the path and the numbers."
            )
        splits = _by_name(files)
        return splits if len(splits) > 1 else {"train": files}
    if info.splits:
        named = {name: _listed(path, name, info) for name in info.splits}
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


def _listed(folder: Path, name: str, info: _Info) -> list[Path]:
    files = [file_inside(folder, file) for file in info.splits[name].filenames]
    missing = [file for file in files if not os.path.isfile(file)]
    if missing or not files:
        raise UserError(
            f"{folder / _INFO_FILE} lists {len(files)} shards of {name}, of which {len(missing)} "
            f"are missing{f', such as {missing[0].name}' if missing else ''}; fetch them."
        )
    return files


def _read_info(folder: Path) -> _Info:
    for name in (_INFO_FILE, _INFO_FILE.lstrip("_")):
        if os.path.isfile(folder / name):
            what = str(folder / name)
            known = _known(_Info, read_json_file(folder / name), what)
            if isinstance(known.get("splits"), dict):
                known["splits"] = {
                    split: _known(_SplitInfo, facts, f"{split!r} in splits of {what}")
                    for split, facts in known["splits"].items()
                }
            return from_plain(_Info, known, what)
    return _Info()


def _known(cls: Any, plain: Any, what: str) -> dict[str, Any]:
    """Returns the keys that a dataclass knows; these files hold many others."""
    if not isinstance(plain, dict):
        raise UserError(f"Got {what} without keys, expected timm's description of a data set.")
    return {each.name: plain[each.name] for each in fields(cls) if each.name in plain}


def _classes(folder: Path, info: _Info, train: Sequence[Shard]) -> Classes:
    if info.classes:
        return declared_classes(info.classes, str(folder / _INFO_FILE))
    file = folder / _CLASSES_FILE
    if os.path.isfile(file):
        try:
            text = read_small(file, MOST_TEXT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no UTF-8 text ({error}); save it as UTF-8.") from None
        return declared_classes([line for line in text.splitlines() if line.strip()], str(file))
    return classes_of((label for shard in train for label in shard.labels), str(folder))
