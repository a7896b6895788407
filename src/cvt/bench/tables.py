"""A table with its title and notes: one content for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from cvt import tables as markdown

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: its heading, and how it says what a result has there."""

    heading: str
    say: Callable[[T], str]


@dataclass(frozen=True, kw_only=True)
class Block:
    """What is printed of one table; cells and notes are plain text.

    Args:
        notes: Sentences under it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        title: str,
        columns: Sequence[Column[T]],
        results: Iterable[T],
        notes: Iterable[str] = (),
    ) -> "Block":
        """Returns a table with a row for each result."""
        return cls(
            title=title,
            columns=tuple(column.heading for column in columns),
            rows=tuple(tuple(column.say(each) for column in columns) for each in results),
            notes=tuple(notes),
        )

    def to_markdown(self, level: int = 2) -> str:
        """Returns a heading of this level, the table, and a list of the notes."""
        cells = [[markdown.cell(cell) for cell in row] for row in self.rows]
        lines = [f"{'#' * level} {markdown.text(self.title)}", ""]
        lines += markdown.table([markdown.cell(each) for each in self.columns], cells)
        if self.notes:
            lines += ["", *(f"- {markdown.text(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def to_markdown(blocks: Sequence[Block]) -> str:
    """Returns several tables below each other."""
    return "\n".join(block.to_markdown() for block in blocks)


def say_number(value: float | None, digits: int | None = None) -> str:
    """Returns a figure with its digits after the point, or as it was written; `-` for none."""
    if value is None:
        return "-"
    return str(value) if digits is None else f"{value:.{digits}f}"


def say_rate(rate: float) -> str:
    """Returns a rate with three digits at least: `9.13`, `56.1`, `1,234`."""
    return f"{rate:.2f}" if rate < 10 else f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}"


def say_gmacs(macs: int) -> str:
    """Returns multiply-accumulates in units of 10**9, three digits of them at least."""
    gmacs = macs / 1e9
    return f"{gmacs:.3f}" if gmacs >= 0.1 else f"{gmacs:.5f}"


def is_rounding(published: float, computed: float) -> bool:
    """Whether a published figure is the computed one at the digits that it was written with.

    Args:
        published: As printed: 22 has no digit after the point, 22.0 and 4.6 have one.
        computed: In the same unit.
    """
    _, _, decimals = str(published).partition(".")
    return abs(published - computed) <= 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)
