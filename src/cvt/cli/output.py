"""How verbs speak: tables for people, one JSON object a line for machines."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(content: Any) -> None:
    """Prints one JSON object on one line, at once."""
    print(json.dumps(content, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a plain table; columns of numbers stand right, long text wraps in a terminal."""
    cells = [[str(cell) for cell in row] for row in rows]
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
        print(f"cvt: skipped: {sentence}", file=sys.stderr)
    if bad:
        print(f"cvt: {len(bad)} of {len(bad) + num_good} images skipped.", file=sys.stderr)
