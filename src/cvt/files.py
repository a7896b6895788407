"""Writing files so that an interruption, or a full disk, never costs what was there before."""

import errno
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cvt.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """Yields a temporary path beside `path` that is renamed to it once the block has ended well.

    Raises:
        UserError: The disk is full or the place is not writable; the file that was there is kept.
    """
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
    """Opens a temporary file beside `path` that replaces it once the block has ended well.

    Raises:
        UserError: The disk is full or the place is not writable; the file that was there is kept.
    """
    encoding = None if "b" in mode else "utf-8"
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file


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
