"""Values as Markdown that shows them as they are, whatever characters they hold."""

import re
from collections.abc import Iterable, Sequence

from cvt.errors import shown

# Within a word an underscore is only itself.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_SPECIAL_AT_START = re.compile(r"^([-+#=]|\d+(?=[.)]))")


def text(value: object) -> str:
    """Returns a value as running text, on one line."""
    line = _SPECIAL.sub(r"\\\1", _one_line(value))
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a table whose cells are Markdown already; `|` in them is kept."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_in_cell(cell) for cell in line) + " |" for line in lines]


def _one_line(value: object) -> str:
    """Without line ends, controls and marks of writing direction, which act on any page."""
    line = " ".join(str(value).split())
    return shown(line, len(line))


def _in_cell(cell: str) -> str:
    """Escapes the bars that `text` has not escaped; tables read them before anything else."""
    return re.sub(r"(?<!\\)\|", r"\\|", cell)
