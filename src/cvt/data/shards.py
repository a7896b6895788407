"""Webdataset shards: a folder of tar archives, or a pattern for several, read at any place.

The own tar index stands in for `tarfile`, which strangers' archives drive out of bounds: in Python
3.11.7 and 3.12.1, 40 kB of digits as a pax record take it 8 seconds and twice as many four times
that (CVE-2024-6232), and up to 3.13.5 a negative size sends it round in circles (CVE-2025-8194).
In 3.13.0 as well, one global header and 200 members, 750 kB in all, take it 390 MB, and it ends
silently at a damaged header, where the index has to say that the rest is lost.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from cvt.data.formats import SUFFIXES
from cvt.data.image import MAX_BYTES, BadImage, ImageSource
from cvt.data.labels import BadLabel, Classes, Label, as_label, classes_of, declared_classes
from cvt.data.sets import ImageSet, RowSet, labelled_splits
from cvt.data.sources import SPLIT_OF_NAME, split_words
from cvt.errors import UserError
from cvt.files import file_inside, read_small
from cvt.plain import MOST_TEXT, from_others, read_json, read_json_file

MOST_NAME = 4096
"""Bytes of a file's name, as many as a path may have; longer ones are cut."""

_BLOCK = 512
_MOST_EXTENDED = 2**20  # bytes of pax records before one file; Linux makes some 70,000 at most
_MOST_PADDING = 2**20  # zeros behind the last file; tar writes ten thousand
_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL = b"L", b"K", b"x", b"g"
_EXTRAS = (_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL)
_FILES, _FOLDER, _SPARSE = (b"0", b"\0", b"7"), b"5", b"S"
_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")


class Member(NamedTuple):
    """A file in an archive: its name, and where its content lies, in bytes."""

    name: str
    start: int
    size: int
    is_file: bool = True  # with content of its own, unlike a link or a device


class TarDamage(Exception):
    """An archive that is cut short, or no archive from some byte on."""


