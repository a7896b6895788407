"""Files: written so that an interruption never costs what was there, and read within bounds."""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from cvt.errors import UserError

NO_TEXT = "backslashreplace"
"""What becomes of characters that an encoding lacks, such as bytes of file names that are no text:
Python's escapes for them."""


_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])")  # a drive has a single letter


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` and `~name` replaced, where there is such a user."""
    return Path(os.path.expanduser(path))


def url_in(name: str | Path) -> str | None:
    """Returns the URL that a name was written as, one of whose slashes pathlib may have taken."""
    start = _URL.match(str(name))
    return f"{start[1]}://{str(name)[start.end() :]}" if start else None


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """Yields a temporary path beside `path` that is renamed to it once the block has ended well."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Generator[IO]:
    """Opens a temporary file beside `path` that replaces it once the block has ended well."""
    encoding, errors = (None, None) if "b" in mode else ("utf-8", NO_TEXT)
    with (
        atomic_path(path) as temporary,
        open(temporary, mode, encoding=encoding, errors=errors) as file,
    ):
        yield file


@contextmanager
def atomic_files(path: str | Path, *companions: str) -> Generator[Path]:
    """Yields a path of the same name in a temporary folder beside; what is written there moves in.

    For writers that need the name itself, or write more than one file. What reads `path` finds,
    at any moment, the old files, the new ones, or no `path` at all.

    Args:
        companions: Names of files that are written, and have to be, beside the one at `path`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield folder / path.name
        for name in (*companions, path.name):
            _flush(folder / name)
        if companions:
            path.unlink(missing_ok=True)
        for name in (*companions, path.name):
            (folder / name).replace(path.with_name(name))
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_small(path: str | Path, most: int) -> bytes:
    """Returns the content of a file that cannot be large."""
    try:
        # A pipe without a writer would keep even `open` waiting.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"Got {str(path)!r}, expected a file.")
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > most:
        raise UserError(f"Got more than {most:,} bytes in {path}; it is no file of this kind.")
    return content


def new_files(folder: Path, *names: str) -> list[Path]:
    """Makes empty files that were not there before, for what must not replace anything.

    If one of the names is taken, all of them get `-2` before the suffix, and so on.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            tail = f"-{number}" if number > 1 else ""
            paths = [folder / f"{Path(name).stem}{tail}{Path(name).suffix}" for name in names]
            if _made(paths):
                return paths
    except OSError as error:
        raise cannot_write(folder, error) from error
    raise AssertionError("count() does not end")


def _made(paths: list[Path]) -> bool:
    """Makes all of these files, or none if one of them is there."""
    if any(path.exists() for path in paths):
        return False
    made = []
    try:
        for path in paths:
            path.open("x").close()
            made.append(path)
    except FileExistsError:  # another process was faster
        for path in made:
            path.unlink()
        return False
    return True


class OutputLost(Exception):
    """What was asked for cannot be written, because the disk is full or its reader has gone.

    Args:
        error: The system's.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def quiet(stream: Any) -> IO[str]:
    """Returns a stream for what is said on the way: if it is full or closed, nobody hears of it.

    Work that takes hours is not to end because a log's disk is full or a reader has gone.

    Args:
        stream: Where text goes, such as `sys.stdout`; characters that its encoding lacks are
            escaped. None says nothing at all.
    """
    return cast("IO[str]", _Watched(stream, is_needed=False))


def needed(stream: Any) -> IO[str]:
    """Returns a stream for what was asked for: if it is full or closed, `OutputLost` is raised."""
    return cast("IO[str]", _Watched(stream, is_needed=True))


class _Watched:
    def __init__(self, stream: Any, is_needed: bool) -> None:
        self._stream = stream
        self._is_needed = is_needed
        self._is_lost = stream is None

    def write(self, text: str) -> int:
        if not self._is_lost:
            try:
                self._stream.write(text.encode(self.encoding, NO_TEXT).decode(self.encoding))
            except (OSError, OutputLost) as error:
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if not self._is_lost:
            try:
                self._stream.flush()
            except (OSError, OutputLost) as error:
                self._lose(error)

    def isatty(self) -> bool:
        return not self._is_lost and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError | OutputLost) -> None:
        self._is_lost = True
        silence(self._stream)
        if self._is_needed:
            raise error if isinstance(error, OutputLost) else OutputLost(error)


def silence(stream: Any) -> None:
    """Lets a stream that cannot be written end in nothing, whatever it still holds included."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def remove_left_behind(folder: Path) -> None:
    """Removes the temporary files of writers that were killed; call it when there is no other."""
    for temporary in folder.glob(".*.tmp"):
        if temporary.is_file():
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cannot_write(path: Path, error: OSError) -> UserError:
    """Returns the sentence for a file that could not be written; a full disk is said to be one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {path} was not written; free some space first.")
    return UserError(f"Cannot write {path}: {error.strerror or error}.")


def file_inside(folder: str | Path, name: str) -> Path:
    """Returns the file that a stranger's text names inside a folder.

    Links may lead about inside the folder only; in the cache of the Hugging Face hub, where every
    file is a link to its content, inside that data set or model.
    """
    inside, path = Path(folder).resolve(), Path(folder) / name
    if inside.parent.name == "snapshots" and "--" in inside.parents[1].name:
        inside = inside.parents[1]
    try:
        found = path.resolve()
        is_other = found.exists() and not found.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a circle
        raise UserError(f"Got the file name {name!r}, which cannot be; correct it.") from None
    if ".." in Path(name).parts or not found.is_relative_to(inside):
        raise UserError(
            f"Got the file name {name!r}, which leads out of {folder}, expected one inside; only "
            "files beside those that name them are opened."
        )
    if is_other:
        raise UserError(f"Got the name {name!r} in {folder}, which is no file; correct it.")
    return path
