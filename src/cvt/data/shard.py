"""One webdataset shard: a tar archive whose files with equal names make up a sample."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cvt.data.folder import image_suffixes
from cvt.data.image_set import MOST_BYTES
from cvt.data.labels import BadLabel, Label, as_label
from cvt.data.tar_index import MOST_NAME, Member, TarDamage, tar_members
from cvt.errors import UserError
from cvt.plain import read_json

_MOST_LABEL_FILE = 2**20  # bytes of a sample's label or JSON
_FIRST_CHOICES = ("jpg", "jpeg", "png", "webp")


@dataclass(kw_only=True)
class Shard:
    """What a shard holds, sample by sample; N of them.

    Args:
        keys: What the files of a sample are called, up to the first dot.
        places: Where in the file its image lies, and how many bytes it has.
        labels: What the sample shows, or why it cannot be used.
    """

    path: Path
    keys: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    labels: list[Label | BadLabel] = field(default_factory=list)

    def add(self, key: str, label: Label | BadLabel, place: tuple[int, int] = (0, 0)) -> None:
        """Appends a sample."""
        self.keys.append(key)
        self.labels.append(label)
        self.places.append(place)


def read_shard(path: Path, label_key: str = "label") -> Shard:
    """Finds the samples of a shard and reads their labels, but none of the images.

    A label is the text in the file `.cls` or `.cls.txt` of a sample, or the value of `label_key`
    in its `.json`. A sample without image or label is kept as a bad one, and so is what lies
    behind a damaged place, as a single one. Where a file's name comes a second time, another
    sample begins.

    Raises:
        UserError: The file cannot be read or is no tar archive at all.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"Got {path} as a shard, expected a tar file; check the path.")
    try:
        with open(path, "rb", buffering=0) as archive:
            return _read_samples(archive, path, label_key)
    except OSError as error:
        raise UserError(f"Cannot read the shard {path}: {error.strerror or error}.") from error


def _read_samples(archive: BinaryIO, path: Path, label_key: str) -> Shard:
    shard, damage = Shard(path=path), ""
    samples: list[tuple[str, dict[str, Member]]] = []
    latest: dict[str, dict[str, Member]] = {}
    try:
        for member in tar_members(archive):
            key, extension = _key(member.name)
            files = latest.get(key)
            if len(member.name) > MOST_NAME:
                why = f"at byte {member.start} has a name of more than {MOST_NAME:,} letters"
                shard.add(f"{member.name[:40]}...", BadLabel(why))
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
    suffixes = image_suffixes()
    for key, files in samples:
        image = _image(files, suffixes)
        label = _usable(files, image) or _label(archive, files, label_key)
        shard.add(key, label, (image.start, image.size) if image else (0, 0))
    if damage:
        shard.add("(the rest)", BadLabel(f"is lost, because {path} {damage}; fetch it again"))
    return shard


def _key(name: str) -> tuple[str, str]:
    """Returns what a sample is called and which of its files this is; nothing if it is none."""
    folder, _, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _usable(files: dict[str, Member], image: Member | None) -> BadLabel | None:
    """Returns why a sample cannot be used whatever its label is."""
    if image is None:
        return BadLabel(f"has {_held(files)} but no image")
    if not image.is_file:
        return BadLabel("has a link in place of an image, expected the file itself")
    if image.size > MOST_BYTES:
        return BadLabel(f"is an image of {image.size:,} bytes, expected at most {MOST_BYTES:,}")
    return None


def _held(files: dict[str, Member]) -> str:
    """The first files of a sample, for a message."""
    held = ", ".join(f".{extension}" for extension in islice(files, 5))
    return f"the files {held}" + (f" and {len(files) - 5} others" if len(files) > 5 else "")


def _image(files: dict[str, Member], suffixes: Sequence[str] | frozenset[str]) -> Member | None:
    for extension in (*_FIRST_CHOICES, *files):
        if extension in files and f".{extension}" in suffixes:
            return files[extension]
    return None


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