def tar_members(archive: BinaryIO) -> Iterator[Member]:
    """Yields what an uncompressed archive holds, except folders, in its order.

    Understood are POSIX (ustar, pax) and GNU archives, and several joined to one file. Bytes of
    names that are no UTF-8 become Python's surrogates. The archive has to seek; only headers are
    read. `TarDamage` is raised behind the last whole member.
    """
    length = archive.seek(0, 2)
    place, name, size, has_ended = 0, None, None, False
    while place + _BLOCK <= length:
        header = _read(archive, place, _BLOCK)
        if not header.strip(b"\0"):
            place, has_ended = _behind_zeros(archive, place, length), True
            continue
        kind, own_name, own_size = _read_header(header, place)
        start, has_ended = place + _BLOCK, False
        if size is not None and kind not in _EXTRAS:
            own_size = size  # from a pax record: the header has no room for it
        if start + own_size > length:
            raise TarDamage(f"is cut short at byte {length}")
        place = start + -(-own_size // _BLOCK) * _BLOCK
        if kind == _LONG_NAME:
            name = _text(_read(archive, start, min(own_size, MOST_NAME + 1)).partition(b"\0")[0])
        elif kind == _EXTENDED:
            name, size = _read_extended(archive, start, own_size, name)
        elif kind not in _EXTRAS:
            if kind != _FOLDER:
                yield Member(own_name if name is None else name, start, own_size, kind in _FILES)
            name, size = None, None
    if not has_ended:
        raise TarDamage(f"is cut short at byte {length}")


def _read(archive: BinaryIO, start: int, size: int) -> bytes:
    archive.seek(start)
    return archive.read(size)


def _text(name: bytes) -> str:
    return name[: MOST_NAME + 1].decode(errors="surrogateescape")


def _behind_zeros(archive: BinaryIO, place: int, length: int) -> int:
    """Returns where the first block that is not all zeros begins: another archive, or the end."""
    zeros = _read(archive, place, min(_MOST_PADDING, length - place))
    rest = zeros.lstrip(b"\0")
    if not rest and place + len(zeros) < length:
        raise TarDamage(f"has more than {_MOST_PADDING} zeros at byte {place}")
    return place + (len(zeros) - len(rest)) // _BLOCK * _BLOCK if rest else length


def _read_header(header: bytes, place: int) -> tuple[bytes, str, int]:
    """Returns kind, name and size; the checksum tells a header from other data."""
    fields, kind = header[:148] + b" " * 8 + header[156:], header[156:157]
    try:
        if _number(header[148:156]) != sum(fields):
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        raise TarDamage(f"has something that is no header at byte {place}") from None
    if kind == _SPARSE:
        raise TarDamage(f"has a sparse file, which is not read, at byte {place}")
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].partition(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return kind, _text(name), size


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # GNU: too large for octal digits
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not digits.isdigit():  # int() takes signs and underscores
        raise ValueError
    return int(digits, 8)


def _read_extended(
    archive: BinaryIO, start: int, length: int, name: str | None
) -> tuple[str | None, int | None]:
    """Returns the name and the size that pax records give; `name` if they have none."""
    if length > _MOST_EXTENDED:
        raise TarDamage(f"has pax records of over {_MOST_EXTENDED} bytes at byte {start}")
    extra, place, size = _read(archive, start, length), 0, None
    while place < len(extra):
        found = _LENGTH.match(extra, place)
        end = place + int(found[1]) if found else 0
        if not found or not found.end() < end <= len(extra) or extra[end - 1 : end] != b"\n":
            raise TarDamage(f"has an unreadable pax record at byte {start}")
        key, _, value = extra[found.end() : end - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 20:
                raise TarDamage(f"has a pax record without a size at byte {start}")
            size = int(value)
        place = end
    return name, size


_MOST_LABEL_FILE = 2**20  # bytes of a sample's label or JSON
_FIRST_CHOICES = ("jpg", "jpeg", "png", "webp")


class ShardSample(NamedTuple):
    """Files of a shard that share a name up to the first dot, and where their image lies."""

    key: str
    label: Label | BadLabel  # what the image shows, or why it cannot be used
    start: int = 0
    size: int = 0


def read_shard(path: Path, label_key: str = "label") -> list[ShardSample]:
    """Finds the samples of a shard and reads their labels, but none of the images.

    A label is the text in a sample's `.cls` or `.cls.txt`, or the value of `label_key` in its
    `.json`. A sample without image or label is kept as a bad one, as is, in one piece, all that
    lies behind a damaged place. A file name that comes again begins another sample.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"Got {path} as a shard, expected a tar file; check the path.")
    try:
        with open(path, "rb", buffering=0) as archive:
            return _read_samples(archive, path, label_key)
    except OSError as error:
        raise UserError(f"Cannot read the shard {path}: {error.strerror or error}.") from error


def _read_samples(archive: BinaryIO, path: Path, label_key: str) -> list[ShardSample]:
    odd, damage = [], ""
    samples: list[tuple[str, dict[str, Member]]] = []
    latest: dict[str, dict[str, Member]] = {}
    try:
        for member in tar_members(archive):
            key, extension = _key(member.name)
            files = latest.get(key)
            if len(member.name) > MOST_NAME:
                why = f"at byte {member.start} has a name of more than {MOST_NAME:,} letters"
                odd.append(ShardSample(f"{member.name[:40]}...", BadLabel(why)))
            elif key and (files is None or extension in files):
                latest[key] = {extension: member}
                samples.append((key, latest[key]))
            elif files is not None:
                files[extension] = member
    except TarDamage as error:
        damage = str(error)
        if not samples:
            raise UserError(
                f"{path} {damage}, expected an uncompressed tar archive; fetch it again."
            ) from None
    found = odd + [_sample(archive, key, files, label_key) for key, files in samples]
    if damage:
        why = f"is lost, because {path} {damage}; fetch it again"
        found.append(ShardSample("(the rest)", BadLabel(why)))
    return found


def _key(name: str) -> tuple[str, str]:
    """Returns what a sample is called and which of its files this is; "" if it is none."""
    folder, _, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _sample(archive: BinaryIO, key: str, files: dict[str, Member], label_key: str) -> ShardSample:
    image = next(
        (
            files[each]
            for each in (*_FIRST_CHOICES, *files)
            if each in files and f".{each}" in SUFFIXES
        ),
        None,
    )
    if image is None:
        return ShardSample(key, BadLabel(f"has {_held(files)} but no image"))
    if not image.is_file:
        label = BadLabel("has a link in place of an image, expected the file itself")
    elif image.size > MAX_BYTES:
        label = BadLabel(f"is an image of {image.size:,} bytes, expected at most {MAX_BYTES:,}")
    else:
        label = _label(archive, files, label_key)
    return ShardSample(key, label, image.start, image.size)


def _held(files: dict[str, Member]) -> str:
    """The first files of a sample, for a message."""
    held = ", ".join(f".{extension}" for extension in islice(files, 5))
    return f"the files {held}" + (f" and {len(files) - 5} others" if len(files) > 5 else "")


def _label(archive: BinaryIO, files: dict[str, Member], key: str) -> Label | BadLabel:
    extension = next((each for each in ("cls", "cls.txt", "json") if each in files), None)
    if extension is None:
        return BadLabel(f"has {_held(files)}, of which none gives a label", is_missing=True)
    member = files[extension]
    if not member.is_file or member.size > _MOST_LABEL_FILE:
        got = f"{member.size:,} bytes" if member.is_file else "a link"
        return BadLabel(f"has {got} as .{extension}, expected at most {_MOST_LABEL_FILE:,} bytes")
    archive.seek(member.start)
    content = archive.read(member.size)
    try:
        if extension != "json":
            return as_label(content.decode("utf-8-sig"))
        facts = read_json(content, "it")
    except UnicodeDecodeError:
        return BadLabel(f"has a .{extension} that is no UTF-8 text")
    except UserError:
        return BadLabel("has a .json that is none")
    label = as_label(facts.get(key) if isinstance(facts, dict) else None)
    if isinstance(label, BadLabel) and label.is_missing:
        return BadLabel(f"has a .json without a label as {key!r}", is_missing=True)
    return label


class ShardSet(RowSet):
    """The samples of several shards, one shard after the other.

    Any sample can be read at any time, so they are shuffled over all shards, and an epoch goes on
    from anywhere, as with files in folders. A shard is opened for each read: a thousand shards
    times many loading processes would be more open files than a system allows.
    """

    def __init__(self, shards: Mapping[Path, Sequence[ShardSample]], classes: Classes) -> None:
        samples = [each for shard in shards.values() for each in shard]
        super().__init__([([each.label for each in samples], None)], classes)
        self.paths = tuple(map(str, shards))
        # Arrays, because lists of a million members are copied by every forked process.
        self.shard_of = np.repeat(np.arange(len(shards)), list(map(len, shards.values())))
        self.places = np.array([each[2:] for each in samples], np.int64).reshape(-1, 2)
        # One text of all keys, because an array of texts gives each the room of the longest.
        keys = [each.key.encode(errors="surrogateescape") for each in samples]
        self.keys = b"".join(keys)
        self.key_ends = np.cumsum([0, *map(len, keys)])

    def name(self, index: int) -> str:
        start, end = self.key_ends[index : index + 2]
        key = self.keys[start:end].decode(errors="surrogateescape")
        return f"{self.paths[self.shard_of[index]]} sample {key}"

    def source(self, index: int, name: str) -> ImageSource:
        start, size = self.places[index].tolist()
        try:
            with open(self.paths[self.shard_of[index]], "rb", buffering=0) as file:
                file.seek(start)
                return file.read(size)
        except OSError as error:
            raise BadImage(f"Cannot read {name}: {error.strerror or error}.") from error


MOST_SHARDS = 100_000
"""Shards that a pattern may stand for."""

_MOST_PATTERN = 4096  # letters, as many as a path may have
_ARCHIVE = re.compile(r"\.(?:tar|tgz|tar\.[a-z0-9]+)$")
_CHOICE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
_INFO_FILE, _CLASSES_FILE = "_info.json", "classes.txt"


@dataclass(frozen=True)
class _SplitInfo:
    filenames: tuple[str, ...] = ()
    alt_label: str | None = None


@dataclass(frozen=True)
class _Info:
    """What is used of timm's `_info.json`."""

    splits: dict[str, _SplitInfo] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None

    def label_key(self, split: str) -> str:
        """Returns what the labels of our "train", "val" or "test" are called in a `.json`."""
        called = (each for each in self.splits if split in (each, SPLIT_OF_NAME.get(each)))
        return self.splits.get(next(called, ""), _SplitInfo()).alt_label or "label"


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
        split: {file: read_shard(file, info.label_key(split)) for file in members}
        for split, members in files.items()
    }
    every = {file: shard for some in shards.values() for file, shard in some.items()}
    classes = _classes(folder, info, shards.get("train", every))
    sets = {split: ShardSet(some, classes) for split, some in shards.items()}
    return labelled_splits(sets, str(path), _unused(path, every) if os.path.isdir(path) else ())


def _unused(folder: Path, used: Collection[Path]) -> tuple[str, ...]:
    """Returns a note about archives that lie beside the shards."""
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
    folders = (each for each in sorted(path.iterdir()) if each.is_dir())
    splits = {
        SPLIT_OF_NAME[each.name]: _tars(each) for each in folders if each.name in SPLIT_OF_NAME
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
        splits.setdefault(next(iter(split_words(file.stem)), ""), []).append(file)
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
            plain = read_json_file(folder / name)
            if isinstance(plain, dict) and isinstance(plain.get("splits"), dict):
                splits = {
                    split: from_others(_SplitInfo, facts, f"{split!r} in splits of {what}")
                    for split, facts in plain["splits"].items()
                }
                plain = {**plain, "splits": splits}
            return from_others(_Info, plain, what)
    return _Info()


def _classes(folder: Path, info: _Info, train: Mapping[Path, Sequence[ShardSample]]) -> Classes:
    if info.classes:
        return declared_classes(info.classes, str(folder / _INFO_FILE))
    file = folder / _CLASSES_FILE
    if os.path.isfile(file):
        try:
            text = read_small(file, MOST_TEXT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is no UTF-8 text ({error}); save it as UTF-8.") from None
        return declared_classes([line for line in text.splitlines() if line.strip()], str(file))
    labels = (each.label for shard in train.values() for each in shard)
    return classes_of(labels, str(folder))
