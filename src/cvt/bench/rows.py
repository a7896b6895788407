"""Tables with a line a row of one dataclass, as the results folders keep them."""

import csv
import io
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cvt.files import read_small
from cvt.plain import MOST_TEXT

Row = TypeVar("Row")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Reads a table back into rows; no file is a table without any.

    Columns that the rows don't have are passed over; what is empty is None, but for text.

    Raises:
        UserError: The file cannot be read.
        ValueError: It is no table of such rows; the text says why.
    """
    if not path.exists():
        return []
    hints = get_type_hints(kind)
    text = read_small(path, MOST_TEXT).decode()
    try:
        lines = csv.DictReader(io.StringIO(text, newline=""))
        if missing := [name for name in hints if name not in (lines.fieldnames or ())]:
            raise ValueError(f"it has no column {missing[0]}")
        return [
            kind(**{name: _value(line[name], hint) for name, hint in hints.items()})
            for line in lines
        ]
    except (TypeError, OverflowError, csv.Error) as error:
        raise ValueError(str(error)) from error


def _value(text: str | None, hint: Any) -> Any:
    if text is None:
        raise ValueError("a line is too short")
    if hint is str:
        return text
    if text == "":
        return None
    return int(text) if hint in (int, int | None) else float(text)
