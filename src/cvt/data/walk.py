"""Finds the images below folders, each once, and counts everything else; expands arguments.

Training and prediction look for images by the same rules. Names are sorted; the files of a folder
come before its subfolders, and what only links lead to comes last. Hidden files and what systems
leave in folders (`Thumbs.db`, `__MACOSX`) do not count. Nothing is opened but files without a
suffix, whose first bytes tell whether they are images.
"""

import glob
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from cvt.data.formats import SUFFIXES, looks_like_image
from cvt.data.image import MAX_PIXELS, BadImage
from cvt.files import url_in

PIPE, SOCKET, DEVICE = "named pipe", "socket", "device"
BROKEN_LINK = "broken link"
LINKED_TWICE = "link to what is found without it"
NO_SUFFIX = "file without a suffix"
LOOSE = "image outside the class folders"
_PLURALS = {
    LINKED_TWICE: "links to what is found without them",
    NO_SUFFIX: "files without a suffix",
    LOOSE: "images outside the class folders",
}
_MOST_KINDS = 8
_HEAD = 4096

_LEFT_BY_SYSTEMS = (
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "#recycle"),
    *("$recycle.bin", "system volume information", "lost+found", "__pycache__"),
)
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")


class LeftOut:
    """What lies below some folders and is not used, or `unreadable`, a sentence for each."""

    def __init__(self) -> None:
        self.unreadable: list[str] = []
        self._count: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def add(self, kind: str, path: str) -> None:
        """Counts something by its kind; the first of each kind will be named."""
        self._count[kind] += 1
        self._example.setdefault(kind, path)

    def add_unreadable(self, path: str, error: OSError) -> None:
        """Notes what the system does not let us read."""
        self.unreadable.append(f"Cannot read {path}: {error.strerror or error}.")

    def sentences(self, folder: str | Path) -> list[str]:
        """Returns at most one sentence, which counts what lies unused in `folder`."""
        if not self._count:
            return []
        words = []
        kinds = sorted(self._count, key=lambda kind: (-self._count[kind], kind))
        for kind in kinds[:_MOST_KINDS]:
            count, example = self._count[kind], os.path.relpath(self._example[kind], folder)
            such_as = "such as " if count > 1 else ""
            name = kind if count == 1 or kind[0] == "." else _PLURALS.get(kind, f"{kind}s")
            words.append(f"{count:,} {name} ({such_as}{example})")
        if rest := kinds[_MOST_KINDS:]:
            words.append(f"{sum(map(self._count.__getitem__, rest)):,} of {len(rest)} other kinds")
        total = self._count.total()
        files = f"files in {folder} are" if total > 1 else f"file in {folder} is"
        return [f"{total:,} {files} not used: {', '.join(words)}."]


def images_below(folders: Sequence[str | Path], left_out: LeftOut) -> Iterator[tuple[int, str]]:
    """Yields the images below several folders, as positions of their folders and paths.

    Links are followed. A file that can be reached in several ways counts once: where it really
    lies, or else below the first link to it. A link to a folder that contains it is not followed.
    """
    return _Walk(left_out, why_not).run(folders)


def files_below(folder: str, left_out: LeftOut) -> Iterator[str]:
    """Yields all files below a folder, images or not, by the rules of `images_below`."""
    return (path for _, path in _Walk(left_out, lambda _: None).run([folder]))


def why_not(path: str) -> str | None:
    """Returns what a file counts as if it is no image: its suffix, or `NO_SUFFIX`.

    A suffix is a letter and up to nine more letters or digits behind the last dot: `.txt`, but
    not the end of `image.001` or `photo.jpg?w=1200`. A file without one is opened.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES:
        return None
    if _SUFFIX.fullmatch(suffix):
        return suffix
    with open(path, "rb") as file:
        return None if looks_like_image(file.read(_HEAD)) else NO_SUFFIX


def files_in(folder: str | Path) -> Iterator[tuple[str, str | None]]:
    """Yields the files directly in a folder, each with its kind; None for an image."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_hidden(entry.name) and not os.path.isdir(entry.path):
                is_there = os.path.exists(entry.path)  # a link's target may be closed to us, too
                special = _special(entry) if is_there else BROKEN_LINK
                yield entry.path, special or why_not(entry.path)


