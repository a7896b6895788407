"""`cvt runs [FOLDER]`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cvt.cli.flags import JsonLines
from cvt.cli.output import print_json, print_skipped, print_table, say, warn
from cvt.errors import UserError
from cvt.tables import Table

if TYPE_CHECKING:
    from cvt.training.runs import StoredRun


def runs(
    folder: Annotated[
        Path, Parameter(help="A folder with runs in it or below it, or a single run.")
    ] = Path("runs"),
    /,
    *,
    plot: Annotated[
        Path | None, Parameter(help="Plot all validation curves into this file (PNG).")
    ] = None,
    json: JsonLines = False,
) -> int:
    """List the runs in a folder and compare them.

    The best of each data set comes first; below them stand the settings in which they differ.
    """
    from cvt.training.runs import read_runs

    found, bad = read_runs(folder)
    if json:
        for run in found:
            print_json(run.to_dict())
    else:
        _print(found)
    drawn = plot is None or not found or _drawn(found, plot.expanduser(), json)
    print_skipped(bad, len(found), "runs")
    return 1 if bad or not drawn else 0


def _print(found: "list[StoredRun]") -> None:
    """Prints the runs on each data set by themselves, as only those can be compared."""
    for number, (data, runs) in enumerate(_by_data(found).items()):
        if number:
            say()
        say(data)
        say()
        print_table(Table.of(runs, _columns()))
        _print_differences(runs)


def _columns() -> "dict[str, str | Callable[[StoredRun], object]]":
    from cvt.training.screen import say_count, say_time

    return {
        "Run": "name",
        "Model": lambda run: run.config["model"],
        "Parameters": lambda run: run.num_params and say_count(run.num_params),
        "Epochs": lambda run: f"{len(run.history)}/{run.config.get('epochs') or '?'}",
        "Val top-1 %": lambda run: run.best and f"{run.best.val_top1:.2f}",
        "Test %": "test_top1:.2f",
        "Images/s": "images_per_s:,.0f",
        "Time": lambda run: say_time(run.seconds),
        "State": "state",
    }


def _print_differences(runs: "list[StoredRun]") -> None:
    """Prints a line a run; a line a setting where those are more than the runs."""
    from cvt.training.runs import differences
    from cvt.training.screen import say_value

    differing = differences(runs)
    if not differing:
        return
    cells = {name: [_said(value, say_value) for value in differing[name]] for name in differing}
    names = [run.name for run in runs]
    say()
    if len(cells) > len(runs):
        rows = tuple((name, *cells[name]) for name in cells)
        print_table(Table(columns=("Differs in", *names), rows=rows))
    else:
        columns = list(zip(*cells.values(), strict=True))
        rows = tuple((name, *column) for name, column in zip(names, columns, strict=True))
        print_table(Table(columns=("Differs in", *cells), rows=rows))


def _said(value: Any, say_value: Any) -> str:
    return "-" if value is None else say_value(value)


def _drawn(found: "list[StoredRun]", path: Path, json: bool) -> bool:
    """Draws the runs, which are listed whatever becomes of their plot."""
    try:
        _plot(found, path)
    except UserError as error:
        warn(f"There is no plot of the runs: {error}")
        return False
    if not json:
        say()
        say(f"Validation curves: {path}")
    return True


def _plot(found: "list[StoredRun]", path: Path) -> None:
    from cvt.training.report import save_comparison

    panels = {
        data: [(run.name, list(run.history)) for run in runs if run.history]
        for data, runs in _by_data(found).items()
    }
    save_comparison(path, {data: curves for data, curves in panels.items() if curves})


def _by_data(found: "list[StoredRun]") -> "dict[str, list[StoredRun]]":
    groups: dict[str, list[StoredRun]] = {}
    for run in found:
        groups.setdefault(str(run.config["data"]), []).append(run)
    return groups
