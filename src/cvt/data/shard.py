"""One webdataset shard: a tar archive whose files with equal names make up a sample."""

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cvt.data.folder import image_suffixes
from cvt.data.tar_index import Member, TarDamage, open_tar, tar_members
from cvt.errors import UserError

_FIRST_CHOICES = ("jpg", "jpeg", "png", "webp")


@dataclass(kw_only=True)
class Shard:
    """What a shard holds, sample by sample; N of them.

    Args:
        keys: What the files of a sample are called, up to the first dot.
        places: Where in the file its picture lies, and how many bytes it has.
        labels: A number or a class name, or None for a sample that has a place in `bad`.
        bad: A sentence about each sample that cannot be used.
    """

    path: Path
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int | str | None] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """What messages call a sample."""
        return f"{self.path} sample {self.keys[number]}"

    def drop(self, number: int, why: str) -> None:
        """Notes that a sample cannot be used."""
        self.labels[number] = None
        self.bad[number] = f"{self.name(number)} {why}"


def read_shard(path: Path, label_key: str = "label") -> Shard:
    """Finds the samples of a shard and reads their labels, but none of the pictures.

    A label is the number or name in the file `.cls` or `.cls.txt` of a sample, or the value of
    `label_key` in its `.json`. A sample without picture or label is kept as a bad one, and so is
    what lies behind a damaged place, as a single one.

    Raises:
        UserError: The file cannot be read or is no tar archive at all.
    """
    samples: dict[str, dict[str, Member]] = {}
    damage = ""
    try:
        content = open_tar(path)
    except OSError as error:
        raise UserError(f"Cannot read the shard {path}: {error.strerror or error}.") from error
    try:
        for member in tar_members(content):
            folder, _, file = member.name.rpartition("/")
            stem, dot, extension = file.partition(".")
            if stem and dot:
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, {})[extension.lower()] = member
    except TarDamage as error:
        damage = str(error)
        if not samples:
            raise UserError(
                f"{path} {damage}, expected an uncompressed tar archive; fetch it again."
            ) from None
    shard = Shard(path=path)
    suffixes = image_suffixes()
    for key, files in samples.items():
        _add(shard, key, files, _picture(files, suffixes), _label(content, files, label_key))
    if damage:
        _add(shard, "(the rest)", {}, None, None)
        shard.bad[len(shard.keys) - 1] = f"{path} {damage}: what follows is lost; fetch it again."
    return shard


def _add(
    shard: Shard,
    key: str,
    files: dict[str, Member],
    picture: Member | None,
    label: int | str | None,
) -> None:
    shard.keys.append(key)
    shard.places.append((picture.start, picture.size) if picture else (0, 0))
    shard.labels.append(label)
    number = len(shard.keys) - 1
    held = ", ".join(f".{extension}" for extension in files)
    if picture is None:
        shard.drop(number, f"has the files {held} but no picture.")
    elif label is None:
        shard.drop(number, f"has the files {held}, of which none gives a label.")


def _picture(files: dict[str, Member], suffixes: Sequence[str] | frozenset[str]) -> Member | None:
    for extension in (*_FIRST_CHOICES, *files):
        if extension in files and f".{extension}" in suffixes:
            return files[extension]
    return None


def _label(content: mmap.mmap | bytes, files: dict[str, Member], key: str) -> int | str | None:
    for extension in ("cls", "cls.txt"):
        if extension in files:
            return _number_or_name(_read(content, files[extension]).decode(errors="replace"))
    if "json" not in files:
        return None
    try:
        facts = json.loads(_read(content, files["json"]))
    except ValueError:
        return None
    label = facts.get(key) if isinstance(facts, dict) else None
    return _number_or_name(str(label)) if isinstance(label, int | str) else None


def _read(content: mmap.mmap | bytes, member: Member) -> bytes:
    return content[member.start : member.start + member.size]


def _number_or_name(text: str) -> int | str | None:
    text = text.strip()
    return int(text) if text.isdecimal() else text or None
