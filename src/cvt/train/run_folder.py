"""The folder of a run: what it is called, and the small files in it."""

import csv
import errno
import io
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from shlex import quote
from typing import Any

from cvt.errors import UserError
from cvt.files import atomic_write, cannot_write, expanded, read_small
from cvt.plain import MOST_TEXT, from_plain
from cvt.train.config import TrainConfig
from cvt.train.progress import EpochRow

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
RESULT_FILE = "result.json"
CARD_FILE = "README.md"
CHECKPOINTS_FOLDER = "checkpoints"
EVENTS_FOLDER = "tensorboard"
_LOCK_FILE = ".lock"
_MOST = 1e12
_LONGEST_DATA = 50  # letters, each of up to four bytes of the 255 that a name may have
_HELD = (errno.EACCES, errno.EAGAIN)


def make_run_folder(config: TrainConfig) -> Path:
    """Makes an empty folder: `config.out`, or the next free `runs/DATA-MODEL-NUMBER`.

    Raises:
        UserError: `config.out` already holds something, or nothing can be written there.
    """
    if config.out is None:
        return _next_free(config)
    run = expanded(config.out)
    try:
        run.mkdir(parents=True, exist_ok=True)
        # What is hidden was left by a session that was killed before it wrote anything of worth.
        is_taken = any(not each.name.startswith(".") for each in run.iterdir())
    except OSError as error:
        raise UserError(f"Cannot make the folder {run}: {error.strerror}.") from error
    if is_taken:
        raise UserError(
            f"The folder {run} is not empty, and a run never overwrites; go on with it by "
            f"`cvt train --resume {quote(str(run))}`, or give another --out."
        )
    return run


def write_metrics(run: Path, history: list[EpochRow]) -> None:
    """Writes `metrics.csv`, a line an epoch, whole each time: it never runs ahead of the state."""
    with atomic_write(run / METRICS_FILE, "w") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(EpochRow)], lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({name: _short(value) for name, value in asdict(row).items()})


def read_metrics(run: Path) -> list[EpochRow]:
    """Reads `metrics.csv` back; a run that has not finished an epoch yet has no lines.

    Columns that an earlier version did not write come as nan.

    Raises:
        UserError: The file cannot be read, or it is not a table of epochs.
    """
    path = run / METRICS_FILE
    if not path.exists():
        return []
    names = [each.name for each in fields(EpochRow)]
    text = read_small(path, MOST_TEXT)
    try:
        lines = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
        rows = [{name: float(line.get(name, "nan")) for name in names} for line in lines]
        return [_row(row, str(path)) for row in rows]
    except (ValueError, TypeError, OverflowError, csv.Error) as error:
        raise UserError(
            f"{path} is not a table of epochs ({error}); resume the run to have it written anew."
        ) from None


def _row(figures: dict[str, Any], what: str) -> EpochRow:
    """A run's line, its figures within what clocks and losses can say."""
    row = from_plain(EpochRow, {**figures, "epoch": int(figures["epoch"])}, what)
    for name in ("seconds", "images_per_s", "memory_mb", "data_wait"):
        if abs(getattr(row, name)) > _MOST:  # of what is not known, nan, that is false
            raise ValueError(f"{name} of epoch {row.epoch} is {getattr(row, name):g}")
    return row


def is_run(run: Path) -> bool:
    """Whether a folder is one in which a training was begun at least."""
    return any((run / name).exists() for name in (CONFIG_FILE, CHECKPOINTS_FOLDER))


@contextmanager
def held(run: Path) -> Generator[None]:
    """Marks a run as in training inside the block; the mark goes with the process, however it ends.

    A file system without locks marks nothing.

    Raises:
        UserError: Another process is training it, or what is written there would come to lie
            elsewhere.
    """
    import fcntl  # not on Windows

    path = run / _LOCK_FILE
    for name in (CHECKPOINTS_FOLDER, EVENTS_FOLDER, _LOCK_FILE):
        if (run / name).is_symlink():
            raise UserError(
                f"Got a link in the place of {run / name}, and a run writes and deletes in its own "
                "folder only; put there what the link leads to."
            )
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "rb")  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise UserError(
                    f"The run {run} is being trained by another process; wait for it, or stop it."
                ) from None
        yield


def is_held(run: Path) -> bool:
    """Whether another process is training a run at this moment."""
    import fcntl

    try:
        file = open(os.open(run / _LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
    except OSError:  # never trained in by this version, or not ours to read
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _HELD
    return False


def _next_free(config: TrainConfig) -> Path:
    data = Path(config.data).resolve().stem[:_LONGEST_DATA] if config.data else ""
    # What begins with a dot is hidden, from `cvt runs` too.
    name = re.sub(r"[^\w.-]+", "-", f"{data.lstrip('.') or 'data'}-{config.model}")
    for number in count(1):
        run = Path("runs") / f"{name}-{number}"
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"Cannot make the folder {run}: {error.strerror}; give another with --out."
            ) from error
        return run
    raise AssertionError("count() does not end")


def _short(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
