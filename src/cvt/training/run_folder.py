"""The folder of a run: what it is called, and the small files in it."""

import errno
import math
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from shlex import quote
from typing import IO, Annotated, Any, Literal

from cvt.errors import UserError
from cvt.files import cannot_write, expanded
from cvt.plain import NOT_FINITE, Range, Rate
from cvt.tables import read_csv, write_csv
from cvt.training.config import TrainConfig

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"
BATCH_FILE = "batch.png"
MISTAKES_FILE, MISTAKES_TABLE = "mistakes.png", "mistakes.csv"
CONFUSION_FILE = "confusion.png"
RESULT_FILE = "result.json"
CARD_FILE = "README.md"
CHECKPOINTS_FOLDER = "checkpoints"
EVENTS_FOLDER = "tensorboard"
FEATURES_FOLDER = "features"
_LOCK_FILE = ".lock"
_LONGEST_DATA = 50  # letters, each of up to four bytes of the 255 that a name may have


def make_run_folder(config: TrainConfig) -> Path:
    """Makes an empty folder: `config.out`, or the next free `runs/DATA-MODEL-NUMBER`."""
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


def is_run(run: Path) -> bool:
    """Whether a folder is one in which a training was begun at least."""
    return any((run / name).exists() for name in (CONFIG_FILE, CHECKPOINTS_FOLDER))


@contextmanager
def held(run: Path) -> Generator[None]:
    """Marks a run as in training inside the block; the mark goes with the process, however it ends.

    A file system without locks marks nothing.
    """
    import fcntl  # not on Windows

    path = run / _LOCK_FILE
    for name in (CHECKPOINTS_FOLDER, EVENTS_FOLDER, FEATURES_FOLDER, _LOCK_FILE):
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
        if _is_locked(file, fcntl.LOCK_EX):
            raise UserError(
                f"The run {run} is being trained by another process; wait for it, or stop it."
            )
        yield


