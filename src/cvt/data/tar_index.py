"""Where the files of a tar archive lie, without reading what is in them.

The standard library's `tarfile` is not used for it: up to Python 3.11.13, 3.12.11 and 3.13.5 a
negative size sends it round in circles (CVE-2025-8194), and it takes 22 seconds more for a million
files. Every step here goes forward, whatever the headers say.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MOST_NAME = 4096
"""Bytes of a file's name that are read, as many as a path may have; longer ones are cut there."""

_BLOCK = 512
_MOST_EXTENDED = 2**20  # bytes of pax records before one file; Linux makes some 70,000 at most
_MOST_PADDING = 2**20  # zeros behind the last file; tar writes ten thousand
_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL = b"L", b"K", b"x", b"g"
_EXTRAS = (_LONG_NAME, _LONG_LINK, _EXTENDED, _EXTENDED_GLOBAL)
_FILES, _FOLDER, _SPARSE = (b"0", b"\0", b"7"), b"5", b"S"
_LENGTH = re.compile(rb"([1-9][0-9]{0,6}) ")


class Member(NamedTuple):
    """A file in an archive: its name, and where its content lies, in bytes.

    Args:
        is_file: Whether it has a content of its own; a link or a device has none.
    """

    name: str
    start: int
    size: int
    is_file: bool = True


class TarDamage(Exception):
    """An archive is cut short or no archive from some byte on; the message says which."""


def tar_members(archive: BinaryIO) -> Iterator[Member]:
    """Yields what an uncompressed archive holds but for folders, in its order.

    Understood are POSIX (ustar, pax) and GNU archives, and several that were joined to one file.
    Bytes of names that are no UTF-8 come out as Python's surrogates for them.

    Args:
        archive: It can seek; headers are all that is read.

    Raises:
        TarDamage: Behind the last whole member.
        OSError: It cannot be read.
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
            own_size = size  # a pax record holds what has no room in the header
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
    """Returns where the first block begins that is not all zeros: the end, or another archive."""
    zeros = _read(archive, place, min(_MOST_PADDING, length - place))
    rest = zeros.lstrip(b"\0")
    if not rest and place + len(zeros) < length:
        raise TarDamage(f"has more than {_MOST_PADDING} zeros at byte {place}")
    return place + (len(zeros) - len(rest)) // _BLOCK * _BLOCK if rest else length


def _read_header(header: bytes, place: int) -> tuple[bytes, str, int]:
    """Returns kind, name and size; the checksum tells a header from anything else."""
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
            size = _pax_size(value, start)
        place = end
    return name, size


def _pax_size(value: bytes, start: int) -> int:
    if not value.isdigit() or len(value) > 20:
        raise TarDamage(f"has a pax record without a size at byte {start}")
    return int(value)
