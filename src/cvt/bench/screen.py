"""What a bench or a comparison shows while it works: a line a result, on a terminal a bar too."""

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cvt.errors import shown
from cvt.files import quiet
from cvt.training.screen import say_wrapped

_LOOK_EVERY_S = 2.0


class BenchScreen:
    """Prints what happens.

    Args:
        total: Results that there will be.
        done: Those that were there before, where work goes on.
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

    def __enter__(self) -> "BenchScreen":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Prints a line, which a terminal breaks between words alone."""
        say_wrapped(self.console, text)

    def now(self, words: str) -> None:
        """Says what is being done."""
        self.bar.update(self.task, description=shown(words))

    def look(self, words: Callable[[], str]) -> None:
        """As `now`, for words that cost something: asked for at most every other second."""
        if self.bar.disable or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        self.now(words())

    def ended(self, what: str, came_to: str) -> None:
        """Counts a result, and prints its line."""
        self.skipped()
        self.say(f"[{self.done:>{len(str(self.total))}}/{self.total}] {what}: {came_to}")

    def skipped(self) -> None:
        """Counts a result that there will not be."""
        self.done += 1
        self.bar.update(self.task, completed=self.done)
