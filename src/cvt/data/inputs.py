"""Which pictures a command line means: files, folders, patterns, and what comes on stdin."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from cvt.data.folder import image_suffixes
from cvt.data.formats import looks_like_image
from cvt.data.image import BadImage


def find_images(
    arguments: Sequence[str], stdin: BinaryIO | None = None
) -> Iterator[Path | bytes | BadImage]:
    """Yields the pictures that arguments stand for, in order; each file is opened later.

    A folder stands for all pictures below it, sorted, hidden ones left out; a pattern with `*`,
    `?` or `[` for what it matches (`**` goes through folders). `-` reads stdin: the bytes of
    one picture, or file names, one a line. What stands for nothing is yielded as a `BadImage`,
    to be reported among the others.
    """
    for argument in arguments:
        if argument == "-":
            yield from _from_stdin(stdin.read() if stdin else b"")
        elif os.path.isdir(argument):
            yield from _in_folder(Path(argument))
        elif not os.path.exists(argument) and glob.has_magic(argument):
            found = sorted(path for path in glob.glob(argument, recursive=True))
            if not found:
                yield BadImage(f"No file matches {argument!r}; check the pattern.")
            for path in found:
                yield from _in_folder(Path(path)) if os.path.isdir(path) else [Path(path)]
        else:
            yield Path(argument)


def _in_folder(folder: Path) -> Iterator[Path | BadImage]:
    suffixes = image_suffixes()
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        yield BadImage(f"The folder {folder} holds no images; name one that does.")
    yield from found


def _from_stdin(content: bytes) -> Iterator[Path | bytes | BadImage]:
    try:
        names = None if looks_like_image(content) else content.decode().splitlines()
    except UnicodeDecodeError:
        names = None
    if names is None or b"\0" in content[:4096]:
        yield content
    elif not any(name.strip() for name in names):
        yield BadImage("stdin is empty, expected a picture or file names, one a line.")
    else:
        yield from (Path(name) for name in names if name.strip())