def is_hidden(name: str) -> bool:
    """Whether a file or folder does not count, like `.git`, `Thumbs.db` or `notes.txt~`."""
    return name.startswith(".") or name.endswith("~") or name.lower() in _LEFT_BY_SYSTEMS


class _Walk:
    """One pass through some folders: first what lies in them, then what links lead to."""

    def __init__(self, left_out: LeftOut, why_not: Callable[[str], str | None]) -> None:
        self.left_out = left_out
        self.why_not = why_not
        self.folders: set[str] = set()  # real paths of those gone through
        self.targets: set[str] = set()  # real paths of the files that links led to
        self.links: deque[tuple[int, str]] = deque()

    def run(self, folders: Iterable[str | Path]) -> Iterator[tuple[int, str]]:
        for number, folder in enumerate(map(str, folders)):
            if os.path.islink(folder):
                self.links.append((number, folder))
            else:
                yield from self._below(number, folder, os.path.realpath(folder))
        while self.links:
            yield from self._through(*self.links.popleft())

    def _below(self, number: int, folder: str, real: str) -> Iterator[tuple[int, str]]:
        waiting = [(folder, real)]
        while waiting:
            folder, real = waiting.pop()
            if real in self.folders:
                self.left_out.add(LINKED_TWICE, folder)
                continue
            self.folders.add(real)
            inner = []
            for entry in self._entries(folder):
                if entry.is_symlink():
                    self.links.append((number, entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    inner.append((entry.path, os.path.join(real, entry.name)))
                elif self._is_wanted(entry.path, os.path.join(real, entry.name), _special(entry)):
                    yield number, entry.path
            waiting += reversed(inner)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                seen = [each for each in entries if not is_hidden(each.name)]
        except OSError as error:
            self.left_out.add_unreadable(f"the folder {folder}", error)
            return []
        return sorted(seen, key=lambda each: each.name)

    def _through(self, number: int, link: str) -> Iterator[tuple[int, str]]:
        real = os.path.realpath(link)
        if Path(os.path.realpath(os.path.dirname(link))).is_relative_to(real):
            self.left_out.add(LINKED_TWICE, link)
        elif os.path.isdir(real):
            yield from self._below(number, link, real)
        elif os.path.exists(real):
            if self._is_wanted(link, real, _special(Path(real))):
                self.targets.add(real)
                yield number, link
        elif os.path.splitext(link)[1].lower() in SUFFIXES:
            yield number, link  # an image that is missed: opening it tells why
        else:
            self.left_out.add(BROKEN_LINK, link)

    def _is_wanted(self, path: str, real: str, special: str | None) -> bool:
        """Whether a file is one to use that was not met before; if not, it is left out."""
        try:
            kind = special or self.why_not(path)
            if kind is None and self._is_taken(path, real):
                kind = LINKED_TWICE
        except OSError as error:
            self.left_out.add_unreadable(path, error)
            return False
        if kind:
            self.left_out.add(kind, path)
        return not kind

    def _is_taken(self, path: str, real: str) -> bool:
        if real in self.targets:
            return True
        folder, name = os.path.split(real)
        is_link = os.path.islink(path)
        return is_link and folder in self.folders and not is_hidden(name) and not self.why_not(real)


def _special(entry: os.DirEntry[str] | Path) -> str | None:
    """Returns the kind of a file that must not be opened; None for a regular one."""
    if entry.is_file():
        return None
    kinds = {stat.S_IFIFO: PIPE, stat.S_IFSOCK: SOCKET}
    return kinds.get(stat.S_IFMT(entry.stat().st_mode), DEVICE)


MAX_STDIN = 3 * MAX_PIXELS
"""Bytes of an image on stdin: the largest image as RGB."""

MAX_NAME = 4096
"""Bytes of a file name on stdin, Linux's PATH_MAX."""

_CONTROLS = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def find_images(
    arguments: Sequence[str],
    stdin: BinaryIO | None = None,
    on_note: Callable[[str], object] = lambda note: None,
) -> Iterator[Path | bytes | BadImage]:
    """Yields the images that arguments stand for, in order, without opening the files.

    A folder stands for the images below it. A pattern with `*`, `?` or `[` stands for the files
    that it matches and for the images below folders that it matches (`**` goes through folders,
    each once); a part of it that exists as written, such as the folder `photos [2024]`, means
    itself. `-` reads stdin: the bytes of one image, or file names, one a line or ended by NUL, in
    the encoding of the file system. What stands for nothing is yielded as a `BadImage`, to be
    reported among the others.

    Args:
        on_note: Called with a sentence about what lies unused in a folder.
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
    """Whether text is a pattern, and neither the name of a file nor a URL."""
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
    """Returns the folder that a pattern begins with, and the parts that follow.

    A part means itself where a file or folder of that name exists.
    """
    start, rest = ("/" if pattern.startswith("/") else ""), pattern.strip("/").split("/")
    while len(rest) > 1:
        inside = os.path.join(start, rest[0])
        if glob.has_magic(rest[0]) and not os.path.lexists(inside):
            break
        start, rest = inside, rest[1:]
    return start, rest


def _match(pattern: str, on_note: Callable[[str], object]) -> Iterator[Path | bytes | BadImage]:
    for path in sorted(glob.glob(pattern)):
        if os.path.isdir(path):
            yield from _in_folder(path, on_note)
        elif os.path.isfile(path) or not os.path.exists(path):
            yield Path(path)
        else:
            yield BadImage(f"{path} is no file but a pipe, socket or device; leave it out.")


def _match_deep(start: str, parts: Sequence[str]) -> Iterator[Path | bytes | BadImage]:
    """Yields the files below a folder that the parts match, and the images below such folders."""
    left_out = LeftOut()
    for path in files_below(start, left_out):
        place = os.path.relpath(path, start)
        names = place.split("/")
        ends = _matched_ends(parts, names)
        if len(names) in ends or (ends and why_not(path) is None):
            yield Path(start, place)
    yield from map(BadImage, left_out.unreadable)


def _matched_ends(parts: Sequence[str], names: Sequence[str]) -> set[int]:
    """Returns the numbers of leading names that the parts match; `**` matches any number."""
    ends = {0}
    for part in parts:
        if part == "**":
            ends = set(range(min(ends, default=len(names) + 1), len(names) + 1))
        else:
            ends = {end + 1 for end in ends - {len(names)} if fnmatchcase(names[end], part)}
    return ends - {0}


def _from_stdin(stdin: BinaryIO) -> Iterator[Path | bytes | BadImage]:
    head = b""
    while len(head) < MAX_NAME and (more := stdin.read(MAX_NAME - len(head))):
        head += more
    if not head.strip():
        yield _EMPTY
    elif head.startswith(_UTF_16):
        yield BadImage("stdin is text in UTF-16, expected file names in UTF-8; convert them.")
    elif looks_like_image(head) or _CONTROLS.search(head) or not head.strip(b"\0"):
        yield _image(head, stdin)
    else:
        yield from _names(head, stdin, b"\0" if b"\0" in head else b"\n")


_EMPTY = BadImage("stdin is empty, expected an image or file names, one a line.")


def _image(head: bytes, stdin: BinaryIO) -> bytes | BadImage:
    content = head + stdin.read(MAX_STDIN + 1 - len(head))
    if len(content) > MAX_STDIN:
        return BadImage(
            f"stdin holds more than {MAX_STDIN / 1e6:.0f} MB, expected one image; name its file "
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
