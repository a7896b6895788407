"""A run's figures as TensorBoard events, in `RUN/tensorboard`.

The files are written with TensorBoard's own record format and messages, without its asynchronous
writer: that one ends in a thread of its own when the disk is full, and threads do not go well
with loaders that fork. An event a second needs neither.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from cvt.errors import UserError
from cvt.files import atomic_write
from cvt.training.run_folder import EVENTS_FOLDER, EpochRow

_NUMBER = "epoch/number"
_LEAST_GAP_S = 1.0
_GAPS_IN_A_RUN = 1000.0  # after 1000 s the gaps grow: ten days make about 8,000 events, 2 MB


class Events:
    """Writes the events of one session of a run; those that it takes back are removed first.

    An interrupted session may have gone further than the state that the next one starts from. Its
    events past that point are cut out of its files, so that every update is there at most once.

    Should a file not be writable, for want of space say, the events end there and the run goes on.

    Args:
        run: The run's folder.
        updates_done: Updates that the state to go on from has behind it.
        epochs_done: Epochs that it has behind it, with their validation.
        say: Takes a sentence for people.
        enabled: False writes nothing, on all processes but the first.
    """

    def __init__(
        self,
        run: Path,
        updates_done: int,
        epochs_done: int,
        say: Callable[[str], None],
        enabled: bool = True,
    ) -> None:
        self.folder = run / EVENTS_FOLDER
        self.step = updates_done
        self._say = say
        self._file: io.BufferedWriter | None = None
        self._pending = _Pending()
        self._clock = time.time() - time.monotonic()  # set once: a clock that jumps is not heard
        self._start = self._next = time.monotonic()
        if enabled:
            try:
                self._open(updates_done, epochs_done)
            except (OSError, UserError) as error:
                self._give_up(error)

    def __enter__(self) -> "Events":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        self.step = step
        if self._file is None:
            return
        self._pending.add(loss, lr, grad_norm, images_per_s)
        now = time.monotonic()
        if now >= self._next:
            self._next = now + max(_LEAST_GAP_S, (now - self._start) / _GAPS_IN_A_RUN)
            self._write(self._pending.take())

    def epoch(self, row: EpochRow) -> None:
        """Writes the figures of a finished epoch, at the number of updates made so far."""
        plain = asdict(row)
        figures = {_NUMBER: plain.pop("epoch")}
        figures |= {f"epoch/{name}": value for name, value in plain.items()}
        self._write(self._pending.take() | figures)

    def close(self) -> None:
        """Writes what is left and ends the file; events are handed over at once, not kept here."""
        self._write(self._pending.take())
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, updates_done: int, epochs_done: int) -> None:
        self.folder.mkdir(exist_ok=True)
        before = event_files(self.folder)
        for path in before:
            _take_back(path, updates_done, epochs_done)
        # Numbered, as TensorBoard reads files in the order of their names and clocks may jump.
        number = 1 + max((_number(path) for path in before), default=0)
        self._file = open(self.folder / f"events.out.tfevents.{number:06d}", "xb")  # noqa: SIM115
        self._put(_event_class()(file_version="brain.Event:2"))
        # This makes a TensorBoard that is watching forget what has just been taken back.
        start = _event_class()(step=updates_done + 1)
        start.session_log.status = start.session_log.START
        self._put(start)

    def _write(self, figures: dict[str, float]) -> None:
        if self._file is None or not figures:
            return
        event = _event_class()(step=self.step)
        for tag, value in figures.items():
            event.summary.value.add(tag=tag, simple_value=value)
        try:
            self._put(event)
        except OSError as error:
            self._give_up(error)

    def _put(self, event: Any) -> None:
        assert self._file is not None
        event.wall_time = self._clock + time.monotonic()
        self._file.write(_record(event.SerializeToString()))
        self._file.flush()

    def _give_up(self, error: OSError | UserError) -> None:
        reason = error.strerror if isinstance(error, OSError) else error
        self._say(f"No more TensorBoard events from here on, the run goes on: {reason}")
        if self._file is not None:
            with suppress(OSError):  # closing tries to write the rest once more
                self._file.close()
            self._file = None


class _Pending:
    """The updates since the last event."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.losses: list[float] = []
        self.norms: list[float] = []

    def add(self, loss: float, lr: float, grad_norm: float | None, images_per_s: float) -> None:
        self.latest = {"train/lr": lr, "train/images_per_s": images_per_s}
        self.losses.append(loss)
        if grad_norm is not None:
            self.norms.append(grad_norm)

    def take(self) -> dict[str, float]:
        figures = dict(self.latest)
        for tag, values in (("train/loss", self.losses), ("train/grad_norm", self.norms)):
            if values:
                figures[tag] = sum(values) / len(values)
        self.latest, self.losses, self.norms = {}, [], []
        return figures


def event_files(folder: Path) -> list[Path]:
    """Returns a folder's event files in the order in which they were begun."""
    return sorted(folder.glob("events.out.tfevents.*"))


def read_events(path: Path) -> Iterator[Any]:
    """Yields the whole events of a file; a last one that was cut off in writing is left out."""
    # TensorBoard's loaders import all of TensorFlow first where it is installed; this does not.
    from tensorboard.compat.tensorflow_stub import errors
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except (errors.OutOfRangeError, errors.DataLossError):
            return
        yield _event_class().FromString(reader.record())


def _take_back(path: Path, updates_done: int, epochs_done: int) -> None:
    """Rewrites a file without what lies past the state, if there is any such thing in it."""
    events = list(read_events(path))
    kept = [event for event in events if _holds(event, updates_done, epochs_done)]
    content = b"".join(_record(event.SerializeToString()) for event in kept)
    if len(content) < path.stat().st_size:
        with atomic_write(path) as file:
            file.write(content)


def _holds(event: Any, updates_done: int, epochs_done: int) -> bool:
    """Whether an event tells of something that the state has behind it."""
    if not event.HasField("summary"):
        return True
    epochs = [each.simple_value for each in event.summary.value if each.tag == _NUMBER]
    return event.step <= updates_done and all(number <= epochs_done for number in epochs)


def _number(path: Path) -> int:
    last = path.name.rpartition(".")[2]
    return int(last) if last.isdigit() else 0


def _event_class() -> Any:
    """TensorBoard's message; protobuf makes its class at run time, unseen by type checkers."""
    messages: Any = import_module("tensorboard.compat.proto.event_pb2")
    return messages.Event


def _record(content: bytes) -> bytes:
    """Frames a message with its length and checksums, as TensorBoard's files hold it."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    framed = io.BytesIO()
    RecordWriter(framed).write(content)
    return framed.getvalue()
