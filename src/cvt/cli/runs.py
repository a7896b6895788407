"""`cvt runs [FOLDER]`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    by_data: dict[str, list[StoredRun]] = {}
    for run in found:
        by_data.setdefault(str(run.config["data"]), []).append(run)
        if json:
            print_json(run.to_dict())
    if not json:
        _print(by_data)
    drawn = plot is None or not found or _drawn(by_data, plot.expanduser(), json)
    print_skipped(bad, len(found), "runs")
    return 1 if bad or not drawn else 0


def _print(by_data: "dict[str, list[StoredRun]]") -> None:
    """Prints the runs on each data set by themselves, as only those can be compared."""
    from cvt.training.screen import say_count, say_time

    columns = {
        "Run": "name",
        "Model": lambda run: run.config["model"],
        "Parameters": lambda run: run.num_params and say_count(run.num_params),
        "Epochs": _say_epochs,
        "Val top-1 %": lambda run: run.best and f"{run.best.val_top1:.2f}",
        "Test %": "test_top1:.2f",
        "Images/s": "images_per_s:,.0f",
        "Time": lambda run: say_time(run.seconds),
        "State": _say_state,
    }
    for number, (data, runs) in enumerate(by_data.items()):
        if number:
            say()
        say(data)
        say()
        print_table(Table.of(runs, columns))
        _print_differences(runs)


def _say_epochs(run: "StoredRun") -> str:
    minutes, epochs = run.config.get("minutes"), run.config.get("epochs")
    most = [str(epochs)] if epochs else []
    most += [f"{minutes:g} min"] if minutes else []
    return f"{run.epochs_done}/{', '.join(most) or '?'}"


def _say_state(run: "StoredRun") -> str:
    return f"{run.state}: {run.ended}" if run.ended in ("minutes", "patience") else run.state


def _print_differences(runs: "list[StoredRun]") -> None:
    """Prints a line a run; a line a setting where those are more than the runs."""
    from cvt.training.runs import differences
    from cvt.training.screen import say_value

    differing = differences(runs)
    if not differing:
        return
    lines = [("Differs in", *(run.name for run in runs))]
    for name, values in differing.items():
        lines.append((name, *("-" if each is None else say_value(each) for each in values)))
    columns, *rows = lines if len(differing) > len(runs) else zip(*lines, strict=True)
    say()
    print_table(Table(columns=columns, rows=tuple(rows)))


def _drawn(by_data: "dict[str, list[StoredRun]]", path: Path, json: bool) -> bool:
    """Draws the validation curves; the runs are listed whatever becomes of their plot."""
    from cvt.training.report import save_comparison

    panels = {
        data: [(run.name, list(run.history)) for run in runs if run.history]
        for data, runs in by_data.items()
    }
    try:
        save_comparison(path, {data: curves for data, curves in panels.items() if curves})
    except UserError as error:
        warn(f"There is no plot of the runs: {error}")
        return False
    if not json:
        say()
        say(f"Validation curves: {path}")
    return True
