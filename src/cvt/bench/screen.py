"""What a comparison shows while it works: a line a run, and on a terminal a bar over all runs."""

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cvt.bench.contest.results import Outcome
from cvt.bench.speed.plan import Measurement
from cvt.errors import UserError, shown
from cvt.files import quiet
from cvt.training.run_folder import read_metrics
from cvt.training.screen import say_memory, say_time, say_wrapped

_LOOK_EVERY_S = 2.0


class ContestScreen:
    """Prints what happens.

    Args:
        total: Runs of the whole comparison.
        done: Runs made before, in a comparison that goes on.
        shown: False keeps all of it quiet.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.console = Console(
            file=quiet(sys.stdout),
            quiet=not shown,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not (shown and self.console.is_terminal),
        )
        self.total, self.done = total, done
        self.task = self.bar.add_task("starting", total=total, completed=done)
        self._looked_at = 0.0

    def __enter__(self) -> "ContestScreen":
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

    def now(self, words: str) -> None:
        """Says what is being done."""
        self.bar.update(self.task, description=shown(words))

    def look_at(self, words: str, run: Path) -> None:
        """Says how far a run has come, by its metrics; at most every other second."""
        if self.bar.disable or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        try:
            history = read_metrics(run)
        except UserError:  # half written by a process that was killed
            return
        if history:
            words += f": {len(history)} epochs, val top-1 {history[-1].val_top1:.2f} %"
        self.now(words)

    def ended(self, outcome: Outcome, split: str) -> None:
        """Prints the line of a run that has ended."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)
        width = len(str(self.total))
        who = f"[{self.done:>{width}}/{self.total}] {outcome.label}, seed {outcome.seed}"
        if outcome.top1 is None:
            self.say(f"{who}: failed: {outcome.error}")
            return
        figures = [f"{split} top-1 {outcome.top1:.2f} %"]
        if outcome.train_images_per_s is not None:
            figures.append(f"{outcome.train_images_per_s:,.0f} images/s")
        if outcome.memory_mb is not None:
            figures.append(say_memory(outcome.memory_mb))
        if outcome.seconds is not None:
            figures.append(f"{say_time(outcome.seconds)} of updates")
        self.say(f"{who}: {', '.join(figures)}")


# --- What a bench shows while it works: a line a measurement, and on a terminal a bar over all.


class SpeedScreen(ContestScreen):
    """Prints what happens; as the contests' screen, but for the lines."""

    def measured(self, measurement: Measurement) -> None:
        """Prints the line of a measurement."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)
        width = len(str(self.total))
        who = (
            f"[{self.done:>{width}}/{self.total}] {measurement.entrant.label}, "
            f"{measurement.setting.words}"
        )
        if measurement.images_per_s is None:
            self.say(f"{who}: failed: {measurement.error}")
            return
        memory = measurement.memory_mb
        more = "" if memory is None else f", {say_memory(memory)} above the model"
        self.say(f"{who}: {say_rate(measurement.images_per_s)} images/s{more}")

    def left_out(self) -> None:
        """Counts a measurement that is not made, as an earlier one of its kind has failed."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)


def say_rate(rate: float) -> str:
    """Returns a rate with three digits at least: `9.13`, `56.1`, `1,234`."""
    return f"{rate:.2f}" if rate < 10 else f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"
