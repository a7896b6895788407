"""A results folder: what was asked for, and rows of what was measured, written as they come.

`cvt bench` and `cvt compare` both keep one. Whatever ended them, the same call goes on from the
rows that are there; a call that asks for something else is refused.
"""

from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from cvt.errors import UserError
from cvt.files import atomic_write, cannot_write
from cvt.plain import read_yaml_file, write_yaml
from cvt.tables import read_csv, write_csv
from cvt.training.run_folder import held, is_held


class Row(Protocol):
    """A dataclass of text and numbers."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def key(self) -> Hashable:
        """What it is of: of two rows with the same key, the later one holds."""
        ...


R = TypeVar("R", bound=Row)


@dataclass(frozen=True, kw_only=True)
class Contents(Generic[R]):
    """What a kind of results folder holds.

    Args:
        name: What messages call it.
        plan_file: YAML that says what was asked for.
        table_file: CSV with a line a row.
        row: The rows' dataclass. Fields may be added to it, with a default.
        rows: What messages call the rows.
        mend: What messages say about a damaged table.
        difference: Says how the plan in the folder (first) is another one than today's, or
            nothing; raises ValueError for what is no plan at all.
    """

    name: str
    plan_file: str
    table_file: str
    row: type[R]
    rows: str
    mend: str
    difference: Callable[[Mapping[str, Any], Mapping[str, Any]], str]


class ResultsFolder(Generic[R]):
    """The rows of a results folder; its table is whole at any moment."""

    def __init__(self, path: Path, contents: Contents[R]) -> None:
        self.path, self.contents = path, contents
        self.rows = read_csv(
            path / contents.table_file,
            contents.row,
            f"a table of {contents.rows}",
            f"mend it, or {contents.mend}",
        )

    def add(self, row: R) -> None:
        """Writes a row down, in place of one of the same key."""
        self.write([*(each for each in self.rows if each.key != row.key), row])

    def drop(self, gone: Collection[R]) -> None:
        """Forgets rows that are about to be made again."""
        if gone:
            self.write([each for each in self.rows if each not in gone])

    def write(
        self, rows: Sequence[R], more: Callable[[R], Mapping[str, Any]] | None = None
    ) -> None:
        """Writes all rows anew.

        Args:
            more: What further columns, which are for people alone, say of a row.
        """
        self.rows = list(rows)
        lines = [{**asdict(row), **(more(row) if more else {})} for row in self.rows]
        names = dict.fromkeys(each.name for each in fields(self.contents.row))
        columns = list({**names, **dict.fromkeys(lines[0] if lines else ())})
        write_csv(self.path / self.contents.table_file, columns, lines)


@contextmanager
def results_folder(
    path: Path, contents: Contents[R], plan: Mapping[str, Any]
) -> Generator[ResultsFolder[R]]:
    """Makes a results folder, or goes on with one, and keeps other processes out of it.

    Args:
        plan: Plain data that says what is asked for.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    if is_held(path):
        raise UserError(f"The folder {path} is in use by another process; wait for it, or stop it.")
    with held(path):
        _pin(path, contents, plan)
        yield ResultsFolder(path, contents)


def _pin(path: Path, contents: Contents[Any], plan: Mapping[str, Any]) -> None:
    """Writes the plan down, or makes sure that the folder holds this one."""
    file, stored = path / contents.plan_file, None
    if file.exists():
        stored = read_yaml_file(file)
        try:
            if not isinstance(stored, dict):
                raise ValueError
            difference = contents.difference(stored, plan)
        except ValueError:
            raise UserError(
                f"{file} does not describe a {contents.name}; give another --out."
            ) from None
        if difference:
            raise UserError(
                f"The folder {path} holds another {contents.name}: {difference}; put that back, or "
                "give another --out."
            )
    elif any(not each.name.startswith(".") for each in path.iterdir()):
        raise UserError(
            f"The folder {path} is not empty and holds no {contents.name}; give another --out."
        )
    if stored != plan:
        with atomic_write(file, "w") as text:
            text.write(write_yaml(dict(plan)))
