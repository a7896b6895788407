"""Which pictures a command line means: files, folders, patterns, and what comes on stdin."""

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from cvt.data.formats import looks_like_image
from cvt.data.image import MAX_PIXELS, BadImage
from cvt.data.walk import LeftOut, files_below, images_below, why_not
from cvt.files import url_in

MAX_STDIN = 3 * MAX_PIXELS
"""Bytes of a picture on stdin: as many as the largest picture has as RGB."""

MAX_NAME = 4096
"""Bytes of a file name on stdin, as in Linux's PATH_MAX."""

_CONTROLS = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def find_images(
    arguments: Sequence[str],
    stdin: BinaryIO | None = None,
    on_note: Callable[[str], object] = lambda note: None,
) -> Iterator[Path | bytes | BadImage]:
    """Yields the pictures that arguments stand for, in order; each file is opened later.

    A folder stands for the images below it, as `cvt.data.walk` finds them. A pattern with `*`, `?`
    or `[` stands for the files that it matches and for the images below folders that it matches
    (`**` goes through folders, each once); a part of it that exists as it is written, such as the
    folder `photos [2024]`, means itself. `-` reads stdin: the bytes of one picture, or file names,
    one a line or ended by NUL, in whatever encoding the file system has. What stands for nothing
    is yielded as a `BadImage`, to be reported among the others.

    Args:
        on_note: Called with a sentence about what a folder holds and is not used.
    """
    for argument in arguments:
        if argument == "-":
            yield from _from_stdin(stdin) if stdin else [_EMPTY]
        elif os.path.isdir(argument):
            yield from _in_folder(argument, on_note)
        elif is_pattern(argument):
            yield from _matching(argument, on_note)
        else:
            yield Path(argument)


def is_pattern(text: str) -> bool:
    """Whether text stands for the files that it matches: no file's own name, and no URL."""
    return glob.has_magic(text) and not os.path.lexists(text) and url_in(text) is None


def _in_folder(folder: str, on_note: Callable[[str], object]) -> Iterator[Path | bytes | BadImage]:
    left_out, count = LeftOut(), 0
    for _, path in images_below([folder], left_out):
        yield Path(path)
        count += 1
    yield from map(BadImage, left_out.unreadable)
    notes = left_out.sentences(folder)
    if count:
        for note in notes:
            on_note(note)
    elif not left_out.unreadable:
        told = " ".join([f"The folder {folder} holds no images; name one that does.", *notes])
        yield BadImage(told)


def _matching(pattern: str, on_note: Callable[[str], object]) -> Iterator[Path | bytes | BadImage]:
    start, rest = _taken_literally(pattern)
    if "**" in rest:
        found = _match_deep(start or ".", rest)
    else:
        found = _match(os.path.join(glob.escape(start), *rest), on_note)
    first = next(found, BadImage(f"No file matches {pattern!r}; check the pattern."))
    yield from chain([first], found)


def _taken_literally(pattern: str) -> tuple[str, list[str]]:
    """Returns the folder that a pattern begins with, and the parts of the pattern that follow.

    A part means itself if a file or folder of that name is there.
    """
    start, rest = ("/" if pattern.startswith("/") else ""), pattern.strip("/").split("/")
    while len(rest) > 1 and (not glob.has_magic(rest[0]) or _is_there(start, rest[0])):
        start = os.path.join(start, rest.pop(0))
    return start, rest


def _is_there(folder: str, name: str) -> bool:
    return os.path.lexists(os.path.join(folder, name))


def _match(pattern: str, on_note: Callable[[str], object]) -> Iterator[Path | bytes | BadImage]:
    for path in sorted(glob.glob(pattern)):
        if os.path.isdir(path):
            yield from _in_folder(path, on_note)
        elif os.path.isfile(path) or not os.path.exists(path):
            yield Path(path)
        else:
            yield BadImage(f"{path} is no file but a pipe, socket or device; leave it out.")


def _match_deep(start: str, parts: Sequence[str]) -> Iterator[Path | bytes | BadImage]:
    """Yields the files below a folder that parts match, and the images below matched folders."""
    left_out = LeftOut()
    for path in files_below(start, left_out):
        place = os.path.relpath(path, start)
        names = place.split("/")
        ends = _matched_ends(parts, names)
        if len(names) in ends or (ends and why_not(path) is None):
            yield Path(start, place)
    yield from map(BadImage, left_out.unreadable)


def _matched_ends(parts: Sequence[str], names: Sequence[str]) -> set[int]:
    """Returns how many of the names, from the first on, the parts match; `**` matches any."""

    def with_passed(places: set[int]) -> set[int]:
        """Adds the places behind each `**`, which may match no name at all."""
        for place, part in enumerate(parts):
            if part == "**" and place in places:
                places.add(place + 1)
        return places

    places, ends = with_passed({0}), set()
    for count, name in enumerate(names, 1):
        deep = {place for place in places if parts[place : place + 1] == ["**"]}
        places = with_passed(
            deep
            | {
                place + 1
                for place in places - deep
                if place < len(parts) and fnmatchcase(name, parts[place])
            }
        )
        if len(parts) in places:
            ends.add(count)
    return ends


def _from_stdin(stdin: BinaryIO) -> Iterator[Path | bytes | BadImage]:
    head = b""
    while len(head) < MAX_NAME and (more := stdin.read(MAX_NAME - len(head))):
        head += more
    if not head.strip():
        yield _EMPTY
    elif head.startswith(_UTF_16):
        yield BadImage("stdin is text in UTF-16, expected file names in UTF-8; convert them.")
    elif looks_like_image(head) or _CONTROLS.search(head) or not head.strip(b"\0"):
        yield _picture(head, stdin)
    else:
        yield from _names(head, stdin, b"\0" if b"\0" in head else b"\n")


_EMPTY = BadImage("stdin is empty, expected a picture or file names, one a line.")


def _picture(head: bytes, stdin: BinaryIO) -> bytes | BadImage:
    content = head + stdin.read(MAX_STDIN + 1 - len(head))
    if len(content) > MAX_STDIN:
        return BadImage(
            f"stdin holds more than {MAX_STDIN / 1e6:.0f} MB, expected one picture; name its file "
            "instead."
        )
    return content


def _names(head: bytes, stdin: BinaryIO, end: bytes) -> Iterator[Path | BadImage]:
    """Yields the files that names stand for, as they come."""
    rest = head.removeprefix(b"\xef\xbb\xbf")
    for more in chain(iter(lambda: stdin.readline(MAX_NAME), b""), [end]):
        *lines, rest = (rest + more).split(end)
        for line in lines:
            name = line.rstrip(b"\r") if end == b"\n" else line
            if name.strip():
                yield Path(os.fsdecode(name))
        if len(rest) > MAX_NAME:
            yield BadImage(
                f"stdin holds a name of more than {MAX_NAME} bytes, expected file names, one a "
                "line; what follows was not read."
            )
            return
