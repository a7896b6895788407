"""How verbs speak: lines and tables for people, one JSON object a line for machines.

Whatever is printed may hold names and sentences of strangers: files, classes, runs, messages.
"""

import math
import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as Grid
from rich.text import Text

from cvt.errors import MOST_SHOWN, shown
from cvt.plain import json_text, to_plain
from cvt.tables import Table

_GAP = 2  # blanks between columns

# A number, perhaps of two parts or with units: 1,234 20/30 224x224 1.2e-07 2 min 10 s
_FIGURE = re.compile(
    r"[-+]?\d[\d.,]*(?:[/x]\d+|e[-+]\d+)?(?: ?[A-Za-z%]{1,3}(?: \d+ [a-z]{1,3})?)?"
)


def say(text: object = "", *, error: bool = False, most: int = MOST_SHOWN) -> None:
    """Prints a line for people at once, whatever names of strangers are in it: stdout or stderr.

    Args:
        most: Characters from which the middle is left out.
    """
    print(shown(text, most), file=sys.stderr if error else sys.stdout, flush=True)


def say_lines(text: str) -> None:
    """Prints text of our own that has several lines, whatever stands in them, each one whole."""
    for line in text.rstrip("\n").split("\n"):
        say(line, most=len(line))


def warn(sentence: str) -> None:
    """Prints a sentence that concerns what was asked for, on stderr."""
    say(f"cvt: {sentence}", error=True)


def print_json(content: Any) -> None:
    """Prints a result as one JSON object on one line; what could act on a terminal is escaped.

    Numbers that JSON does not have, nan and the infinite ones, are null.
    """
    plain = content.to_dict() if hasattr(content, "to_dict") else to_plain(content)
    print(json_text(_without_nan(plain)), flush=True)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def print_table(table: Table) -> None:
    """Prints a table with its title and notes; nothing is cut off, columns of figures stand right.

    On a terminal, text and headers wrap between words where a table is too wide. If the longest
    words don't fit side by side either, the columns that are left over make tables of their own
    below, each of which begins with the first column again. Only a word that leaves no room
    for another column goes on in a second line.
    """
    if table.title:
        say(table.title)
        say()
    cells = [[shown(cell) for cell in row] for row in table.rows]
    made = [_Column(name, [row[n] for row in cells]) for n, name in enumerate(table.columns)]
    # A pipe has no width to fit into.
    is_terminal = sys.stdout.isatty()
    console = Console(force_terminal=is_terminal, highlight=False, markup=False, emoji=False)
    width = console.width if is_terminal else None
    groups, gap = ([made], _GAP) if width is None else _fitted(made, width)
    for number, group in enumerate(groups):
        if number:
            say()
        _print_columns(console, group, width, gap)
    if table.notes:
        say()
    for note in table.notes:
        say_lines(note)


def print_skipped(bad: Sequence[str], num_good: int, what: str = "images") -> None:
    """Names the inputs that were left out, and counts them, on stderr."""
    for sentence in bad:
        warn(f"skipped: {sentence}")
    if bad:
        warn(f"{len(bad)} of {len(bad) + num_good} {what} skipped.")


class _Column:
    """A header and its cells, and how wide they are as they stand, and with one word a line."""

    def __init__(self, header: str, cells: Sequence[str]) -> None:
        self.header, self.cells = shown(header), cells
        self.is_figures = all(value == "-" or _FIGURE.fullmatch(value) for value in cells)
        self.natural = max(cell_len(value) for value in (self.header, *cells))
        words = self.header.split()
        for value in cells:
            words += [value] if self.is_figures else value.split()
        self.least = max(map(cell_len, words), default=0)


def _fitted(columns: Sequence[_Column], width: int) -> tuple[list[list[_Column]], int]:
    """Puts columns into as few tables as are needed, each with the first column in front.

    Returns them with the gap between their columns: a narrow one if that makes them one.
    """
    first, *others = columns
    widest = max((column.least for column in others), default=0)
    first.least = min(first.least, max(width // 2, width - _GAP - widest))
    for column in others:
        column.least = min(column.least, width - first.least - _GAP)
    together = sum(column.least for column in columns)
    fitting = (gap for gap in (_GAP, _GAP // 2) if together + gap * len(others) <= width)
    gap = next(fitting, _GAP)
    groups = [[first]]
    for column in others:
        taken = sum(each.least + gap for each in groups[-1])
        if len(groups[-1]) > 1 and taken + column.least > width:
            groups.append([first])
        groups[-1].append(column)
    return groups, gap


def _print_columns(
    console: Console, columns: Sequence[_Column], width: int | None, gap: int
) -> None:
    widths = [column.natural for column in columns]
    if width is not None:
        widths = _narrowed(columns, width - gap * (len(columns) - 1))
    table = Grid(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for column, wide in zip(columns, widths, strict=True):
        justify = "right" if column.is_figures else "left"
        table.add_column(Text(column.header), justify=justify, width=wide, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, row))
    console.width = sum(widths) + gap * (len(widths) - 1)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()), flush=True)


def _narrowed(columns: Sequence[_Column], room: int) -> list[int]:
    """Takes from the widest columns first; the first one is what the others are about, and last."""
    widths = [column.natural for column in columns]
    while sum(widths) > room:
        spare = [wide - column.least for wide, column in zip(widths, columns, strict=True)]
        giving = [n for n, each in enumerate(spare) if n and each > 0]
        widths[max(giving, key=lambda n: widths[n]) if giving else 0] -= 1
    return widths


# --- How far a verb has come with its images: a bar on a terminal, nothing anywhere else.


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
        """Begins a pass over this many images."""
        self._progress.reset(self._task, total=count)

    def advance(self, count: int) -> None:
        """Counts images that are done."""
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
