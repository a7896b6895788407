"""Tables: one content for the terminal, for Markdown and for CSV, whatever characters it holds.

A `Table` is what people read: text in cells. Rows that a program reads back are dataclasses, in a
CSV file with a column for each field.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from cvt.errors import UserError, shown
from cvt.files import atomic_write, read_small
from cvt.plain import MOST_TEXT, from_plain

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its title and notes, all of it plain text.

    Args:
        notes: Sentences under it.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Iterable[Any],
        columns: Mapping[str, str | Callable[[Any], object]],
        title: str = "",
        notes: tuple[str, ...] = (),
    ) -> "Table":
        """Describes a table by its columns: a header, and what it says of each row.

        Args:
            columns: An attribute, or a key of a mapping, with a number's format where it needs
                one (`top1:.2f`), or a function of the row. What is None shows as `-`.
        """
        cells = tuple(tuple(_said(row, each) for each in columns.values()) for row in rows)
        return cls(columns=tuple(columns), rows=cells, title=title, notes=notes)

    def to_markdown(self, level: int = 2) -> str:
        """Returns the title as a heading of this level, the table, and a list of the notes."""
        lines = [f"{'#' * level} {text(self.title)}", ""] if self.title else []
        lines += table(map(cell, self.columns), (map(cell, row) for row in self.rows))
        if self.notes:
            lines += ["", *(f"- {text(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _said(row: Any, column: str | Callable[[Any], object]) -> str:
    if callable(column):
        value, form = column(row), ""
    else:
        name, _, form = column.partition(":")
        value = row.get(name) if isinstance(row, Mapping) else getattr(row, name)
    return "-" if value is None else format(value, form)


# --- Text as Markdown that shows it as it is.

# Within a word an underscore is only itself.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_SPECIAL_AT_START = re.compile(r"^([-+#=]|\d+(?=[.)]))")


def text(value: object) -> str:
    """Returns a value as running text, on one line."""
    line = cell(value)
    start = _SPECIAL_AT_START.match(line)
    if start is None:
        return line
    if start[1].isdigit():  # "1." would begin a list
        return f"{start[1]}\\{line[start.end() :]}"
    return "\\" + line


def cell(value: object) -> str:
    """Returns a value as text within a line, where no character is special for coming first."""
    return _SPECIAL.sub(r"\\\1", _one_line(value))


def code(value: object) -> str:
    """Returns a value between backticks, more of them than it holds in a row."""
    line = _one_line(value)
    if not line:
        return ""
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Returns the lines of a table whose cells are Markdown already; `|` in them is kept."""
    names = list(header)
    lines = [names, ["---"] * len(names), *rows]
    # Bars that `cell` has not escaped, in code: tables read them before anything else.
    cells = [[re.sub(r"(?<!\\)\|", r"\\|", each) for each in line] for line in lines]
    return ["| " + " | ".join(line) + " |" for line in cells]


def _one_line(value: object) -> str:
    """Without line ends, controls and marks of writing direction, which act on any page."""
    line = " ".join(str(value).split())
    return shown(line, len(line))


# --- Rows of one dataclass as CSV.


def write_csv(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    digits: int | None = None,
) -> None:
    """Writes a line a row; the file is whole at any moment.

    Args:
        digits: Significant digits of numbers that are not whole; None writes all of them.
    """
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            short = {
                name: f"{value:.{digits}g}"
                for name, value in row.items()
                if digits and isinstance(value, float)
            }
            writer.writerow({**row, **short})


def read_csv(path: Path, kind: Callable[..., Row], what: str, remedy: str) -> list[Row]:
    """Reads rows back, each value checked against its field; no file is a table without any.

    Other columns are passed over, and those of fields with a default may be missing; what is
    empty is None, but for text.

    Args:
        what: What a message calls the file, such as `a table of epochs`.
        remedy: What a message says to do where it is none.
    """
    if not path.exists():
        return []
    kinds = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}
    content = read_small(path, MOST_TEXT)
    assert is_dataclass(kind)
    needed = [each.name for each in fields(kind) if each.default is each.default_factory]
    try:
        lines = csv.DictReader(io.StringIO(content.decode(), newline=""))
        if missing := [name for name in needed if name not in (lines.fieldnames or ())]:
            raise ValueError(f"it has no column {missing[0]}")
        return [
            from_plain(
                kind,
                {name: _value(line[name], kinds[name]) for name in kinds if name in line},
                f"line {number}",
            )
            for number, line in enumerate(lines, 2)
        ]
    except (ValueError, TypeError, OverflowError, csv.Error) as error:
        why = str(error).rstrip(".")
        raise UserError(f"{path} is not {what} ({why}); {remedy}.") from None


def _value(text: str | None, kinds: tuple[Any, ...]) -> Any:
    if text is None:
        raise ValueError("a line is too short")
    if any(kind is str or isinstance(kind, str) for kind in kinds):  # or one of some words
        return text
    if text == "":
        return None
    if bool in kinds:
        return {"True": True, "False": False}.get(text, text)
    return int(text) if int in kinds and float not in kinds else float(text)
