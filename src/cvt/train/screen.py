"""What a run shows while it works: a bar on a terminal, plain lines anywhere else."""

import os
import re
import sys
import time
from collections.abc import Sequence
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cvt.errors import shown
from cvt.files import quiet
from cvt.train.config import TrainConfig
from cvt.train.progress import EpochRow
from cvt.train.settings import settings
from cvt.train.units import say_memory, say_time

_LINE_EVERY_S = 300.0  # where there is no bar, a log should show that the run is alive
_MUCH_WAITING = 0.1
_LEAST_BAR = 12


class Screen:
    """Prints the config, a line an epoch, and on a terminal a bar over all updates.

    Args:
        total: Updates of the whole run.
        done: Updates made before, in a run that goes on.
        shown: False keeps all of it quiet.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.console = Console(
            file=quiet(sys.stdout), quiet=not shown, highlight=False, emoji=False
        )
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("starting", total=total, completed=done, figures="")
        self._pace = _Pace(total - done)
        self._num_workers = 0
        self._has_accelerator = False
        self._has_advised = False
        self._said_at = time.monotonic()

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, which a terminal breaks between words alone."""
        say_wrapped(self.console, text)

    def report(self, text: str) -> None:
        """Prints text of our own that has several lines, each whole: there are commands among."""
        for line in text.split("\n"):
            self.console.print(Text(shown(line, len(line))), soft_wrap=True)

    def describe(self, config: TrainConfig, facts: str, processes: int = 1) -> None:
        """Prints what the run is about to do, derived values included.

        Args:
            facts: A sentence or more about data, model and machine.
            processes: How many of them train together.
        """
        self._num_workers = config.num_workers or 0
        self._has_accelerator = config.device != "cpu"
        self.say(facts)
        lines = settings(config, processes)
        widest = max(map(len, lines))
        for group, line in lines.items():
            say_wrapped(self.console, line, f"  {group:<{widest}}  ", _SETTINGS)

    def update(
        self,
        epoch: str,
        loss: float,
        lr: float,
        images_per_s: float,
        data_wait: float = 0.0,
        memory_mb: float = 0.0,
    ) -> None:
        """Moves the bar by one update; without a bar, prints a line every five minutes.

        Args:
            epoch: The epoch in hand, of how many.
            data_wait: Share of its time without a batch to work on, 0 to 1; said if it is much.
            memory_mb: Most memory in use so far; 0 is not said.
        """
        self._pace.count()
        figures = [f"{self._pace.left()} left", f"loss {loss:.3f}", f"{images_per_s:,.0f} images/s"]
        figures += [f"waits for data {data_wait:.0%}"] if self._is_much(data_wait) else []
        figures += [f"lr {lr:.1e}"]
        figures += [say_memory(memory_mb)] if memory_mb else []
        description = f"epoch {epoch}"
        room = self.console.width - len(description) - _LEAST_BAR
        self.bar.update(
            self.task, advance=1, description=description, figures=_fitting(figures, room)
        )
        if self.bar.disable and time.monotonic() - self._said_at > _LINE_EVERY_S:
            self._said_at = time.monotonic()
            self.say("  ".join([description, *figures]))

    def epoch(self, row: EpochRow, epochs: int, is_best: bool) -> None:
        """Prints the line of a finished epoch; a star marks the best so far.

        On a terminal it holds the figures that fit; all of them are in the run's metrics.
        """
        width = len(str(epochs))
        figures = [
            f"epoch {row.epoch:>{width}}/{epochs}",
            f"train loss {row.train_loss:.4f}",
            f"val loss {row.val_loss:.4f}",
            f"top-1 {row.val_top1:6.2f} %{' *' if is_best else '  '}",
            f"lr {row.lr:.1e}",
            f"{row.images_per_s:,.0f} images/s",
            say_memory(row.memory_mb),
        ]
        room = self.console.width if self.console.is_terminal else sum(map(len, figures)) + 99
        self.say(_fitting(figures, room).rstrip())
        if self._is_much(row.data_wait) and not self._has_advised:
            self._has_advised = True
            self.say(_advice(row.data_wait, self._num_workers, os.cpu_count() or 1))

    def _is_much(self, data_wait: float) -> bool:
        """Whether preparing pictures holds up the network; on a CPU both need the same cores."""
        return self._has_accelerator and data_wait > _MUCH_WAITING


_WORDS = (re.compile(" "),)
# Names stay with their values, and lists whole, where there is room for them.
_SETTINGS = (re.compile(r"(?<=,) (?![^\[]*\])"), re.compile(r" (?![^\[]*\])"), re.compile(" "))


def say_wrapped(
    console: Console, text: str, head: str = "", breaks: Sequence[re.Pattern[str]] = _WORDS
) -> None:
    """Prints a line that may hold strangers' names; on a terminal as lines that fit.

    Args:
        head: Stands before it; the lines that follow are indented alike.
        breaks: The blanks at which it may be broken; the later ones where a part fits no line.
    """
    room = console.width - len(head) if console.is_terminal else None
    for number, line in enumerate(_lines(shown(text), room, breaks)):
        start = " " * len(head) if number else head
        console.print(Text(f"{start}{line}"), soft_wrap=True)


def _lines(text: str, room: int | None, breaks: Sequence[re.Pattern[str]]) -> list[str]:
    """Breaks text into lines; a word that is wider than the room has one of its own."""
    if room is None or cell_len(text) <= room or not breaks:
        return [text]
    lines: list[str] = []
    for part in breaks[0].split(text):
        if lines and cell_len(lines[-1]) + 1 + cell_len(part) <= room:
            lines[-1] += f" {part}"
        else:
            lines += _lines(part, room, breaks[1:])
    return lines


class _Pace:
    """Time that is left, from the session's own pace, validation and writing included.

    The first update is left out: caches, compilers and loaders are still getting ready.
    """

    def __init__(self, updates: int) -> None:
        self.updates = updates
        self.done = 0
        self.since = 0.0

    def count(self) -> None:
        self.done += 1
        if self.done == 1:
            self.since = time.monotonic()

    def left(self) -> str:
        if self.done < 2:
            return "-"
        seconds = (time.monotonic() - self.since) / (self.done - 1)
        return say_time(seconds * (self.updates - self.done))


def _fitting(figures: list[str], room: int) -> str:
    """Joins as many figures, the first ones, as a line has room for."""
    text = figures[0]
    for figure in figures[1:]:
        if len(text) + 2 + len(figure) > room:
            break
        text += f"  {figure}"
    return text


def _advice(data_wait: float, num_workers: int, num_cores: int) -> str:
    said = f"{data_wait:.0%} of the training time went by waiting for pictures: "
    if num_workers < num_cores:
        return said + (
            f"more workers may help (--num-workers, now {num_workers} on {num_cores} cores)."
        )
    return said + (
        f"{num_workers} workers keep all {num_cores} cores busy, so only smaller files or "
        "lighter augmentation help."
    )
