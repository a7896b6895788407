"""How verbs speak: tables for people, one JSON object a line for machines."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cvt.errors import is_unsafe, shown


def say(text: object, *, error: bool = False) -> None:
    """Prints one line for people, whatever names of strangers are in it, on stdout or stderr."""
    print(shown(text), file=sys.stderr if error else sys.stdout)


def print_json(content: Any) -> None:
    """Prints one JSON object on one line, at once; what could act on a terminal is escaped."""
    text = json.dumps(content, ensure_ascii=False)
    if not text.isascii():
        text = "".join(f"\\u{ord(each):04x}" if is_unsafe(each) else each for each in text)
    print(text, flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a plain table; columns of numbers stand right, long text wraps in a terminal."""
    cells = [[shown(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, values in zip(columns, zip(*cells, strict=True), strict=True):
        numeric = all(value[:1].isdigit() or value == "-" for value in values)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
    for row in cells:
        table.add_row(*row)
    # A pipe has no width to fit into: nothing may be cut off there.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False, markup=False).print(table)


def print_skipped(bad: Sequence[str], num_good: int) -> None:
    """Names the pictures that were left out, and counts them, on stderr."""
    for sentence in bad:
        say(f"cvt: skipped: {sentence}", error=True)
    if bad:
        say(f"cvt: {len(bad)} of {len(bad) + num_good} images skipped.", error=True)
