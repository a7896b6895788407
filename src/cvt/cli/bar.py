"""How far a verb has come with its pictures: a bar on a terminal, nothing anywhere else."""

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """A bar that goes over several passes, one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("images", total=None)

    def stage(self, words: str) -> None:
        """Says what is going on; how long it takes is not known unless `start` follows."""
        self._progress.remove_task(self._task)  # a total cannot be taken back
        self._task = self._progress.add_task(words, total=None)

    def start(self, count: int) -> None:
        """Begins a pass over this many pictures."""
        self._progress.reset(self._task, total=count)

    def advance(self, count: int) -> None:
        """Counts pictures that are done."""
        self._progress.advance(self._task, count)


@contextmanager
def image_bar(shown: bool) -> Generator[Bar]:
    """Shows a bar on stderr while the block runs, and takes it away at the end."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as progress:
        yield Bar(progress)
