"""The results folder: what the contest is, and what has been measured so far."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from cvt.bench.contest.results import Outcome
from cvt.bench.names import Contender
from cvt.errors import UserError
from cvt.files import atomic_write, read_small
from cvt.plain import MOST_TEXT, json_text, read_json_file, read_yaml_file, write_yaml

# --- Tables with a line a row of one dataclass, as the results folders keep them.

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


CONTEST_FILE = "contest.yaml"
RESULTS_FILE = "results.csv"
MEASURED_FILE = "measured.json"
TABLE_FILE = "table.md"
PLOT_FILE = "accuracy.png"
RUNS_FOLDER = "runs"


class Ledger:
    """Reads and writes the files of one contest; each is whole at any moment.

    Args:
        folder: The results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.measured: dict[str, Any] = _read_measured(folder / MEASURED_FILE)
        self.outcomes: dict[tuple[str, int], Outcome] = {
            (each.label, each.seed): each for each in read_outcomes(folder / RESULTS_FILE)
        }

    def run_folder(self, contender: Contender, seed: int) -> Path:
        """Where a run lies while it is needed."""
        return self.folder / RUNS_FOLDER / f"{contender.folder}-seed{seed}"

    def add(self, outcome: Outcome) -> None:
        """Writes a run's figures down, in place of any that it had."""
        self.outcomes[outcome.label, outcome.seed] = outcome

    def write_outcomes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the table of runs, a line each, for `read_outcomes` and for people."""
        names = [each.name for each in fields(Outcome)]
        names += [name for row in rows[:1] for name in row if name not in names]
        with atomic_write(self.folder / RESULTS_FILE, "w") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def note(self, name: str, value: Any) -> None:
        """Keeps something that was measured beside the runs."""
        self.measured[name] = value
        with atomic_write(self.folder / MEASURED_FILE, "w") as file:
            file.write(json_text(self.measured, indent=2) + "\n")

    def remove_run(self, run: Path) -> None:
        """Deletes a run whose figures are written down, as far as that is allowed."""
        shutil.rmtree(run, ignore_errors=True)


def open_folder(folder: Path, contest: Mapping[str, Any]) -> None:
    """Makes the results folder, or makes sure that it is one of this contest, and says what it is.

    Raises:
        UserError: It holds something else, or another contest; the message names the difference.
    """
    path = folder / CONTEST_FILE
    if path.exists():
        stored = _read_contest(path)
        difference = _difference(stored, contest)
        if difference:
            raise UserError(
                f"The folder {folder} holds another comparison: {difference}; put that back, or "
                "give another --out."
            )
    elif folder.exists() and any(not each.name.startswith(".") for each in folder.iterdir()):
        raise UserError(
            f"The folder {folder} is not empty and holds no comparison; give another --out."
        )
    with atomic_write(path, "w") as file:
        file.write(write_yaml(dict(contest)))


def read_outcomes(path: Path) -> list[Outcome]:
    """Reads a table of runs; none is there before the first run has ended.

    Raises:
        UserError: It is no such table.
    """
    try:
        return read_rows(path, Outcome)
    except ValueError as error:
        raise UserError(
            f"{path} is not a table of a comparison's runs ({error}); mend it, or remove it to "
            "have it made anew from the run folders."
        ) from None


def row_of(outcome: Outcome, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line of the table: a run, and what is known of its contender."""
    return {**asdict(outcome), **more}


def _read_contest(path: Path) -> dict[str, Any]:
    stored = read_yaml_file(path)
    is_one = isinstance(stored, dict) and isinstance(stored.get("contenders"), dict)
    if not is_one or not isinstance(stored.get("seeds", 0), int):
        raise UserError(f"{path} does not describe a comparison; give another --out.")
    return stored


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Says the first thing in which a contest is another one; more contenders or seeds are not."""
    for label, contender in stored["contenders"].items():
        if label not in now["contenders"]:
            return f"{label} takes part there, and is not named now"
        if contender != now["contenders"][label]:
            return f"{label} is {contender} there, and {now['contenders'][label]} now"
    if stored.get("seeds", 0) > now["seeds"]:
        return f"it has {stored['seeds']} seeds, and now there are {now['seeds']}"
    for group in ("budget", "recipe", "data", "software"):
        theirs, ours = (_flat(group, each.get(group)) for each in (stored, now))
        for name in {**theirs, **ours}:
            if theirs.get(name) != ours.get(name):
                return f"{name} is {theirs.get(name)} there, and {ours.get(name)} now"
    return ""


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Names nested values as messages call them: `optim.lr`, `training data`."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, each in value.items():
        if isinstance(each, Mapping):
            found |= {f"{key}.{inner}": item for inner, item in each.items()}
        else:
            found[f"{key} data" if name == "data" else key] = each
    return found


def _read_measured(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    measured = read_json_file(path)
    if not isinstance(measured, dict):
        raise UserError(f"{path} is not what was measured; remove it to have it measured again.")
    return measured