def is_held(run: Path) -> bool:
    """Whether another process is training a run at this moment."""
    import fcntl

    try:
        file = open(os.open(run / _LOCK_FILE, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115
    except OSError:  # never trained in by this version, or not ours to read
        return False
    with file:
        return _is_locked(file, fcntl.LOCK_SH)


def _is_locked(file: IO[bytes], mode: int) -> bool:
    """Whether another process has a lock; otherwise it is ours from now on."""
    import fcntl

    try:
        fcntl.lockf(file, mode | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


# --- How far a run has come: everything but the weights that going on exactly needs.

_Count = Annotated[int, Range(0, 2**53)]
_Figure = Annotated[float, NOT_FINITE]
_Amount = Annotated[float, Range(0)]
_MOST = 1e12  # what clocks and counters can say
_MOST_PIECES = 10_000

Ended = Literal["", "epochs", "updates", "minutes", "patience"]
"""What a run's length came from in the end; nothing while it goes on."""


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A line of `metrics.csv`: losses in nats, top-1 in percent, lr of the epoch's last update.

    `data_wait` is the share of the training time in which there was no batch to work on, 0 to 1;
    `memory_mb` the most memory in use so far, on the GPU if that is where the model is; `ended`
    what the run ended by, if it did. What an earlier version did not write down is nan. Where not
    every epoch is validated, a line has those since the one before in it.
    """

    epoch: Annotated[int, Range(1, 2**53)]
    train_loss: _Figure = math.nan
    val_loss: _Figure
    val_top1: _Figure
    lr: _Figure = math.nan
    images_per_s: _Figure = math.nan
    seconds: _Figure = math.nan
    data_wait: _Figure = math.nan
    memory_mb: _Figure = math.nan
    ended: Ended = ""

    def __post_init__(self) -> None:
        for name in ("seconds", "images_per_s", "memory_mb", "data_wait"):
            value = getattr(self, name)
            if abs(value) > _MOST:  # of what is not known, nan, that is false
                raise UserError(
                    f"Got {value:g} for {name} of epoch {self.epoch}, expected at most {_MOST:g}."
                )


def best_epoch(history: Sequence[EpochRow]) -> EpochRow:
    """Returns the epoch whose weights are kept: highest top-1, then least loss, then the first."""
    return max(history, key=lambda row: (row.val_top1, -row.val_loss))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the parts of a run take, in seconds.

    Args:
        update: One update, waiting for images included.
        epoch: From the beginning of an epoch until its first images are there.
        validation: A validation, with all that is written after it.
        test: The test at the end; 0 where there is none.
    """

    update: _Amount
    epoch: _Amount = 0.0
    validation: _Amount = 0.0
    test: _Amount = 0.0


@dataclass(frozen=True, kw_only=True)
class Piece:
    """From update `start` on, the share of the schedule that is left is spread evenly to `end`.

    Args:
        done: The share of the schedule that lies before it.
    """

    start: _Count
    done: Rate
    end: _Count


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """How a run that has to end in time spends it; a piece more for each time it was changed.

    Args:
        pieces: Each begins where the one before ends now, in updates as in the schedule.
        validate_every: Epochs from one validation to the next.
    """

    pieces: tuple[Piece, ...]
    validate_every: Annotated[int, Range(1, 2**53)] = 1

    def __post_init__(self) -> None:
        starts = [each.start for each in self.pieces]
        is_sound = (
            0 < len(starts) < _MOST_PIECES
            and (starts[0], self.pieces[0].done) == (0, 0)
            and all(each.start < each.end for each in self.pieces[:-1])
            and starts == sorted(set(starts))
            and self.pieces[-1].end >= max(starts[-1], 1)
        )
        if not is_sound:
            raise UserError(f"Got {len(starts)} pieces of a plan that do not go together.")

    @property
    def total(self) -> int:
        """Updates of the whole run, as it is planned now."""
        return self.pieces[-1].end

    @property
    def length(self) -> int:
        """Updates that the schedule was made for: those that were planned first."""
        return self.pieces[0].end

    def position(self, update: int) -> float:
        """Returns where in the schedule an update is, from 0 to `length`."""
        piece = next(each for each in reversed(self.pieces) if each.start <= update)
        ahead, behind = piece.end - update, update - piece.start
        return self.length * (piece.done * ahead + behind) / max(piece.end - piece.start, 1)

    def changed(self, update: int, end: int) -> "Timetable":
        """Returns the plan with another end, from this update on; the schedule does not jump."""
        done = min(self.position(update) / self.length, 1.0)
        pieces = (*self.pieces, Piece(start=update, done=done, end=end))
        return replace(self, pieces=pieces)

    def is_validated(self, epoch: int, updates_per_epoch: int) -> bool:
        """Whether a finished epoch, counted from 1, is: not if the run is about to end anyway."""
        left = self.total - epoch * updates_per_epoch
        is_due = epoch % self.validate_every == 0
        return left <= 0 or (is_due and 2 * left >= self.validate_every * updates_per_epoch)


@dataclass(kw_only=True)
class Progress:
    """The position in a run, and what has been summed up on the way there.

    Args:
        epoch: The epoch in hand, from 0.
        batch: Batches of it that are done.
        loss_sum: Sum over its images of their training loss.
        num_images: Images of it that were trained on.
        seconds: Time its updates took, waiting for batches included.
        wait_seconds: The part of that time in which there was no batch to work on.
        bad: A sentence for each image that could not be read so far.
        history: The validated epochs.
        best: The epoch whose weights are the best so far.
        plan: How a run that has to end within minutes spends them; of others None.
        pace: How long its parts take, where that was looked at.
        spent: Seconds that all sessions have taken up to here.
        head: What the head is that the run started from, if it was fitted.
    """

    epoch: _Count = 0
    batch: _Count = 0
    loss_sum: _Figure = 0.0
    num_images: _Count = 0
    seconds: _Amount = 0.0
    wait_seconds: _Amount = 0.0
    bad: list[str] = field(default_factory=list)
    history: list[EpochRow] = field(default_factory=list)
    best: EpochRow | None = None
    plan: Timetable | None = None
    pace: Pace | None = None
    spent: _Amount = 0.0
    head: str = ""

    def __post_init__(self) -> None:
        numbers = [row.epoch for row in self.history]
        is_best_known = self.best in self.history if numbers else self.best is None
        if self.plan is None:
            is_complete = numbers == list(range(1, self.epoch + 1))
        else:
            is_complete = numbers == sorted(set(numbers)) and max(numbers, default=0) <= self.epoch
        if not is_complete or not is_best_known:
            raise UserError(f"Got {len(numbers)} epochs of a run that do not go together.")

    def count(self, loss: float, num_images: int, seconds: float, waited: float = 0.0) -> None:
        """Adds an update's images with their mean loss, and its time, `waited` a part of it."""
        self.loss_sum += loss * num_images
        self.num_images += num_images
        self.seconds += seconds
        self.wait_seconds += waited

    def note_bad(self, sentences: tuple[str, ...]) -> list[str]:
        """Remembers images that could not be read; returns those not known before."""
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self.bad]
        self.bad += new
        return new

    def finish_epoch(
        self,
        val_loss: float,
        val_top1: float,
        lr: float,
        memory_mb: float,
        ended: Ended = "",
        patience: int | None = None,
    ) -> EpochRow:
        """Adds the epoch's row to the history and moves on to the start of the next one.

        Args:
            ended: What the run ends by after this epoch, if it does.
            patience: After how many epochs without a better one it ends too.
        """
        row = EpochRow(
            epoch=self.epoch + 1,
            train_loss=self.train_loss,
            val_loss=val_loss,
            val_top1=val_top1,
            lr=lr,
            images_per_s=self.images_per_s,
            seconds=self.seconds,
            data_wait=self.data_wait,
            memory_mb=memory_mb,
        )
        before = self.best
        if before is not None and best_epoch([before, row]) is before:
            is_out = patience is not None and row.epoch - before.epoch >= patience
            row = replace(row, ended=ended or ("patience" if is_out else ""))
        else:
            self.best = row = replace(row, ended=ended)
        self.history.append(row)
        self.num_images = 0
        self.loss_sum = self.seconds = self.wait_seconds = 0.0
        self.next_epoch()
        return row

    def next_epoch(self) -> None:
        """Moves on to the start of the next one, not having validated this one."""
        self.epoch += 1
        self.batch = 0

    @property
    def ended(self) -> Ended:
        """What the run ended by, once it has."""
        return self.history[-1].ended if self.history else ""

    @property
    def train_loss(self) -> float:
        """Mean training loss of the epoch in hand."""
        return self.loss_sum / max(self.num_images, 1)

    @property
    def images_per_s(self) -> float:
        """Images per second that the epoch in hand was trained on."""
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the epoch in hand in which there was no batch to work on, 0 to 1."""
        return min(self.wait_seconds / self.seconds, 1.0) if self.seconds else 0.0


def write_metrics(run: Path, history: list[EpochRow]) -> None:
    """Writes `metrics.csv`, a line an epoch, whole each time: it never runs ahead of the state."""
    columns = [each.name for each in fields(EpochRow)]
    write_csv(run / METRICS_FILE, columns, map(asdict, history), digits=6)


def read_metrics(run: Path) -> list[EpochRow]:
    """Reads `metrics.csv` back; a run that has not finished an epoch yet has no lines."""
    remedy = "resume the run to have it written anew"
    return read_csv(run / METRICS_FILE, EpochRow, "a table of epochs", remedy)


# --- TensorBoard's events, in `RUN/tensorboard`.

_LEAST_GAP_S = 1.0
_GROWS_AFTER_S = 1000.0  # gaps grow with the time since: ten days make about 8,000 events, 2 MB


class Events(AbstractContextManager):
    """Writes a session's figures for TensorBoard.

    An interrupted session may have gone further than the state that this one starts from;
    TensorBoard shows what that one wrote only up to there.

    Should the events not be writable, for want of space say, they end there and the run goes on.

    Args:
        first_step: What was written earlier for this update, counted from 1, and those after it
            is taken back.
        say: Takes a sentence for people.
        enabled: False writes nothing, on all processes but the first.
        least_gap_s: Updates that follow each other faster become one event, of their means.
    """

    def __init__(
        self,
        run: Path,
        first_step: int,
        say: Callable[[str], None],
        enabled: bool = True,
        least_gap_s: float = _LEAST_GAP_S,
    ) -> None:
        self.folder = run / EVENTS_FOLDER
        self._step = 0
        self._say = say
        self._least_gap_s = least_gap_s
        self._writer: Any = None
        self._noted: dict[str, list[float]] = {}
        self._start = self._next = time.monotonic()
        self._hook = threading.excepthook
        if enabled:
            threading.excepthook = self._thread_failed
            with self._guarded():
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder), purge_step=first_step)

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(
        self, step: int, loss: float, lr: float, grad_norm: float | None, images_per_s: float
    ) -> None:
        """Notes an update; what is written, at most once a second, are means since the last time.

        Args:
            step: Its number, from 1.
            lr: Written as it is, like `images_per_s`.
            grad_norm: None where it was not measured.
        """
        self._step = step
        if self._writer is None:
            return
        self._noted |= {"train/lr": [lr], "train/images_per_s": [images_per_s]}
        self._noted.setdefault("train/loss", []).append(loss)
        if grad_norm is not None:
            self._noted.setdefault("train/grad_norm", []).append(grad_norm)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._least_gap_s * max(1.0, (now - self._start) / _GROWS_AFTER_S)
            self._write({})

    def epoch(self, step: int, row: EpochRow) -> None:
        """Writes the figures of an epoch, at the number of its last update."""
        self._step = step
        values = {name: value for name, value in asdict(row).items() if name != "ended"}
        figures = {f"epoch/{name}": value for name, value in values.items()}
        self._write({"epoch/number": figures.pop("epoch/epoch"), **figures})

    def test(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes what the best weights came to on the test split."""
        self._step = step
        self._write({f"test/{name}": value for name, value in figures.items()})

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Writes a text, which TensorBoard lays out as Markdown."""
        if self._writer is not None:
            with self._guarded():
                self._writer.add_text(tag, markdown, step)

    def image(self, tag: str, path: Path, step: int) -> None:
        """Writes an image from a file; one that is not there is left out."""
        if self._writer is None:
            return
        import numpy as np
        from PIL import Image

        with suppress(OSError), Image.open(path) as file:
            pixels = np.asarray(file.convert("RGB"))
            with self._guarded():
                self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left and ends the file."""
        self._write({})
        with self._guarded():
            self._end()
        if threading.excepthook == self._thread_failed:
            threading.excepthook = self._hook

    def _write(self, figures: dict[str, float]) -> None:
        """Writes these figures with those of the updates since the last time, and waits for it."""
        means = {tag: sum(values) / len(values) for tag, values in self._noted.items()}
        figures, self._noted = {**means, **figures}, {}
        if self._writer is None or not figures:
            return
        with self._guarded():
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, self._step)
            self._writer.flush()

    @contextmanager
    def _guarded(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # TensorFlow, where it is installed, has errors of its own
            reason = getattr(error, "strerror", None) or error
            self._say(f"No more TensorBoard events from here on, the run goes on: {reason}")
            with suppress(Exception):
                self._end()

    def _end(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _thread_failed(self, failure: Any) -> None:
        """TensorBoard writes in a thread of its own, whose errors are raised here as well."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook(failure)
